"""`fedlora compare` before any of its runs: what is refused, what is noted, and how options are read."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fedlora.cli.compare_options import values_of
from fedlora.common.config import RunConfig
from fedlora.common.errors import ConfigError
from fedlora.common.run_file import to_toml
from fedlora.comparison.beforehand import notes_beforehand
from fedlora.comparison.cells import run_cell
from fedlora.comparison.gathered import gathered_from_runs
from fedlora.comparison.grid import Grid, final_cells
from fedlora.comparison.work import begin

if TYPE_CHECKING:
    from conftest import Done

MakeRun = Callable[..., RunConfig]

RATES = {"train.learning_rate": ("0.01", "0.02")}
ONE_ROUND = {"federation": {"rounds": 1}, "train": {"steps": 1}}


def run_of(base: RunConfig, folder: Path) -> str:
    """Do a run, and return where it lies in a folder."""
    (cell,) = final_cells(Grid(("fedit",), num_draws=1), {})
    return run_cell(cell, base, folder).folder


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        (["lora.rank=4, 8"], {"lora.rank": ("4", "8")}),
        (["data.path=don't,b"], {"data.path": ("don't", "b")}),
        (["data.path=a]b,c", "lora.rank=4"], {"data.path": ("a]b", "c"), "lora.rank": ("4",)}),
        (["lora.target_modules=['query', 'value'],auto"], {"lora.target_modules": ("['query', 'value']", "auto")}),
        (['data.path="a,b", \'c]d\',["e]", "f,g"]'], {"data.path": ('"a,b"', "'c]d'", '["e]", "f,g"]')}),
    ],
)
def test_values_are_parted_where_they_end(texts: list[str], found: Mapping[str, tuple[str, ...]]) -> None:
    assert values_of(texts, option="--over") == found


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["lora.rank"], "--over is 'lora.rank'; expected section.key=VALUE,VALUE"),
        (["lora.rank=4,8", " lora.rank=16"], "--over has lora.rank twice"),
        (["train.learning_rate=1e-3,2e-3,0.001"], "--over train.learning_rate has 1e-3 and 0.001, which are one value"),
        (["lora.rank=8,8.0"], "has 8 and 8.0, which are one value"),
        (['train.schedule=cosine,"cosine"'], 'has cosine and "cosine", which are one value'),
    ],
)
def test_what_is_given_twice_is_refused_however_it_is_spelled(texts: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        values_of(texts, option="--over")
    assert said in str(refused.value)


def test_draws_to_choose_by_are_refused_where_nothing_is_chosen(fedlora: Callable[..., "Done"], tmp_path: Path) -> None:
    done = fedlora("compare", "--tuning-draws", "3", "--out", tmp_path / "out")
    assert (done.code, (tmp_path / "out").exists()) == (1, False)
    assert "--tuning-draws does nothing without --tune" in done.err


@pytest.mark.parametrize(
    ("changes", "grid", "said"),
    [
        ({"data": {"test": 0.0}}, Grid(("fedit",)), "^no test examples are held out.* set data.test"),
        ({}, Grid(("fedit",), {"data.test": ("0.5", "0.0")}), "^data.test=0.0: no test examples are held out"),
        (
            {"evaluation": {"client_examples": 0}}, Grid(("fedit",), tuned=RATES),
            "--tune chooses by .* no client judges any: evaluation.client_examples is 0; set both above 0",
        ),
        (
            {"data": {"validation": 0.0}}, Grid(("fedit",), tuned=RATES),
            "no client judges any: data.validation = 0 leaves no client any",
        ),
    ],
)  # fmt: skip
def test_data_by_which_nothing_could_be_found_are_refused(
    vision_run: MakeRun, changes: dict[str, dict[str, object]], grid: Grid, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        notes_beforehand(grid, vision_run(**changes))


def test_data_without_validation_examples_can_be_compared_where_nothing_is_chosen(vision_run: MakeRun) -> None:
    assert notes_beforehand(Grid(("fedit",), RATES), vision_run(evaluation={"client_examples": 0})) == ()


def test_settings_that_do_nothing_are_said_once_and_with_the_variants_that_they_do_nothing_in(
    vision_run: MakeRun,
) -> None:
    base = vision_run(train={"momentum": 0.5}, federation={"server_momentum": 0.7})
    grid = Grid(("fedit", "flora"), {"train.optimizer": ("sgd", "adamw")}, references=("centralised",))
    notes = notes_beforehand(grid, base)
    assert sorted(notes) == [
        'federation.server_momentum = 0.7 does nothing here: federation.server_optimizer = "none" takes what the '
        "method makes of the updates as it is",
        'train.momentum = 0.5 does nothing here: train.optimizer = "adamw" has its own (in fedit, '
        "train.optimizer=adamw and flora, train.optimizer=adamw)",
    ]


def test_the_command_says_what_it_refuses_before_it_writes_anything(
    fedlora: Callable[..., "Done"], vision_run: MakeRun, tmp_path: Path
) -> None:
    (tmp_path / "run.toml").write_text(to_toml(vision_run(data={"validation": 0.0})))
    done = fedlora("compare", tmp_path / "run.toml", "--tune", "lora.rank=2,4", "--out", tmp_path / "out")
    assert done.code == 1
    assert "no client judges any: data.validation = 0" in done.err
    assert not (tmp_path / "out").exists()


def test_folders_of_runs_go_with_no_option_of_runs_to_be_done(
    fedlora: Callable[..., "Done"], vision_run: MakeRun, tmp_path: Path
) -> None:
    (tmp_path / run_of(vision_run(**ONE_ROUND), tmp_path)).rename(tmp_path / "run")
    begin(tmp_path / "whole", vision_run(), Grid(("fedit",)))
    refusals = {
        ("whole",): "is the folder of a comparison and of no run; its page is",
        ("run", "nothing"): "is no folder of a run; expected one RUN.toml",
        ("run", "--out", "whole"): "holds a comparison with runs of its own; choose another folder",
    }
    for option, value in (
        ("--methods", "fedit"), ("--references", "head_only"), ("--over", "lora.rank=4"), ("--tune", "lora.rank=4"),
        ("--set", "lora.rank=4"), ("--preset", "digits"), ("--draws", "10"), ("--tuning-draws", "2"),
        ("--engine", "inprocess"), ("--workers", "1"),
    ):  # fmt: skip
        refusals["run", option, value] = f"{option} does nothing with folders of finished runs"
    for arguments, said in refusals.items():
        paths = [tmp_path / each if each in ("run", "whole", "nothing") else each for each in arguments]
        done = fedlora("compare", *paths)
        assert (done.code, said in done.err) == (1, True), done.err
    done = fedlora("compare", tmp_path / "run", "--out", tmp_path / "page")
    assert done.code == 0
    assert (tmp_path / "page" / "report.html").is_file()


def test_runs_that_are_judged_by_other_metrics_are_not_compared(
    vision_run: MakeRun, chat_run: MakeRun, tmp_path: Path
) -> None:
    for name, config in (("pictures", vision_run(**ONE_ROUND)), ("chats", chat_run(**ONE_ROUND))):
        (tmp_path / run_of(config, tmp_path)).rename(tmp_path / name)
    with pytest.raises(ConfigError, match=r"chats is judged by token accuracy, and \S+pictures by accuracy; expected"):
        gathered_from_runs([tmp_path / "pictures", tmp_path / "chats"], command="")
