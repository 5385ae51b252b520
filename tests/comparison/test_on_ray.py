"""A comparison whose runs are done by processes of Ray's."""

import os
import signal
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from fedlora.common.config import RunConfig
from fedlora.common.errors import ConfigError
from fedlora.comparison.cells import run_cell
from fedlora.comparison.grid import Grid, final_cells
from fedlora.comparison.running import Progress, run_all
from fedlora.comparison.work import begin, chosen, result, work_or_say_why
from fedlora.server.disk.store import RunFolder
from fedlora.simulation import ray_engine
from fedlora.simulation.ray_engine import require_reachable

MakeRun = Callable[..., RunConfig]

GRID = Grid(("fedit",), tuned={"train.learning_rate": ("0.01", "0.02")}, num_draws=2)


@pytest.mark.slow  # Two starts of Ray; another test of the default run has one.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning")
def test_a_run_on_ray_is_the_same_and_what_stops_it_is_said(vision_run: MakeRun, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    base = vision_run(federation={"rounds": 2}, evaluation={"client_examples": 4})
    begin(tmp_path / "out", base, GRID)
    heard: list[Progress] = []
    handler = signal.getsignal(signal.SIGTERM)
    run_all(tmp_path / "out", num_workers=1, listener=heard.append, engine="ray")
    assert [(progress.num_done, bool(progress.tried)) for progress in heard] == [(1, True), (2, True), (3, False)]
    assert (heard[-1].num_all, heard[-1].was_over) == (3, False)
    assert signal.getsignal(signal.SIGTERM) is handler
    cell = list(final_cells(GRID, chosen(tmp_path / "out", GRID)))[1]
    here = run_cell(cell, base, tmp_path / "here")
    there = result(tmp_path / "out", cell)
    assert there is not None
    assert (there.fault, there.course.metric, there.second_losses) == ("", here.course.metric, here.second_losses)
    digests = {
        report.adapter_sha256
        for folder in ("out", "here")
        if (latest := RunFolder(tmp_path / folder / cell.folder).latest()) is not None
        for report in latest.reports[-1:]
    }
    assert len(digests) == 1


def test_a_machine_that_does_not_see_the_folder_is_named(tmp_path: Path) -> None:
    said = work_or_say_why(tmp_path / "elsewhere", Path.cwd())
    assert f"{tmp_path / 'elsewhere'}: a worker of Ray's on {os.uname().nodename} sees no comparison there" in said
    assert "share" in said


@pytest.mark.parametrize("address", ["auto", "closed", "silent", "ray://silent"])
def test_a_cluster_that_is_not_there_is_named(
    vision_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    """Where nothing listens, and where what listens says nothing, which Ray would try again for minutes."""
    pytest.importorskip("ray")
    begin(tmp_path / "out", vision_run(), GRID)
    monkeypatch.setattr(ray_engine, "_REACH_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.create_server(("127.0.0.1", 0)) as closed:
        for name, server in (("silent", silent), ("closed", closed)):
            address = address.replace(name, f"127.0.0.1:{server.getsockname()[1]}")
        closed.close()
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(ConfigError, match=f"RAY_ADDRESS is '{address}', and no Ray answers there"):
            run_all(tmp_path / "out", num_workers=1, listener=print, engine="ray")


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_what_speaks_grpc_may_be_a_cluster(scheme: str) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        require_reachable(f"{scheme}127.0.0.1:{port}")
    finally:
        server.stop(0)
