"""A run's metrics after each of its events: what a scrape of a real run seldom has."""

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from fedlora.common.config import RunConfig
from fedlora.common.run_folder import EXCHANGE_FOLDER, ROUNDS_FILE
from fedlora.server.disk.space import why_not_writable
from fedlora.server.record.events import (
    CallsRefused,
    DiskSpace,
    RoundEnded,
    RoundStarted,
    RunStarted,
    ScoreNotFinite,
    SiteChanged,
    UpdateArrived,
    Waiting,
)
from fedlora.server.record.round_report import RoundReport
from fedlora.server.record.running_summary import Summarised, after_rounds
from fedlora.server.run_metrics import RunMetrics
from fedlora.server.run_queue.metrics import StoreMetrics
from fedlora.server.run_queue.store import RunStore

REPORT = RoundReport(
    1, ("a", "b"), {}, {"b": "shape: q_proj"}, None, None, bytes_down=10, bytes_up=4, seconds={"training": 3.0}
)


class Shown:
    """A run's metrics, and who hears of the run."""

    def __init__(self, folder: Path, *, reports: tuple[RoundReport, ...] = ()) -> None:
        self.registry = CollectorRegistry()
        certificate_of = {"server": self._missing}
        self.metrics = RunMetrics(RunConfig(), folder, reports=reports, certificate_of=certificate_of)
        self.registry.register(self.metrics)
        self.hear = Summarised([self.metrics.show], known=after_rounds(reports))

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


@pytest.mark.parametrize("is_heard", [False, True])
def test_a_run_that_goes_on_counts_its_rounds_so_far_once_and_from_the_first_scrape(
    tmp_path: Path, is_heard: bool
) -> None:
    reports = (replace(REPORT, round=0, refused={}), REPORT)
    shown = Shown(tmp_path, reports=reports)
    if is_heard:
        shown.hear(RunStarted(("a", "b"), 5, 2, reports))
    assert shown.value("rounds_total") == 1
    assert shown.value("updates_refused_total", reason="shape") == 1
    assert shown.value("adapter_bytes_total", direction="down") == 20
    assert shown.value("phase_seconds_count", phase="training") == 2
    shown.hear(RoundEnded(replace(REPORT, round=2)))
    assert shown.value("updates_refused_total", reason="shape") == 2
    assert shown.value("phase_seconds_bucket", phase="training", le="10.0") == 3
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


def test_the_time_in_which_no_process_was_at_work_is_no_stalled_round(tmp_path: Path) -> None:
    path, began = tmp_path / ROUNDS_FILE, time.time()
    path.touch()
    os.utime(path, (began - 86_400, began - 86_400))
    shown = Shown(tmp_path, reports=(REPORT,))
    assert shown.value("last_round_timestamp_seconds") == pytest.approx(began - 86_400)
    shown.hear(RunStarted(("a", "b"), 5, 2, (REPORT,)))
    shown.hear(RoundStarted(2, ("a", "b"), ()))
    first = shown.value("last_round_timestamp_seconds")
    assert first is not None
    assert first >= began
    shown.hear(RoundStarted(2, ("a", "b"), ()))
    assert shown.value("last_round_timestamp_seconds") == first, "a round that is begun again and again stalls"


@pytest.mark.parametrize("state", ["finished", "stopped"])
def test_a_run_that_is_over_says_how_has_no_sites_and_waits_for_nothing(
    shown: Shown, tmp_path: Path, state: str
) -> None:
    shown.hear(RunStarted(("a", "b"), 1, 1, ()))
    shown.hear(RoundStarted(1, ("a", "b"), ()))
    if state == "finished":
        shown.hear(RoundEnded(REPORT))
    for event in (SiteChanged("a", "away"), Waiting("the quorum"), DiskSpace(str(tmp_path), 1, 2)):
        shown.hear(event)
    shown.metrics.close()
    shown.hear(SiteChanged("b", "away"))
    assert shown.value("run_state", state=state) == 1
    assert shown.metrics.is_finished == (state == "finished")
    assert shown.value("run_state", state="training") == 0
    assert shown.value("sites", state="away") == 0
    assert shown.value("cohort_sites", state="waited_for") == 0
    assert (shown.value("run_waiting"), shown.value("disk_short")) == (0, 0)


def test_scores_that_are_not_finite_are_counted(shown: Shown) -> None:
    assert shown.value("scores_not_finite_total") == 0
    shown.hear(ScoreNotFinite(1, "a"))
    assert shown.value("scores_not_finite_total") == 1


def test_who_was_sent_away_for_good_is_no_site_that_is_away(shown: Shown) -> None:
    shown.hear(SiteChanged("a", "away"))
    shown.hear(SiteChanged("b", "away", "revoked"))
    assert shown.value("sites", state="away") == 1


def test_what_a_store_counts_goes_on_from_run_to_run_and_hears_of_callers_between_them(tmp_path: Path) -> None:
    metrics, registry = StoreMetrics(RunStore.opened(tmp_path / "store"), certificate_of={}), CollectorRegistry()
    registry.register(metrics)

    def num(name: str, reason: str) -> float | None:
        return registry.get_sample_value(f"fedlora_{name}_refused_total", {"reason": reason})

    metrics.heard(CallsRefused("revoked", "c", "192.0.2.1", 3))
    first = Summarised([metrics.begin(RunConfig(), tmp_path, reports=()).show])
    first(RoundStarted(1, ("a", "b"), ()))
    first(UpdateArrived(1, "b", "shape: q_proj", 0.0))
    first(CallsRefused("revoked", "c", "192.0.2.1", 1))
    metrics.begin(RunConfig(), tmp_path, reports=(REPORT,) * 9)
    assert num("updates", "shape") == 1, "what a run that goes on has behind it is no news"
    assert num("calls", "revoked") == 3, "the port tells the store of each itself"


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
