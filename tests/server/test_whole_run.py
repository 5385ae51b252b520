"""A run from the claim of its folder to its release, whatever engine carries it."""

from contextlib import nullcontext
from pathlib import Path

import pytest

from fedlora.common.config import RunConfig
from fedlora.common.errors import ConfigError, RunError, StoreError
from fedlora.common.run_file import parse_run
from fedlora.server.record.events import Event, Noted
from fedlora.server.whole_run import Rounds, Run, whole_run


def run_in(folder: Path, config: RunConfig | None = None) -> Run:
    return Run(config or RunConfig(), folder, num_sites=2, command="", notes=("a setting does nothing",))


def unable(rounds: Rounds) -> None:
    raise RunError(f"{rounds.run.folder.name}: no site came")


def test_the_engine_works_in_a_folder_that_is_held_and_notes_are_told_before_it(tmp_path: Path) -> None:
    told: list[Event] = []

    def engine(_rounds: Rounds) -> None:
        assert told == [Noted(("a setting does nothing",))]
        with pytest.raises(StoreError, match="is in use by another process"):
            whole_run(run_in(tmp_path), unable, shown=nullcontext(told.append))

    assert whole_run(run_in(tmp_path), engine, shown=nullcontext(told.append)) is None
    assert len(told) == 1
    assert (tmp_path / "run.toml").is_file()


def test_a_run_that_fails_before_its_first_round_gives_the_folder_back_and_says_why(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="out: no site came"):
        whole_run(run_in(tmp_path / "out"), unable, shown=nullcontext(print))
    assert not (tmp_path / "out").exists()


def test_nobody_is_shown_a_run_whose_folder_is_another_ones(tmp_path: Path) -> None:
    whole_run(run_in(tmp_path), lambda _rounds: None, shown=nullcontext(print))
    told: list[Event] = []
    other = parse_run({"run": {"seed": 7}})
    with pytest.raises(StoreError, match="differs from this one"):
        whole_run(run_in(tmp_path, other), unable, shown=nullcontext(told.append))
    with pytest.raises(StoreError, match="continue it with --resume"):
        whole_run(run_in(tmp_path), unable, shown=nullcontext(told.append), resume=False)
    assert told == []


def test_a_method_that_only_python_can_give_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    own = parse_run({"aggregation": {"method": "own", "name": "mine", "settings": ""}})
    with pytest.raises(ConfigError, match="given in Python"):
        whole_run(run_in(tmp_path / "out", own), unable, shown=nullcontext(print))
    assert not (tmp_path / "out").exists()
