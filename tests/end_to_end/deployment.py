"""A server and its sites as processes of their own, started, watched, killed and started again by tests.

Each process announces its phases on a pipe and waits there for leave (fedlora.common.phases); a test may use such a
moment to kill it, or another one. Nothing but loopback.
"""

import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import psutil
from warm_start import WarmProcess, run_warm, start_warm

_POLL_SECONDS = 0.05


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that nobody listens on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


@dataclass(eq=False)
class Process:
    """One process of the command, and what it has said.

    Attributes:
        name: "server", or a site's.
        phases: those it has announced, since its first start.
        at_phase: called at each announced phase with the process and the phase, before it may go on.
        program: what Python runs: a module or a script.
    """

    name: str
    arguments: Sequence[str]
    log: Path
    cwd: Path
    environment: dict[str, str] = field(default_factory=dict)
    at_phase: Callable[["Process", str], None] | None = None
    phases: list[str] = field(default_factory=list)
    popen: WarmProcess | None = None
    program: Sequence[str] = ("-m", "fedlora.cli")
    _watcher: threading.Thread | None = None

    def start(self) -> None:
        """Start it, or start it again with the same command."""
        environment = {**os.environ, **self.environment}
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            if name not in self.environment:
                environment.pop(name, None)
        descriptors: tuple[int, ...] = ()
        if self.at_phase is not None:
            said, say = os.pipe()
            hear, leave = os.pipe()
            environment["FEDLORA_PHASES"] = f"{say},{hear}"
            descriptors = (say, hear)
        with open(self.log, "ab") as log:
            self.popen = start_warm(
                [*self.program, *self.arguments],
                cwd=self.cwd,
                output=log.fileno(),
                environment=environment,
                pass_fds=descriptors,
            )
        if self.at_phase is not None:
            os.close(say)
            os.close(hear)
            self._watcher = threading.Thread(target=self._watch, args=(said, leave), daemon=True)
            self._watcher.start()

    def kill(self) -> None:
        """Send it SIGKILL, and wait for its end; its workers end by themselves."""
        if self.popen is not None:
            with suppress(ProcessLookupError):
                self.popen.kill()
            self.popen.wait(30)

    def stop(self) -> int:
        """Send it SIGTERM, and return its exit code."""
        assert self.popen is not None
        self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(60)

    def wait(self, seconds: float) -> int:
        """Return its exit code when it has ended by itself."""
        assert self.popen is not None
        return self.popen.wait(seconds)

    def workers(self) -> list[psutil.Process]:
        """Return the resident workers below it: the processes that the forkserver has forked."""
        assert self.popen is not None
        children = psutil.Process(self.popen.pid).children()
        return [worker for child in children for worker in child.children()]

    @property
    def text(self) -> str:
        """All it has printed so far."""
        return self.log.read_text() if self.log.exists() else ""

    def wait_for(self, pattern: str, seconds: float = 60.0) -> "re.Match[str]":
        """Return the first match of `pattern` in what it prints.

        Raises:
            TimeoutError: there is none in time, or it has ended without.
        """
        deadline = time.monotonic() + seconds
        while (found := re.search(pattern, self.text)) is None:
            has_ended = self.popen is not None and self.popen.poll() is not None
            if has_ended and re.search(pattern, self.text) is None:
                raise TimeoutError(f"{self.name} ended without {pattern!r}:\n{self.text[-3000:]}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.name} did not print {pattern!r}:\n{self.text[-3000:]}")
            time.sleep(_POLL_SECONDS)
        return found

    def _watch(self, said: int, leave: int) -> None:
        assert self.at_phase is not None
        with open(said) as lines, open(leave, "wb", buffering=0) as answer:
            for line in lines:
                phase = line.strip()
                self.phases.append(phase)
                self.at_phase(self, phase)
                with suppress(OSError):
                    answer.write(b"\n")


class Deployment:
    """A server and sites over one run file, in one folder."""

    def __init__(self, folder: Path, run: Path, *, is_insecure: bool = False, host: str = "127.0.0.1") -> None:
        self.folder = folder
        self.out = folder / "server"
        self.is_insecure = is_insecure
        self.port = free_port(host)
        self.address = f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"
        insecure = ["--insecure"] if is_insecure else []
        arguments = ["server", "start", str(run), "--out", str(self.out), "--listen", self.address, *insecure]
        self.server = Process("server", arguments, folder / "server.log", folder)
        self.sites: dict[str, Process] = {}

    def __enter__(self) -> "Deployment":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for process in (self.server, *self.sites.values()):
            process.at_phase = lambda _process, _phase: None
            process.kill()

    def command(self, *arguments: str, timeout: float = 300) -> "subprocess.CompletedProcess[str]":
        """Run the command to its end."""
        return run_warm(["-m", "fedlora.cli", *arguments], cwd=self.folder, timeout=timeout)

    def invite(self, name: str) -> str:
        """Return the token of a new invitation."""
        invited = self.command("sites", "invite", name, "--out", str(self.out), "--address", self.address)
        assert invited.returncode == 0, invited.stderr
        found = re.search(r"fl1-[A-Za-z0-9_-]+", invited.stdout)
        assert found, invited.stdout
        return found[0]

    def add_site(self, name: str, site_file: Path, *, address: str | None = None, token: str | None = None) -> Process:
        """Return a site's process, which is not started yet; `address` where it reaches the server some other way."""
        arguments = ["client", "join", address or self.address, "--site", str(site_file)]
        if self.is_insecure:
            arguments.append("--insecure")
        elif token is not None:
            arguments += ["--token", token]
        self.sites[name] = Process(name, arguments, self.folder / f"{name}.log", self.folder)
        return self.sites[name]

    def enrol(self, name: str, site_file: Path) -> Process:
        """Start a site with a new invitation, and return its process; started again it needs no token."""
        token = None if self.is_insecure else self.invite(name)
        process = self.add_site(name, site_file, token=token)
        process.start()
        if token is not None:
            process.wait_for("enrolled as")
            process.arguments = list(process.arguments)[: list(process.arguments).index("--token")]
        return process


@contextmanager
def deployed(
    folder: Path, run: Path, site_files: dict[str, Path], *, is_insecure: bool = False
) -> Iterator[Deployment]:
    """Yield a deployment whose server and sites are running."""
    with Deployment(folder, run, is_insecure=is_insecure) as deployment:
        deployment.server.start()
        deployment.server.wait_for("listening on")
        for name, site_file in site_files.items():
            deployment.enrol(name, site_file)
        yield deployment
