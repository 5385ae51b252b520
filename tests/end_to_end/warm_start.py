"""Processes that start at once: forked from one process that has imported the heavy modules.

    process = start_warm(["-m", "fedlora.cli", "plan", "run.toml"], cwd=folder, output=log)

A fresh interpreter takes ten seconds of a core to import torch, Flower, transformers and PEFT, and once more for the
process that its workers are forked from; a run of one server and two sites has six of these. Here both are forked with
the modules in them, and end without taking these apart; everything else is as it would be: each is a process of its
own, with its own session, environment, descriptors and fate. Tests of what is imported when, or of libraries'
environment variables, start cold.
"""

import atexit
import fcntl
import gc
import json
import multiprocessing.util
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import NoReturn

_IMPORTED = (
    "fedlora.client.worker.app",
    "fedlora.client.worker.files_mod",
    "fedlora.client.site.participation",
    "fedlora.simulation",
    "fedlora.simulation.inprocess",
    "fedlora.server.deployment",
    "fedlora.server.run_report",
    "fedlora.finished.peft_check",
    "matplotlib.backends.backend_svg",
    "peft",
    "rich.live",
    "transformers",
    "transformers.models.vit.modeling_vit",
)
# What a process must run itself that workers are forked from.
_RUN_AGAIN = ("fedlora.client.worker.preload", "fedlora.client.worker.preloaded")
_HIGH = 500
_MESSAGE = 2**17


class WarmProcess:
    """A process that was forked from the one below, as `subprocess.Popen` would have it."""

    def __init__(self, pid: int, exits: int) -> None:
        """`exits` is a pipe from which its exit code comes."""
        self.pid = pid
        self.returncode: int | None = None
        self._exits = exits
        weakref.finalize(self, os.close, exits)
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """Return its exit code, or None while it runs."""
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit code when it has ended."""
        code = self._look(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send it SIGKILL, if it runs."""
        self.send_signal(signal.SIGKILL)

    def _look(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._exits], [], [], timeout)[0]:
            with self._lock:  # Two threads may have waited for it.
                if self.returncode is None:
                    self.returncode = int(os.read(self._exits, 32))
        return self.returncode


def start_warm(
    arguments: Sequence[str],
    *,
    cwd: Path,
    output: int | None = None,
    errors: int | None = None,
    environment: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> WarmProcess:
    """Start `python ARGUMENTS`, a module or a script, in a session of its own.

    Args:
        output, errors: descriptors of standard output and error; without `errors` both go to `output`.
    """
    with open(os.devnull, "wb") as nowhere:
        out = nowhere.fileno() if output is None else output
        received, told = os.pipe()
        request = {
            "arguments": list(arguments),
            "cwd": str(cwd),
            "environment": dict(os.environ if environment is None else environment),
            "numbers": list(pass_fds),
        }
        _, parent = _parent()
        standard = [out, out if errors is None else errors]
        socket.send_fds(parent, [json.dumps(request).encode()], [*standard, told, *pass_fds])
    os.close(told)
    return WarmProcess(int(parent.recv(32)), received)


def run_warm(
    arguments: Sequence[str], *, cwd: Path, timeout: float = 600.0, environment: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run `python ARGUMENTS` to its end, as `subprocess.run` would that captures what it prints as text."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = start_warm(arguments, cwd=cwd, output=out.fileno(), errors=errors.fileno(), environment=environment)
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
        out.seek(0)
        errors.seek(0)
        return subprocess.CompletedProcess(list(arguments), code, out.read(), errors.read())


@cache
def _parent() -> "tuple[subprocess.Popen[bytes], socket.socket]":
    """Return the process that all are forked from, and the connection to it, with which it ends."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            env=os.environ | {"GRPC_VERBOSITY": "NONE"},
            start_new_session=True,
        )
    return process, ours


def _serve(control: socket.socket) -> Callable[[], None] | None:
    """Fork a process for each request; returns in each of these, with what it has to do, and None at the end."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    signal.set_wakeup_fd(wake)
    exits: dict[int, int] = {}
    while True:
        ready = select.select([control, woken], [], [])[0]
        if woken in ready:
            os.read(woken, 1024)
            _tell_of_the_dead(exits)
        if control not in ready:
            continue
        message, descriptors, _, _ = socket.recv_fds(control, _MESSAGE, 16)
        if not message:
            return None
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for descriptor in (control.detach(), woken, wake, *exits.values(), descriptors[2]):
                os.close(descriptor)
            return _become(json.loads(message), descriptors)
        exits[pid] = descriptors[2]
        for descriptor in (*descriptors[:2], *descriptors[3:]):
            os.close(descriptor)
        control.send(str(pid).encode())


def _tell_of_the_dead(exits: dict[int, int]) -> None:
    with suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            told = exits.pop(found[0])
            with suppress(BrokenPipeError):
                os.write(told, str(os.waitstatus_to_exitcode(found[1])).encode())
            os.close(told)


def _become(request: dict[str, object], descriptors: list[int]) -> Callable[[], None]:
    """Make this process what was asked for, and return what it has to run."""
    output, errors, _, *passed = descriptors
    numbers: list[int] = request["numbers"]  # type: ignore[assignment]
    _move({0: os.open(os.devnull, os.O_RDONLY), 1: output, 2: errors, **dict(zip(numbers, passed, strict=True))})
    os.setsid()
    os.chdir(str(request["cwd"]))
    os.environ.clear()
    os.environ.update(request["environment"])  # type: ignore[call-overload]
    _keep_a_spare(numbers)
    arguments: list[str] = request["arguments"]  # type: ignore[assignment]
    sys.path[0] = os.getcwd()
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        return lambda: void(runpy.run_module(arguments[1], run_name="__main__", alter_sys=True))
    sys.argv, sys.path[0] = list(arguments), str(Path(arguments[0]).parent)
    return lambda: void(runpy.run_path(arguments[0], run_name="__main__"))


def void(_value: object) -> None:
    """Return nothing."""


def _move(wanted: Mapping[int, int]) -> None:
    """Give descriptors the numbers wanted, as keys."""
    high = {number: fcntl.fcntl(descriptor, fcntl.F_DUPFD, _HIGH) for number, descriptor in wanted.items()}
    for descriptor in set(wanted.values()) - {0, 1, 2}:
        os.close(descriptor)
    for number, descriptor in high.items():
        os.dup2(descriptor, number)
        os.close(descriptor)


def _keep_a_spare(numbers: Sequence[int]) -> None:
    """Fork a process that becomes the first which multiprocessing starts: the one that workers are forked from."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    spare = os.fork()
    if spare == 0:
        ours.close()
        for number in numbers:
            os.close(number)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _wait_as_a_spare(theirs)
    theirs.close()
    start_cold = multiprocessing.util.spawnv_passfds

    def start(path: bytes, args: Sequence[str], passfds: Sequence[int]) -> int:
        arguments = list(args[1:])
        if ours.fileno() == -1 or "resource_tracker" in " ".join(arguments):
            return int(start_cold(path, args, passfds))
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        request = {
            "arguments": arguments,
            "numbers": list(passfds),
            "environment": dict(os.environ),
            "blocked": list(blocked),
        }
        socket.send_fds(ours, [json.dumps(request).encode()], list(passfds))
        ours.close()
        return spare

    multiprocessing.util.spawnv_passfds = start


def _wait_as_a_spare(asked: socket.socket) -> None:
    message, descriptors, _, _ = socket.recv_fds(asked, _MESSAGE, 64)
    if not message:
        os._exit(0)
    asked.close()
    request = json.loads(message)
    _move(dict(zip(request["numbers"], descriptors, strict=True)))
    os.environ.clear()
    os.environ.update(request["environment"])
    signal.pthread_sigmask(signal.SIG_SETMASK, request["blocked"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in _RUN_AGAIN:
        sys.modules.pop(name, None)
    arguments = request["arguments"]
    sys.argv = arguments[arguments.index("-c") :]
    code = sys.argv.pop(1)
    try:
        exec(code, {"__name__": "__main__"})
    except SystemExit as ended:
        os._exit(ended.code if isinstance(ended.code, int) else 0)
    os._exit(0)


def main() -> None:
    from fedlora.models.bitsandbytes_door import spare_bitsandbytes

    spare_bitsandbytes()
    gc.disable()
    for name in _IMPORTED:
        import_module(name)
    # Else the first collection in each process copies all that is shared.
    gc.freeze()
    gc.enable()
    run = _serve(socket.socket(fileno=int(sys.argv[1])))
    if run is not None:
        _run_to_the_end(run)


def _run_to_the_end(run: Callable[[], None]) -> NoReturn:
    """Run what a process is for, and end it as the interpreter does, but for taking every module apart.

    Of modules that are shared with other processes that takes seconds.
    """
    code = 0
    try:
        run()
    except SystemExit as ended:
        code = _status_of(ended)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)


def _status_of(ended: SystemExit) -> int:
    if ended.code is None or isinstance(ended.code, int):
        return (ended.code or 0) & 0xFF
    print(ended.code, file=sys.stderr)
    return 1


if __name__ == "__main__":
    main()
