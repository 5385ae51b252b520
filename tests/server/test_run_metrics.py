"""A run's metrics after each of its events: what a scrape of a real run seldom has."""

from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from fedlora.common.config import RunConfig
from fedlora.common.run_folder import EXCHANGE_FOLDER
from fedlora.server.disk.space import why_not_writable
from fedlora.server.record.events import (
    CallsRefused,
    DiskSpace,
    RoundEnded,
    RoundStarted,
    RunStarted,
    SiteChanged,
    UpdateArrived,
    Waiting,
)
from fedlora.server.record.round_report import RoundReport
from fedlora.server.record.running_summary import RunningSummary, Summarised
from fedlora.server.run_metrics import RunMetrics

REPORT = RoundReport(
    1, ("a", "b"), {}, {"b": "shape: q_proj"}, None, None, bytes_down=10, bytes_up=4, seconds={"training": 3.0}
)


class Shown:
    """A run's metrics, and who hears of the run."""

    def __init__(self, folder: Path) -> None:
        self.registry = CollectorRegistry()
        metrics = RunMetrics(RunConfig(), folder, known=RunningSummary(), certificate_of={"server": self._missing})
        self.registry.register(metrics)
        self.hear = Summarised([metrics.show])

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"fedlora_{name}", labels)

    def _missing(self) -> bytes:
        raise FileNotFoundError


@pytest.fixture
def shown(tmp_path: Path) -> Shown:
    return Shown(tmp_path)


def test_refused_updates_are_counted_by_reason_each_once_and_made_up_ones_together(shown: Shown) -> None:
    shown.hear(RunStarted(("a", "b"), 5, 1, ()))
    shown.hear(RoundStarted(1, ("a", "b"), ()))
    shown.hear(UpdateArrived(1, "a", "chosen_by_an_attacker: again", 0.0))
    shown.hear(UpdateArrived(1, "b", "shape: q_proj", 0.0))
    shown.hear(RoundEnded(replace(REPORT, refused={"b": "shape: q_proj", "a": "chosen_by_an_attacker: again"})))
    assert shown.value("updates_refused_total", reason="shape") == 1
    assert shown.value("updates_refused_total", reason="other") == 1
    assert shown.value("updates_refused_total", reason="norm") == 0


def test_a_run_that_goes_on_counts_its_rounds_so_far_once(shown: Shown) -> None:
    shown.hear(RunStarted(("a", "b"), 5, 2, (replace(REPORT, round=0, refused={}), REPORT)))
    assert shown.value("rounds_total") == 1
    assert shown.value("updates_refused_total", reason="shape") == 1
    assert shown.value("adapter_bytes_total", direction="down") == 20
    assert shown.value("phase_seconds_count", phase="training") == 0, "timed by another process"
    shown.hear(RoundEnded(replace(REPORT, round=2)))
    assert shown.value("updates_refused_total", reason="shape") == 2
    assert shown.value("phase_seconds_bucket", phase="training", le="10.0") == 1
    assert shown.value("phase_seconds_bucket", phase="training", le="2.0") == 0


def test_a_round_that_is_begun_again_for_want_of_a_quorum_is_counted(shown: Shown) -> None:
    shown.hear(RunStarted(("a", "b"), 5, 1, ()))
    shown.hear(RoundStarted(1, ("a", "b"), ()))
    assert shown.value("rounds_repeated_total") == 0
    shown.hear(Waiting("round 1 has 0 of the 1 updates of its quorum"))
    assert shown.value("run_waiting") == 1
    shown.hear(RoundStarted(1, ("a", "b"), ()))
    assert shown.value("rounds_repeated_total") == 1
    assert shown.value("run_waiting") == 0
    assert shown.value("cohort_sites", state="waited_for") == 2
    shown.hear(RoundEnded(REPORT))
    shown.hear(RoundStarted(2, ("a", "b"), ()))
    assert shown.value("rounds_repeated_total") == 1


def test_sites_callers_and_the_disk_are_counted_by_state_and_code(shown: Shown, tmp_path: Path) -> None:
    for site, state in (("a", "ready"), ("b", "ready"), ("c", "not ready")):
        shown.hear(SiteChanged(site, state))
    shown.hear(CallsRefused("revoked", "c", "192.0.2.1", 3))
    shown.hear(CallsRefused("made_up", "", "192.0.2.1", 2))
    shown.hear(DiskSpace(str(tmp_path), 1, 2))
    uploads = tmp_path / EXCHANGE_FOLDER / "uploads" / "a"
    uploads.mkdir(parents=True)
    (uploads / "1-abc").write_bytes(b"12345")
    assert (shown.value("sites", state="ready"), shown.value("sites", state="not_ready")) == (2, 1)
    assert shown.value("calls_refused_total", reason="revoked") == 3
    assert shown.value("calls_refused_total", reason="other") == 2
    assert shown.value("disk_short") == 1
    assert shown.value("exchange_files", kind="uploads") == 1
    assert shown.value("exchange_bytes", kind="uploads") == 5
    assert shown.value("certificate_expiry_timestamp_seconds", whose="server") is None


def test_a_folder_is_writable_if_a_file_can_be_written_to_it(tmp_path: Path) -> None:
    assert why_not_writable(tmp_path) == ""
    assert list(tmp_path.iterdir()) == []
    assert why_not_writable(tmp_path / "gone") == "the run's folder cannot be written (No such file or directory)"
