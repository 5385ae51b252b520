"""Flower's own runtime as the door: `flwr run` at a SuperLink with two SuperNodes, all of them real processes."""

import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from fedlora.simulation import simulate

RunFile = Callable[..., Path]
Run = Callable[[str], dict[str, object]]

APP = Path(__file__).parents[2] / "deploy" / "flower"
BIN = Path(sys.executable).parent
GROUPS = ("chalk", "pencil")


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def accepts_connections(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and everything that it started."""
    with suppress(psutil.NoSuchProcess):
        started = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for child in started:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(started, timeout=10)
    process.wait(timeout=10)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",  # Flower's processes call each other by name.
        "FLWR_HOME": str(tmp_path / "flower"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        "NO_PROXY": "127.0.0.1",
    }


@pytest.fixture
def two_groups(tiny_digits: Path, tmp_path: Path) -> Path:
    """Return an archive of the pictures that the two sites have between them."""
    path = tmp_path / "two_groups.npz"
    with np.load(tiny_digits) as arrays:
        np.savez(path, **{name: arrays[name] for name in arrays.files if name.startswith(GROUPS)})
    return path


@pytest.fixture
def sites(tiny_digits: Path, tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{group}.toml" for group in GROUPS]
    for group, path in zip(GROUPS, paths, strict=True):
        path.write_text(
            f"""
            [site]
            name = "{group}"
            [data]
            path = "{tiny_digits}"
            only_group = "{group}"
            [worker]
            device = "cpu"
            """
        )
    return paths


@pytest.fixture
def flwr_run(environment: dict[str, str], sites: Sequence[Path], tmp_path: Path) -> Iterator[Run]:
    """Return a function that gives a run config to `flwr run` and returns the finished run as `flwr list` shows it."""
    port = free_port()
    home = Path(environment["FLWR_HOME"])
    home.mkdir()
    (home / "config.toml").write_text(f'[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n')

    def flwr(*arguments: str) -> dict[str, object]:
        command = [str(BIN / "flwr"), *arguments, "--format", "json"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=60, check=True)
        answer: dict[str, object] = json.loads(done.stdout)
        assert answer["success"], answer
        return answer

    def run(run_config: str) -> dict[str, object]:
        number = flwr("run", str(APP), "here", "--run-config", run_config)["run-id"]
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            shown = flwr("list", "here", "--run-id", str(number))["runs"][0]  # type: ignore[index]
            if shown["status"].startswith("finished"):
                return dict(shown)
            time.sleep(0.5)
        pytest.fail(f"the run did not end; see {tmp_path}/*.log")

    with started(["flower-superlink", "--port", str(port)], environment, tmp_path / "superlink.log"):
        deadline = time.monotonic() + 60
        while not accepts_connections(port):
            assert time.monotonic() < deadline, (tmp_path / "superlink.log").read_text()
            time.sleep(0.1)
        nodes = [
            ["flower-supernode", "--superlink", f"127.0.0.1:{port}", "--port", str(free_port()), "--node-config"]
            + [f'site="{site}"']
            for site in sites
        ]
        with (
            started(nodes[0], environment, tmp_path / "chalk.log"),
            started(nodes[1], environment, tmp_path / "pencil.log"),
        ):
            yield run


@contextmanager
def started(command: Sequence[str], environment: dict[str, str], log: Path) -> Iterator[None]:
    with open(log, "wb") as output:
        process = subprocess.Popen([*command, "--insecure"], env=environment, stdout=output, stderr=output)
        try:
            yield
        finally:
            end(process)


def adapter_sha256(folder: Path) -> str:
    return hashlib.sha256((folder / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


@pytest.mark.slow
def test_flwr_run_at_a_superlink_gives_the_adapter_of_the_simulation(
    run_file: RunFile, two_groups: Path, flwr_run: Run, tmp_path: Path
) -> None:
    run = run_file(f"data.path={two_groups}", 'data.labels=["0", "1", "2"]', "federation.sites=2")
    out = tmp_path / "over-superlink"

    missing = flwr_run(f'run="{tmp_path}/none.toml" out="{out}"')
    assert missing["status"] == "finished:failed"
    assert f"{tmp_path}/none.toml: no such file" in str(missing["status-details"])

    began = time.perf_counter()
    done = flwr_run(f'run="{run}" out="{out}"')
    seconds = time.perf_counter() - began
    assert done["status"] == "finished:completed", done

    reports = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    assert [sorted(report["clients"]) for report in reports] == [[], [*GROUPS], [*GROUPS]]
    assert sorted(reports[-1]["held_out"]["groups"]) == [*GROUPS]
    assert reports[-1]["held_out"]["is_complete"]
    assert (out / "report.html").is_file()
    told = (
        (out / "manifest.json").read_text() + (out / "sites.json").read_text() if (out / "sites.json").exists() else ""
    )
    assert str(tmp_path / "chalk.toml") not in told
    began = time.perf_counter()
    simulated = simulate(run, out=tmp_path / "simulated", num_workers=2).folder
    print(f"flwr run {seconds:.1f} s, simulation {time.perf_counter() - began:.1f} s")
    assert adapter_sha256(out) == adapter_sha256(simulated)
