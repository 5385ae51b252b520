"""Runs of a comparison, done by real workers on a tiny model."""

import hashlib
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fedlora.cli.main import main
from fedlora.common.config import RunConfig
from fedlora.common.errors import ConfigError
from fedlora.common.locks import hold
from fedlora.comparison.cells import EVERYONE, pooled, run_cell
from fedlora.comparison.federates import alike, goes_its_own_way
from fedlora.comparison.gathered import gathered, gathered_from_runs, write
from fedlora.comparison.grid import Cell, Grid, final_cells
from fedlora.comparison.results import CODEC, RunResult
from fedlora.comparison.work import begin, result, work
from fedlora.methods import METHODS
from fedlora.server.disk.store import RunFolder
from fedlora.server.record.events import Event, RoundEnded
from fedlora.simulation import simulate
from fedlora.simulation.simulate import simulate_over
from fedlora.training.data import load_federated_data

MakeRun = Callable[..., RunConfig]

GRID = Grid(("fedit", "lora_fair"), num_draws=2)


@pytest.fixture(scope="module")
def base(vision_run: MakeRun) -> RunConfig:
    return vision_run(
        federation={"rounds": 2},
        train={"steps": 2, "batch_size": 4, "learning_rate": 0.02},
        evaluation={"client_examples": 4},
    )


@pytest.fixture(scope="module")
def compared(base: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a comparison that is over: not to be changed."""
    folder = tmp_path_factory.mktemp("compared") / "out"
    begin(folder, base, GRID)
    work(folder)
    return folder


def results(folder: Path, grid: Grid = GRID) -> dict[tuple[str, int], RunResult]:
    found = {(cell.variant.name, cell.draw): result(folder, cell) for cell in final_cells(grid, {})}
    return {place: each for place, each in found.items() if each is not None}


def adapter_sha256(folder: Path, number: int) -> str:
    path = folder / "rounds" / f"{number:04d}" / "adapter.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_runs_of_a_draw_start_alike_and_each_is_what_a_simulation_of_its_run_file_is(
    compared: Path, base: RunConfig, tmp_path: Path
) -> None:
    found = results(compared)
    assert len(found) == 4
    assert {each.fault for each in found.values()} == {""}
    reports = {place: RunFolder(compared / each.folder).latest() for place, each in found.items()}
    starts = {place: each.reports[0] for place, each in reports.items() if each is not None}
    for draw in range(2):
        assert starts["fedit", draw].adapter_sha256 == starts["lora_fair", draw].adapter_sha256
        assert starts["fedit", draw].held_out == starts["lora_fair", draw].held_out
    assert starts["fedit", 0].adapter_sha256 != starts["fedit", 1].adapter_sha256
    again = simulate(Cell(GRID.variants()[1], {}, 1).config(base), out=tmp_path / "again", num_workers=2)
    assert again.reports[-1].adapter_sha256 == adapter_sha256(compared / found["lora_fair", 1].folder, 2)
    course = found["lora_fair", 1].course
    assert again.reports[-1].held_out is not None
    assert course.metric == tuple(each.held_out.overall.metric for each in again.reports if each.held_out is not None)
    assert course.megabytes[-1] == pytest.approx(sum(each.bytes_up + each.bytes_down for each in again.reports) / 1e6)
    assert course.error_after[-1] < course.error_before[-1]


def test_what_is_over_is_never_run_again(compared: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in compared.rglob("*.json")}
    work(compared)
    assert {path: path.stat().st_mtime_ns for path in compared.rglob("*.json")} == before


def test_files_of_a_comparison_are_written_and_the_same_from_its_runs_folders(compared: Path, tmp_path: Path) -> None:
    comparison = gathered(compared, command="fedlora compare")
    assert (comparison.baseline, comparison.metric_name, len(comparison.runs)) == ("fedit", "accuracy", 4)
    write(comparison, tmp_path)
    assert CODEC.load((tmp_path / "comparison.json").read_text()).baseline == "fedit"
    assert "| fedit |" in (tmp_path / "comparison.md").read_text()
    assert "lora_fair" in (tmp_path / "report.html").read_text()
    other = gathered_from_runs([compared / run.folder for run in comparison.runs], command="fedlora compare A B")
    assert comparison.names_clients
    assert other.names_clients
    assert {(run.variant, run.draw): run.course.metric for run in other.runs} == {
        (run.variant, run.draw): run.course.metric for run in comparison.runs
    }
    shutil.copytree(compared / comparison.runs[0].folder, tmp_path / "twin")
    with pytest.raises(ConfigError, match="with the same seeds was given before"):
        gathered_from_runs([compared / comparison.runs[0].folder, tmp_path / "twin"], command="")


def test_a_run_that_was_cut_off_goes_on_and_one_that_others_do_is_left_to_them(
    compared: Path, base: RunConfig, tmp_path: Path
) -> None:
    grid = replace(GRID, methods=("fedit",))
    begin(tmp_path / "out", base, grid)
    first, second = final_cells(grid, {})

    class Cut(Exception):  # noqa: N818 (what happens)
        pass

    def cut(event: Event) -> None:
        if isinstance(event, RoundEnded) and event.report.round == 1:
            raise Cut

    config = first.config(base)
    (tmp_path / "out" / first.folder).parent.mkdir(parents=True)
    with pytest.raises(Cut):
        simulate_over(
            load_federated_data(config), config, out=tmp_path / "out" / first.folder, num_workers=1, listener=cut
        )
    lock = tmp_path / "out" / f"{second.folder}.lock"
    with open(lock, "wb") as file:
        hold(file)
        worker = threading.Thread(target=work, args=[tmp_path / "out"])
        worker.start()
        while result(tmp_path / "out", first) is None:
            time.sleep(0.05)
        time.sleep(1.5)
        assert result(tmp_path / "out", second) is None, "somebody else does it"
        assert worker.is_alive()
    worker.join(60)
    # As if nobody had been killed, and nobody had waited.
    mine, theirs = results(tmp_path / "out", grid), results(compared)
    assert {place: each.first_average for place, each in mine.items()} == {
        place: each.first_average for place, each in theirs.items() if place[0] == "fedit"
    }
    assert {place: each.course.metric for place, each in mine.items()} == {
        place: each.course.metric for place, each in theirs.items() if place[0] == "fedit"
    }


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_worker_that_is_told_to_end_does_so_in_the_middle_of_a_run_and_leaves_what_is_over(
    compared: Path, base: RunConfig, tmp_path: Path, number: signal.Signals
) -> None:
    grid = replace(GRID, methods=("fedit",), num_draws=1)
    long = base.model_copy(update={"federation": base.federation.model_copy(update={"rounds": 10_000})})
    begin(tmp_path / "long", long, grid)
    (cell,) = final_cells(grid, {})
    worker = subprocess.Popen(
        [sys.executable, "-m", "fedlora.comparison.work", str(tmp_path / "long")], stderr=subprocess.PIPE
    )
    try:
        while not (rounds := tmp_path / "long" / cell.folder / "rounds" / "0002").is_dir():
            assert worker.poll() is None
            time.sleep(0.05)
        worker.send_signal(number)
        _, said = worker.communicate(timeout=60)
    finally:
        worker.kill()
        worker.wait()
    assert (worker.returncode, said) == (128 + number, b"")
    latest = RunFolder(rounds.parents[1]).latest()
    assert latest is not None
    assert 1 <= latest.round < 10_000
    assert result(tmp_path / "long", cell) is None
    assert adapter_sha256(rounds.parents[1], 1) == adapter_sha256(compared / cell.folder, 1)


def test_references_are_of_all_data_of_each_alone_and_of_the_head(base: RunConfig, tmp_path: Path) -> None:
    grid = Grid(("fedit",), references=("centralised", "local_only", "head_only"), num_draws=1)
    cells = {cell.variant.name: cell for cell in final_cells(grid, {})}
    data = load_federated_data(cells["centralised"].config(base))
    everyone = pooled(data).clients[EVERYONE]
    assert len(everyone.training) == sum(len(held.training) for held in data.clients.values())
    assert len(everyone.validation) == sum(len(held.validation) for held in data.clients.values())
    found = {name: run_cell(cells[name], base, tmp_path) for name in grid.references}
    assert {each.fault for each in found.values()} == {""}
    assert all(len(each.course.metric) == 3 for each in found.values())
    assert list(found["centralised"].clients) == [EVERYONE]
    alone = found["local_only"]
    assert sorted(alone.clients) == sorted(data.clients)
    assert alone.course.megabytes[-1] == 0
    # On its own domain each is better than on all, and what nobody trains stays as it was drawn.
    head = RunFolder(tmp_path / cells["head_only"].folder).latest()
    assert head is not None
    assert head.reports[-1].aggregation is not None
    assert head.reports[-1].aggregation.error_before == 0
    from fedlora.adapters import unpack

    first, last = (
        unpack((tmp_path / cells["head_only"].folder / "rounds" / number / "adapter.safetensors").read_bytes())
        for number in ("0001", "0002")
    )
    assert all(not layer.B.any() for layer in last.layers.values())
    assert all((layer.A == first.layers[path].A).all() for path, layer in last.layers.items())
    assert any((tensor != first.dense[name]).any() for name, tensor in last.dense.items())


def test_a_run_that_cannot_be_is_named_and_the_others_go_on(base: RunConfig, tmp_path: Path) -> None:
    grid = Grid(("fedit",), {"data.path": ('"nowhere.npz"',)}, num_draws=1)
    (cell,) = final_cells(grid, {})
    assert "nowhere.npz: no such file" in run_cell(cell, base, tmp_path).fault


def test_clients_that_never_load_what_they_are_sent_are_found_out(compared: Path) -> None:
    found = results(compared)
    latest = RunFolder(compared / found["fedit", 0].folder).latest()
    assert latest is not None
    assert goes_its_own_way(latest.reports) == ""
    start, first, second = latest.reports
    alone = {name: replace(part, before=first.clients[name].after) for name, part in second.clients.items()}
    assert "go on from their own updates" in goes_its_own_way([start, first, replace(second, clients=alone)])

    variants, runs = GRID.variants(), list(found.values())
    assert alike(variants, runs) == {}
    same = [replace(run, second_losses=found["fedit", run.draw].second_losses) for run in runs]
    assert set(alike(variants, same)) == set(found)
    assert "started from different adapters, as with fedit" in alike(variants, same)["lora_fair", 0]
    same = [replace(run, first_average=found["fedit", run.draw].first_average) for run in runs]
    assert "ends in the same adapter" in alike(variants, same)["fedit", 1]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["inprocess", "ray"])
def test_every_method_federates_on_every_engine(base: RunConfig, tmp_path: Path, engine: str) -> None:
    grid = Grid(tuple(METHODS), num_draws=1)
    runs = []
    for cell in final_cells(grid, {}):
        path = tmp_path / cell.folder
        simulate(cell.config(base), out=path, engine=engine, num_workers=2)  # type: ignore[arg-type]
        runs.append(path)
    comparison = gathered_from_runs(runs, command="")
    assert {run.variant: run.fault for run in comparison.runs} == dict.fromkeys(METHODS, "")


def test_the_command_does_the_runs_and_says_what_they_show(
    base: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fedlora.common.run_file import to_toml

    (tmp_path / "run.toml").write_text(to_toml(base))
    monkeypatch.chdir(tmp_path)
    command = ["compare", "run.toml", "--methods", "fedit,flora", "--draws", "1", "--out", "out", "--workers", "1"]
    monkeypatch.setattr("sys.argv", ["fedlora", *command])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    printed = capsys.readouterr().out
    assert "2/2" in printed
    assert "report        out/report.html" in printed
    assert (tmp_path / "out" / "comparison.json").is_file()
    assert not list((tmp_path / "out").glob("*.log"))

    monkeypatch.setattr("sys.argv", ["fedlora", "compare", "run.toml", "--over", "lora.rank", "--out", "other"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert "--over is 'lora.rank'; expected section.key=VALUE,VALUE" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
