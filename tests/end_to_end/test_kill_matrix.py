"""Kill anything, lose nothing: each process at each of its phases, and the run ends in the same adapter, bit for bit.

The trainer is the real one, on a tiny model with dropout and client momentum on: three rounds, full participation, no
deadline, float32 on the wire. All cells are marked slow but two.
"""

import json
import os
import re
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from deployment import Deployment, Process
from ended_runs import adapter_sha256
from small_run import write_run_file

from fedlora.server.disk.account import process_records
from fedlora.server.disk.status_file import read_status
from fedlora.simulation import simulate

SITES = ("chalk", "pencil")
SECONDS = 900.0

# Who dies, at which of its phases, the how-manieth time it comes there.
CELLS = [
    ("server", "send", 3),
    ("server", "collect", 4),
    ("server", "accept", 2),
    ("server", "aggregate", 2),
    ("server", "write checkpoint", 2),
    ("server", "publish", 2),
    ("pencil", "download", 2),
    ("pencil", "train", 2),
    ("pencil", "write", 2),
    ("pencil", "upload at half", 2),
    ("pencil", "before the acknowledgement", 4),
    ("worker", "train", 2),
]
IN_EVERY_RUN = {
    ("server", "write checkpoint"),
    ("pencil", "upload at half"),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_vision_model: Path, tiny_digits: Path) -> Path:
    """Return a folder with a run file, two site files, and the same two clients' data as one file."""
    folder = tmp_path_factory.mktemp("kill")
    overrides = [
        "run.name=killed",
        "train.client_momentum=0.5",
        "federation.rounds=3",
        "federation.sites=2",
        "federation.quorum=1.0",
        "exchange.precision=float32",
        'data.labels=["0","1","2"]',
    ]
    write_run_file(folder, tiny_vision_model, _two_domains(folder, tiny_digits), *overrides)
    for name in SITES:
        (folder / f"{name}.toml").write_text(
            f'[site]\nname = "{name}"\n[data]\npath = "{folder / "two.npz"}"\nonly_group = "{name}"\n'
            f'[limits]\nbase_models = ["{tiny_vision_model}"]\nleast_examples = 10\n'
        )
    return folder


def _two_domains(folder: Path, digits: Path) -> Path:
    with np.load(digits) as archive:
        chosen = {key: archive[key] for key in archive.files if key.startswith(SITES)}
    np.savez_compressed(folder / "two.npz", **chosen)
    return folder / "two.npz"


@pytest.fixture(scope="module")
def uninterrupted(base: Path) -> str:
    """Return the sha256 of the adapter that the simulation ends in, as a deployment does in which nobody dies."""
    return adapter_sha256(simulate(base / "run.toml", out=base / "simulated", num_workers=2).folder)


@pytest.mark.parametrize(
    ("who", "phase", "time_of_death"),
    [
        pytest.param(*cell, marks=() if cell[:2] in IN_EVERY_RUN else pytest.mark.slow, id=f"{cell[0]}-{cell[1]}")
        for cell in CELLS
    ],
)
def test_a_run_in_which_one_process_is_killed_ends_in_the_same_adapter(
    base: Path, tmp_path: Path, uninterrupted: str, who: str, phase: str, time_of_death: int
) -> None:
    deaths: list[float] = []
    states: list[object] = []
    counts: Counter[tuple[str, str]] = Counter()

    def at_phase(process: Process, announced: str) -> None:
        counts[process.name, announced] += 1
        victim = "pencil" if who == "worker" else who
        if deaths or (process.name, announced) != (victim, phase) or counts[victim, phase] != time_of_death:
            return
        deaths.append(time.monotonic())
        if who == "worker":
            (worker,) = process.workers()
            os.kill(worker.pid, signal.SIGKILL)
            return
        process.kill()
        if who == "server":
            states.append(read_status(deployment.out)["state"])
        process.start()

    # Each of its own state: the site files lie beside the sites' folders.
    for name in ("run.toml", *(f"{site}.toml" for site in SITES)):
        (tmp_path / name).write_text((base / name).read_text())
    with Deployment(tmp_path, tmp_path / "run.toml") as deployment:
        deployment.server.at_phase = at_phase
        deployment.server.start()
        deployment.server.wait_for("listening on")
        for name in SITES:
            site = deployment.add_site(name, tmp_path / f"{name}.toml", token=deployment.invite(name))
            site.at_phase = at_phase
            site.start()
            site.wait_for("enrolled as")
            site.arguments = [part for part in site.arguments if not part.startswith("fl1-") and part != "--token"]
        assert exit_code(deployment.server) == 0, deployment.server.text
        assert deaths, f"{who} never came to {phase!r}: {dict(counts)}"
        assert adapter_sha256(deployment.out) == uninterrupted
        assert_nothing_was_done_twice(deployment, who)
        assert states == (["killed"] if who == "server" else [])
        assert read_status(deployment.out)["state"] == "finished"
        assert len(process_records(deployment.out)) == 1 + len(states)


def exit_code(server: Process) -> int:
    """Return the exit code of a server that may be killed and started again meanwhile."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        process = server.popen
        assert process is not None
        code = process.wait(SECONDS)
        if process is server.popen and code != -signal.SIGKILL:
            return code
        time.sleep(0.05)
    raise TimeoutError(server.text)


def assert_nothing_was_done_twice(deployment: Deployment, who: str) -> None:
    """Assert that each update was accepted once, and that no finished training was done again."""
    reports = [json.loads(line) for line in (deployment.out / "rounds.jsonl").read_text().splitlines()]
    assert [sorted(report["clients"]) for report in reports[1:]] == [sorted(SITES)] * 3
    for name, site in deployment.sites.items():
        trained = Counter(re.findall(r"round (\d+): trained", site.text))
        assert set(trained) == {"1", "2", "3"}
        again = {number for number, times in trained.items() if times > 1}
        # A client that dies between the worker's answer and its own disk has lost that training, and no other.
        assert not again or (name == who == "pencil"), f"{name} trained again: {trained}"
