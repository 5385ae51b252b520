"""Runs whose server sees sums alone: the adapter of the open run, through methods, kills, and sites that leave."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest
from ended_runs import Killed, adapter_sha256
from safetensors.torch import load_file

from fedlora.client.worker.ledger import LEDGER_FOLDER, Ledger, Spending
from fedlora.common.config import RunConfig
from fedlora.common.errors import RunError
from fedlora.privacy.sampled_steps import epsilon_of_steps
from fedlora.server.disk.sum_journal import SumJournal
from fedlora.simulation import SimulationResult, simulate

MakeRun = Callable[..., RunConfig]

# Of a round: a mean in fixed point is off by 2e-8 a client, and sums are added up in another order. What training makes
# of that in the rounds after it is larger.
CLOSE = 3e-6


def distance(one: Path, other: Path) -> float:
    """Return the largest difference of two runs' adapters."""
    first, second = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    return max(float((first[key] - second[key]).abs().max()) for key in first)


def both(vision_run: MakeRun, folder: Path, sections: Mapping[str, Mapping[str, object]]) -> list[SimulationResult]:
    """Return an open run and the same one over secure sums."""
    one_round = {**sections, "federation": {"rounds": 1, **sections.get("federation", {})}}
    open_run, secure = (vision_run(**one_round, privacy={"secure_sums": is_secure}) for is_secure in (False, True))
    return [
        simulate(config, out=folder / name, num_workers=1) for config, name in ((open_run, "open"), (secure, "secure"))
    ]


@pytest.mark.parametrize(
    "sections",
    [
        {"aggregation": {"method": "lora_fair"}, "federation": {"weighting": "uniform"}},
        {"aggregation": {"method": "lora_fair_two_sided"}},
        {"aggregation": {"method": "flex_lora", "power_iterations": 1}},
        {"aggregation": {"method": "rolora"}, "federation": {"rounds": 2}},
        {"aggregation": {"method": "fedit"}, "federation": {"server_optimizer": "momentum"}},
        {"aggregation": {"method": "ffa_lora"}, "train": {"client_momentum": 0.5}},
        {"aggregation": {"method": "fedit"}, "lora": {"use_dora": True}},
    ],
    ids=str,
)
def test_the_adapter_is_that_of_the_open_run(
    vision_run: MakeRun, tmp_path: Path, sections: Mapping[str, Mapping[str, object]]
) -> None:
    one, other = both(vision_run, tmp_path, sections)
    num_rounds = len(one.reports) - 1
    assert 0 < distance(one.folder, other.folder) < (CLOSE if num_rounds == 1 else 1e-3)
    for open_report, report in zip(one.reports[1:], other.reports[1:], strict=True):
        assert report.clients.keys() == open_report.clients.keys()
        assert report.aggregation is None
        assert "3 of 3 clients" in report.sums[0]
        shares = {name: part.share for name, part in open_report.clients.items()}
        for name, part in report.clients.items():
            assert part.share is not None
            assert part.share.given == pytest.approx(shares[name].given)  # type: ignore[union-attr]


def test_no_update_is_in_the_run_folder_nor_in_what_the_server_was_told(vision_run: MakeRun, tmp_path: Path) -> None:
    config = vision_run(privacy={"secure_sums": True})
    result = simulate(config, out=tmp_path / "run", num_workers=1)
    files = [path.relative_to(result.folder) for path in result.folder.rglob("*") if path.is_file()]
    servers = [path for path in files if path.parts[0] != "optimizer"]
    assert {path.name for path in servers if path.suffix == ".safetensors"} == {
        "adapter.safetensors", "adapter_model.safetensors", "state.safetensors",
    }  # fmt: skip
    assert not list(result.folder.rglob("sums"))


@pytest.mark.slow
def test_a_server_that_is_killed_goes_on_with_the_very_sums(
    vision_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before and after each thing that it has on disk of a round's sums, it ends in the same adapter."""
    config = vision_run(privacy={"secure_sums": True}, federation={"rounds": 1})
    whole = simulate(config, out=tmp_path / "whole", num_workers=1)
    places = []
    for place in count():
        folder, journal = tmp_path / f"killed-{place}", KilledAt(place)
        with monkeypatch.context() as patched, suppress(Killed):
            for name in ("begin", "write", "write_roster", "write_there", "write_total"):
                patched.setattr(SumJournal, name, journal.dying(getattr(SumJournal, name)))
            simulate(config, out=folder, num_workers=1)
        if not journal.has_died:
            break
        places.append(journal.died_in)
        result = simulate(config, out=folder, num_workers=1, resume=True)
        assert adapter_sha256(result.folder) == adapter_sha256(whole.folder), journal.died_in
        assert "begun anew" not in " ".join(result.reports[1].sums)
    assert {"begin", "write", "write_roster", "write_there", "write_total"} <= set(places)


class KilledAt:
    """Ends the process at the so-manieth thing that is written, by turns before it is and after."""

    def __init__(self, place: int) -> None:
        self._place = place
        self._count = 0
        self.has_died = False
        self.died_in = ""

    def dying(self, write: Callable[..., None]) -> Callable[..., None]:
        def write_or_die(*arguments: object) -> None:
            for is_written in (False, True):
                if self._count == self._place:
                    self.has_died, self.died_in = True, write.__name__
                    raise Killed
                self._count += 1
                if not is_written:
                    write(*arguments)

        return write_or_die


def test_a_run_of_one_client_is_refused(vision_run: MakeRun, tmp_path: Path) -> None:
    config = vision_run(privacy={"secure_sums": True}, federation={"cohort": 1})
    with pytest.raises(RunError, match="a sum takes 2"):
        simulate(config, out=tmp_path / "run", num_workers=1)


def test_secure_sums_and_a_budget_per_example_go_together_and_end_in_good_order(
    vision_run: MakeRun, tmp_path: Path
) -> None:
    privacy = {"secure_sums": True, "unit": "example", "noise_multiplier": 1.0, "clip": 1.0, "delta": 1e-3}
    one_round = vision_run(privacy=privacy, federation={"rounds": 1})
    simulate(one_round, out=tmp_path / "one", num_workers=1)
    entry, *_ = spendings_of(tmp_path / "one")
    epsilon = 1.3 * epsilon_of_steps([entry.steps], delta=1e-3)
    config = vision_run(privacy={**privacy, "epsilon": epsilon}, federation={"rounds": 8})
    result = simulate(config, out=tmp_path / "run", num_workers=1)
    *trained, last = result.reports[1:]
    assert trained
    assert all("3 of 3 clients" in report.sums[0] for report in trained)
    assert last.is_out_of_budget
    assert last.round < 8
    assert last.adapter_sha256 == trained[-1].adapter_sha256
    assert {entry.num_steps for entry in spendings_of(tmp_path / "run")} == {entry.num_steps * len(trained)}


def spendings_of(folder: Path) -> list[Spending]:
    return list(Ledger(folder / LEDGER_FOLDER).of_all())
