"""What trackers are given, and what becomes of a run whose tracker fails."""

import threading
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from tracked import last, report, track

from fedlora.common.errors import ConfigError
from fedlora.trackers import TrackedRun, Tracker, load_trackers, registry
from fedlora.trackers.mlflow_tracker import metric_name


class Kept:
    """Keeps what it is given in memory, as a package of somebody's own might."""

    def __init__(self, last_round: int = -1, fails_at: int | None = None) -> None:
        self.last_round = last_round
        self.fails_at = fails_at
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.runs: list[TrackedRun] = []
        self.closed: list[bool] = []

    def open(self, run: TrackedRun) -> Tracker:
        self.runs.append(run)
        return self

    def write(self, round: int, numbers: Mapping[str, float]) -> None:
        if round == self.fails_at:
            raise ConnectionError("nobody\nanswers")
        self.rows.append((round, dict(numbers)))

    def close(self, *, is_finished: bool) -> None:
        self.closed.append(is_finished)

    def validation(self) -> dict[int, float]:
        return {round: numbers["validation/loss"] for round, numbers in self.rows if "validation/loss" in numbers}


def test_each_round_is_told_with_its_numbers_and_validation_with_the_round_it_is_of(tmp_path: Path) -> None:
    kept = Kept()
    assert track(tmp_path, {"kept": kept.open}, new=(report(0), report(1), last(2))) == []
    assert [round for round, numbers in kept.rows if "seconds/round" in numbers] == [0, 1, 2]
    numbers = dict(kept.rows)[1]
    assert kept.validation() == {0: 0.5, 1: 1.5, 2: 2.5}
    (of_two,) = [numbers for round, numbers in kept.rows if round == 2]
    assert of_two == {
        "updates/accepted": 1, "updates/refused": 0, "bytes/down": 100, "bytes/up": 50, "seconds/round": 3.0,
        "seconds/training": 2.0, "seconds/storing": 1.0, "train/loss": 0.2, "held_out/loss": 2.0,
        "held_out/metric": 0.5, "held_out/metric/mono": 0.75, "validation/loss": 2.5, "validation/metric": 0.25,
    }  # fmt: skip
    assert numbers["validation/metric"] == 0.25
    (run,) = kept.runs
    assert (run.id, run.name, run.folder) == ("abc123", "tracked", tmp_path)
    assert run.settings["federation.rounds"] == 4
    assert kept.closed == [False], "two of four rounds"


def test_what_is_spent_of_a_privacy_budget_is_told(tmp_path: Path) -> None:
    kept = Kept()
    track(tmp_path, {"kept": kept.open}, new=(report(0), replace(report(1), epsilon=1.5)))
    assert [numbers.get("privacy/epsilon") for _, numbers in kept.rows if "seconds/round" in numbers] == [None, 1.5]


def test_a_run_that_goes_on_tells_no_round_twice_and_those_that_were_missed(tmp_path: Path) -> None:
    kept = Kept(last_round=1)
    known = (report(0), report(1), report(2))
    track(tmp_path, {"kept": kept.open}, known=known, new=(report(3), last(4)))
    assert [round for round, numbers in kept.rows if "seconds/round" in numbers] == [2, 3, 4]
    assert kept.validation() == {1: 1.5, 2: 2.5, 3: 3.5, 4: 4.5}
    assert kept.closed == [True]


def test_a_run_that_is_prolonged_does_not_tell_the_validation_of_its_former_end_again(tmp_path: Path) -> None:
    kept = Kept(last_round=2)
    track(tmp_path, {"kept": kept.open}, known=(report(0), report(1), last(2)), new=(report(3),))
    assert kept.validation() == {}


def test_a_tracker_that_fails_is_said_once_and_the_others_go_on(tmp_path: Path) -> None:
    broken, kept = Kept(fails_at=1), Kept()
    rounds = (report(0), report(1), report(2))
    said = track(tmp_path, {"broken": broken.open, "kept": kept.open}, new=rounds)
    assert said == ["--track broken failed (ConnectionError: nobody answers); the run goes on without it"]
    assert len({round for round, _ in kept.rows}) == 3


def test_a_tracker_that_cannot_be_opened_is_said_and_a_slow_one_holds_no_round(tmp_path: Path) -> None:
    may_go_on = threading.Event()
    kept = Kept()

    def slow(run: TrackedRun) -> Tracker:
        assert may_go_on.wait(60)
        return kept.open(run)

    def broken(_run: TrackedRun) -> Tracker:
        may_go_on.set()
        raise PermissionError("no")

    said = track(tmp_path, {"slow": slow, "broken": broken}, new=(report(0), report(1)))
    assert said == ["--track broken failed (PermissionError: no); the run goes on without it"]
    assert [round for round, numbers in kept.rows if "seconds/round" in numbers] == [0, 1]


def test_an_unknown_tracker_a_missing_extra_and_a_broken_package_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--track 'tensorbord' is no tracker; expected one of mlflow, tensorboard"):
        load_trackers(["tensorbord"])
    monkeypatch.setattr(registry, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r"--track wandb needs wandb: pip install 'fedlora\[wandb\]'"):
        load_trackers(["wandb"])
    points = {"theirs": EntryPoint("theirs", "no_such_package:open", "fedlora.trackers")}
    monkeypatch.setattr(registry, "tracker_points", lambda: points)
    with pytest.raises(ConfigError, match="--track theirs: no_such_package:open cannot be imported"):
        load_trackers(["theirs"])


def test_a_tracker_of_another_package_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [EntryPoint("theirs", "operator:add", "fedlora.trackers")]
    monkeypatch.setattr(registry, "entry_points", lambda *, group: points if group == "fedlora.trackers" else [])
    import operator

    assert load_trackers(["theirs"]) == {"theirs": operator.add}


@pytest.mark.parametrize("group", ["https://x.org", "..", ".", "a/../b", "a//b", "naïve?"])
def test_a_groups_name_is_one_that_mlflow_takes(group: str) -> None:
    name = metric_name(f"held_out/metric/{group}")
    assert name.count("/") == 2
    assert name.rpartition("/")[2].strip(".")
    assert "?" not in name


def test_names_that_are_fit_stay_and_others_do_not_become_the_same() -> None:
    assert metric_name("seconds/round") == "seconds/round"
    assert metric_name("held_out/metric/north-1") == "held_out/metric/north-1"
    assert metric_name("held_out/metric/a/b") != metric_name("held_out/metric/a?b")
