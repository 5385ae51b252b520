"""Flower's own runtime as the yardstick: a SuperLink and SuperNodes as processes, and runs sent to them.

Plain text on loopback, which costs less than TLS; its one poll that can be set, the SuperExec's, is at 0.1 s in place
of 1 s. The apps are files beside this one; only configuration travels in the bundle.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from event_log import Event, events_in
from started_processes import Started

_START_SECONDS, _RUN_SECONDS, _POLL_SECONDS = 120.0, 1_800.0, 0.5
_BIN = Path(sys.executable).parent
_APP = """
[project]
name = "idle"
version = "0.1.0"
description = "Clients that do nothing"
license = "Apache-2.0"
dependencies = ["flwr"]

[tool.flwr.app]
publisher = "fedlora"
fab-include = ["pyproject.toml"]

[tool.flwr.app.components]
serverapp = "idle_superlink_server:app"
clientapp = "idle_superlink_client:app"

[tool.flwr.app.config]
rounds = 0
num_sites = 0
num_arrays = 0
size_bytes = 0
events = ""
out = ""
"""


@dataclass(frozen=True)
class SuperLink:
    """A running SuperLink whose SuperNodes have been started."""

    folder: Path
    environment: Mapping[str, str]
    num_sites: int

    def run(self, name: str, **config: int) -> list[Event]:
        """Return the events of a run with this run config.

        Raises:
            RuntimeError: it failed, or an answer is missing.
        """
        events, out = self.folder / f"{name}.events", self.folder / name
        given: dict[str, object] = {"num_sites": self.num_sites, **config}
        words = [f"{key}={value}" for key, value in given.items()] + [f'events="{events}"', f'out="{out}"']
        number = self._flwr("run", str(self.folder / "app"), "here", "--run-config", " ".join(words))["run-id"]
        deadline = time.monotonic() + _RUN_SECONDS
        while time.monotonic() < deadline:
            (shown,) = self._flwr("list", "here", "--run-id", str(number))["runs"]  # type: ignore[misc]
            if shown["status"].startswith("finished"):
                break
            time.sleep(_POLL_SECONDS)
        found = events_in(events)
        ended = [event for event in found if event["event"] == "RoundEnded" and event["round"] > 0]
        if shown["status"] != "finished:completed" or {event["num_updates"] for event in ended} != {self.num_sites}:
            raise RuntimeError(f"{shown}: {found}\n{(self.folder / 'superlink.log').read_text()[-4_000:]}")
        return found

    def _flwr(self, *arguments: str) -> dict[str, object]:
        command = [str(_BIN / "flwr"), *arguments, "--format", "json"]
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, check=True)
        answer: dict[str, object] = json.loads(done.stdout)
        if not answer["success"]:
            raise RuntimeError(str(answer))
        return answer


def seconds_of_rounds(events: list[Event]) -> list[float]:
    """Return the seconds of each round from 1 on, from its RoundStarted to its RoundEnded."""
    starts = {event["round"]: event["at"] for event in events if event["event"] == "RoundStarted"}
    return [
        event["at"] - starts[event["round"]] for event in events if event["event"] == "RoundEnded" and event["round"]
    ]


@contextmanager
def superlink(folder: Path, adapter: Path, *, num_sites: int) -> Iterator[SuperLink]:
    """Yield a SuperLink with its SuperNodes; all of their processes end with the context."""
    port, home = _free_port(), folder / "flower"
    (folder / "app").mkdir(parents=True)
    (folder / "app" / "pyproject.toml").write_text(_APP)
    home.mkdir()
    (home / "config.toml").write_text(f'[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n')
    environment = {
        **os.environ,
        "PATH": f"{_BIN}{os.pathsep}{os.environ['PATH']}",  # Flower's processes call each other by name.
        "PYTHONPATH": str(Path(__file__).parent),
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
    }
    with ExitStack() as stack:
        command = [_BIN / "flower-superlink", "--port", port, "--insecure"]
        server = stack.enter_context(Started(command, folder / "superlink.log", environment=environment))
        server.wait_for("the SuperLink's port", lambda: _accepts(port), seconds=_START_SECONDS)
        for number in range(num_sites):
            command = [_BIN / "flower-supernode", "--superlink", f"127.0.0.1:{port}", "--port", _free_port()]
            command += ["--insecure", "--node-config", f'name="site-{number}" adapter="{adapter}"']
            stack.enter_context(Started(command, folder / f"node-{number}.log", environment=environment))
        yield SuperLink(folder, environment, num_sites)


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def _accepts(port: int) -> bool | None:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return None
