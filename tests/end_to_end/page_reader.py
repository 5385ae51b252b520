"""A reader of the pages: types what stands there into a shell, in a folder of their own."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import psutil
from deployment import Process, free_port
from warm_start import run_warm

SECONDS = 600.0
# Commands that stay at work, and what they say once they are.
STAYING = {
    "fedlora server start": "listening on",
    "fedlora client join": "connected to",
    "fedlora dashboard": "http://",
    "fedlora adapters watch": "",
    "prometheus": "Server is ready to receive web requests",
    "flower-superlink": "Uvicorn running on",
    "flower-superexec": "Starting Flower SuperExec",
    "flower-supernode": "Starting Flower SuperNode",
}


@dataclass(eq=False)
class Staying(Process):
    """A command line of a shell that stays at work.

    Attributes:
        answer: what is typed once it asks.
    """

    answer: str = ""

    def start(self) -> None:
        with open(self.log, "ab") as log:
            shell = subprocess.Popen(
                ["bash", "-c", self.name],
                cwd=self.cwd,
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        assert shell.stdin is not None
        with shell.stdin:
            shell.stdin.write(self.answer.encode())
        self.popen = shell  # type: ignore[assignment]

    def kill(self) -> None:
        """End it, with all that it has started."""
        assert self.popen is not None
        with suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait(30)


class Reader:
    """Who types a page's commands.

    Attributes:
        folder: where they are typed.
        given: tiny models and data, by the names of their fixtures.
        instead: what is typed in place of a part of a command.
        address: of a server's port that is free here; sites go there as well.
        other_address: one more, for a page in a browser.
        printed: all that commands that ended have printed, by the command as it stands on the page.
        staying: those that stay at work, in their order.
        environment: what commands find around them: fedlora on the path, and no network.
        at_end: what is closed when the reader is.
    """

    def __init__(self, folder: Path, given: Mapping[str, Path], instead: Mapping[str, str]) -> None:
        self.folder, self.given = folder, given
        self.address, self.other_address = (f"127.0.0.1:{free_port()}" for _ in range(2))
        port = self.address.partition(":")[2]
        known = {"address": self.address, "other_address": self.other_address, "port": port, "folder": folder}
        ports = {"127.0.0.1:8470": self.address, "127.0.0.1:8471": self.other_address}
        self.instead = {former: latter.format(**known) for former, latter in {**ports, **instead}.items()}
        self.environment = _environment(folder.parent / "flower")
        self.at_end = ExitStack()
        self.printed: dict[str, str] = {}
        self.staying: list[Staying] = []
        self._token = ""

    def __enter__(self) -> "Reader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.at_end.close()
        for process in self.staying:
            process.kill()
        for left in psutil.process_iter():  # `flwr run` leaves a SuperLink behind.
            with suppress(psutil.Error):
                if left.environ().get("FLWR_HOME") == self.environment["FLWR_HOME"]:
                    left.kill()

    def typed(self, text: str) -> str:
        """Return what is typed where the page has this text."""
        for former, latter in self.instead.items():
            text = text.replace(former, latter)
        return text

    def type(self, command: str) -> None:
        """Type a command of a page, and wait until it has ended well, or is at work."""
        typed = self.typed(command)
        if command.startswith("export "):
            self.environment.update(word.split("=", 1) for word in shlex.split(typed)[1:])
            return
        for start, says in STAYING.items():
            if re.match(rf"(\w+=\S+ )*{start}\b", command):
                self.stay(typed, says)
                return
        done = self._run(typed)
        assert done.returncode == 0, f"{typed}\n{done.stdout}{done.stderr}"
        self.printed[command] = done.stdout
        if token := re.search(r"fl1-[A-Za-z0-9_-]+", done.stdout):
            self._token = token[0]

    def stay(self, typed: str, says: str) -> Staying:
        """Start what stays at work, and return it once it says so; who asks for a token gets the newest one."""
        log = self.folder.parent / f"{len(self.staying)}.log"
        process = Staying(typed, [], log, self.folder, self.environment)
        process.answer = f"{self._token}\n" if "--token -" in typed else ""
        self.staying.append(process)
        process.start()
        process.wait_for(says, SECONDS)
        return process

    def run_program(self, text: str) -> None:
        """Run a program of a page to its end."""
        path = self.folder / "program.py"
        path.write_text(text, encoding="utf-8")
        done = run_warm([str(path)], cwd=self.folder, timeout=SECONDS, environment=self.environment)
        assert done.returncode == 0, done.stdout + done.stderr
        self.printed["program"] = done.stdout

    def staying_at(self, start: str) -> Staying:
        """Return the last command that begins so and stays."""
        return next(process for process in reversed(self.staying) if process.name.startswith(start))

    def wait_until(self, is_so: Callable[[], object], what: str) -> None:
        """Wait until something is so.

        Raises:
            TimeoutError: it is not in time.
        """
        deadline = time.monotonic() + SECONDS
        while not is_so():
            if time.monotonic() > deadline:
                said = "\n".join(f"{process.name}\n{process.text[-2000:]}" for process in self.staying)
                raise TimeoutError(f"not in {SECONDS} s: {what}\n{said}")
            time.sleep(0.1)

    def _run(self, typed: str) -> "subprocess.CompletedProcess[str]":
        words = shlex.split(typed)
        if words[0] == "fedlora" and not {">", "|", "&&"} & {*words}:
            arguments = ["-m", "fedlora.cli", *words[1:]]
            return run_warm(arguments, cwd=self.folder, timeout=SECONDS, environment=self.environment)
        return subprocess.run(
            ["bash", "-c", typed],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )


def _environment(flower_home: Path) -> dict[str, str]:
    proxies = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
    return {
        **{name: value for name, value in os.environ.items() if name not in proxies},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(flower_home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_OFFLINE": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "NO_PROXY": "127.0.0.1,localhost",
    }
