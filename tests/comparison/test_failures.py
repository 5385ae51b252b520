"""Runs of a comparison that an error ended: what is said of them, and that they are tried again."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fedlora.common.config import RunConfig
from fedlora.comparison import markdown, page
from fedlora.comparison.cells import run_cell
from fedlora.comparison.evaluation import evaluate
from fedlora.comparison.finding import left_out
from fedlora.comparison.gathered import gathered
from fedlora.comparison.grid import Grid, final_cells, tuning_cells
from fedlora.comparison.results import IdleTrial
from fedlora.comparison.work import begin, result, work, work_or_say_why
from fedlora.server.disk.store import RunFolder

MakeRun = Callable[..., RunConfig]

ONE_ROUND = {"federation": {"rounds": 1}, "train": {"steps": 1}, "evaluation": {"client_examples": 4}}


def test_what_an_error_ended_is_done_again_by_the_same_command_and_by_no_worker_before(
    vision_run: MakeRun, tiny_digits: Path, tmp_path: Path
) -> None:
    base = vision_run(**ONE_ROUND, data={"path": str(tmp_path / "digits.npz")})
    grid = Grid(("fedit",), num_draws=1)
    (cell,) = final_cells(grid, {})
    folder = tmp_path / "out"
    begin(folder, base, grid)
    work(folder)
    comparison = gathered(folder, command="")
    assert left_out(evaluate(comparison))[0].startswith("fedit, draw 0, counts for nothing: ")
    assert left_out(evaluate(comparison))[0].endswith("; the same command tries it again.")
    shutil.copy(tiny_digits, tmp_path / "digits.npz")
    work(folder)
    failed = result(folder, cell)
    assert failed is not None
    assert failed.has_failed
    begin(folder, base, grid)
    assert result(folder, cell) is None
    work(folder)
    done = result(folder, cell)
    assert done is not None
    assert (done.fault, len(done.course.metric)) == ("", 2)
    begin(folder, base, grid)
    assert result(folder, cell) == done


def test_a_value_that_could_not_be_tried_is_named_and_the_page_says_so(
    vision_run: MakeRun, tiny_digits: Path, tmp_path: Path
) -> None:
    values = (str(tmp_path / "missing.npz"), str(tiny_digits))
    grid = Grid(("fedit",), tuned={"data.path": values}, num_draws=1)
    begin(tmp_path / "out", vision_run(**ONE_ROUND), grid)
    work(tmp_path / "out")
    comparison = gathered(tmp_path / "out", command="")
    (trial,) = comparison.idle_trials
    assert (trial.variant, trial.draw, trial.tried) == ("fedit", 0, {"data.path": values[0]})
    assert [run.fault for run in comparison.runs] == [""]
    said = f"fedit, draw 0, says nothing of data.path={values[0]}, which it tried to choose by: "
    for text in (markdown.render(comparison), page.render(comparison)):
        assert said in text
        assert "; the same command tries it again." in text


def test_a_value_without_a_finite_loss_on_validation_is_named(vision_run: MakeRun, tmp_path: Path) -> None:
    unjudged = {**ONE_ROUND, "evaluation": {"client_examples": 0}}
    grid = Grid(("fedit",), tuned={"train.learning_rate": ("0.01", "0.02")}, num_draws=1)
    begin(tmp_path / "out", vision_run(**unjudged), grid)
    work(tmp_path / "out")
    why = "its last loss on the clients' validation is not a finite number"
    assert gathered(tmp_path / "out", command="").idle_trials == tuple(
        IdleTrial("fedit", 0, cell.chosen, why) for cell in tuning_cells(grid)
    )


def test_an_error_that_is_none_of_ours_is_a_fault_too_and_its_traceback_is_kept(
    vision_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (cell,) = final_cells(Grid(("fedit",), num_draws=1), {})

    def read(*_: object, **__: object) -> object:
        raise ZeroDivisionError("of nothing")

    found = run_cell(cell, vision_run(), tmp_path, read=read)  # type: ignore[arg-type]
    assert (found.fault, found.has_failed) == ("ZeroDivisionError: of nothing", True)
    assert "Traceback" in capsys.readouterr().err


def test_clients_that_stop_early_by_themselves_count_with_where_they_ended(vision_run: MakeRun, tmp_path: Path) -> None:
    base = vision_run(
        federation={"rounds": 6},
        train={"steps": 2, "learning_rate": 0.3},
        evaluation={"client_examples": 8, "early_stopping": 1},
    )
    (cell,) = [
        cell
        for cell in final_cells(Grid(("fedit",), references=("local_only",), num_draws=1), {})
        if cell.variant.kind == "reference"
    ]
    alone = run_cell(cell, base, tmp_path)
    assert alone.fault == ""
    ends = []
    for path in (tmp_path / cell.folder).iterdir():
        latest = RunFolder(path).latest()
        assert latest is not None
        assert latest.reports[-1].held_out is not None
        ends.append((latest.round, latest.reports[-1].held_out.overall.metric))
    assert len({number for number, _ in ends}) > 1, "some stop before others, or nothing is tested"
    assert len(alone.course.metric) == max(number for number, _ in ends) + 1
    assert alone.course.metric[-1] == pytest.approx(sum(metric for _, metric in ends) / len(ends))


def test_a_directory_that_a_machine_lacks_is_named(vision_run: MakeRun, tmp_path: Path) -> None:
    begin(tmp_path / "out", vision_run(), replace(Grid(("fedit",)), num_draws=1))
    said = work_or_say_why(tmp_path / "out", tmp_path / "nowhere")
    assert f"{tmp_path / 'nowhere'}: a worker of Ray's on " in said
    assert "cannot go there (No such file or directory)" in said
