"""How a resident worker is started: forked from one process that has imported the heavy modules once."""

import contextlib
import functools
import multiprocessing
import multiprocessing.context
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from flwr.clientapp import ClientApp

from fedlora.client.worker.output import WorkerOutput
from fedlora.client.worker.resident import serve
from fedlora.common.withheld_interrupts import interrupts_withheld

_DEATH_SECONDS = 5.0
_FIRST = "fedlora.client.worker.preload"
_LAST = "fedlora.client.worker.preloaded"
_OUTPUT_VARIABLE = "FEDLORA_FORKSERVER_OUTPUT"  # read by that module


@dataclass(eq=False)
class WorkerProcess:
    """A worker, our end of its pipe, and what it writes beside that.

    (message, context) goes into the pipe, (reply, state) comes out.

    Attributes:
        num_lines_before: that the process it was forked from had written at its start.
    """

    process: BaseProcess
    connection: Connection
    output: WorkerOutput
    num_lines_before: int
    exit_code: int | None = None

    def end(self, *, is_dying: bool = False) -> int | None:
        """End the worker and return its exit code; one whose pipe broke is given time to die by itself."""
        if self.exit_code is None:
            self.connection.close()
            if is_dying:
                self.process.join(_DEATH_SECONDS)
            self.process.kill()
            self.process.join()
            self.exit_code = self.process.exitcode
            self.process.close()
            self.output.finish()
        return self.exit_code

    def death(self) -> str:
        """End a worker whose pipe broke, and return how it died, with what it or its start said last."""
        code = self.end(is_dying=True)
        # Until its app is there, a worker speaks with the voice of the process it was forked from.
        last_words = self.output.last_words() or _forkserver_output()[0].last_words_since(self.num_lines_before)
        return f"(exit code {code}){f'; it said last: {last_words}' if last_words else ''}"


class WorkerStarter:
    """Starts workers."""

    def __init__(self, preload: Sequence[str]) -> None:
        """Begin to import `preload`, once for all workers."""
        methods = multiprocessing.get_all_start_methods()
        self._processes: multiprocessing.context.ForkServerContext | multiprocessing.context.SpawnContext
        if "forkserver" in methods:
            # One process imports torch and transformers, and every worker, also a replaced one, is forked from it.
            # A worker's start waits for these imports; the caller has its own to do meanwhile.
            self._processes = multiprocessing.get_context("forkserver")
            self._processes.set_forkserver_preload([_FIRST, *preload, _LAST])
            _ensure_forkserver()
        else:
            self._processes = multiprocessing.get_context("spawn")

    def start(
        self, make_app: Callable[[], ClientApp], environment: Mapping[str, str], *, name: str = "worker"
    ) -> WorkerProcess:
        """Return a new worker over the app that `make_app` gives, with these environment variables.

        `name` is how the log calls it.
        """
        ours, theirs = self._processes.Pipe()
        written, output = self._processes.Pipe(duplex=False)
        num_lines_before = _forkserver_output()[0].num_lines
        with theirs, output, contextlib.ExitStack() as undo:
            undo.callback(ours.close)
            undo.callback(written.close)
            process = self._processes.Process(
                target=serve, args=(theirs, output, make_app, dict(environment)), daemon=True
            )
            process.start()
            undo.pop_all()
        return WorkerProcess(process, ours, WorkerOutput(name, written), num_lines_before)


def is_starting_worker() -> bool:
    """Return whether this is a worker that imports its parent's main script, which must start nothing meanwhile."""
    # Python itself looks at this attribute for the same purpose.
    return bool(getattr(multiprocessing.current_process(), "_inheriting", False))


def _ensure_forkserver() -> None:
    """Start the process that workers are forked from; Ctrl-C is left to us."""
    # An own thread may write to the terminal at this very moment, so that its descriptors cannot be lent; and Python
    # passes on no others. Without /proc, what little the process says goes to the terminal.
    os.environ[_OUTPUT_VARIABLE] = _forkserver_output()[1]
    try:
        with interrupts_withheld():
            forkserver.ensure_running()
    finally:
        del os.environ[_OUTPUT_VARIABLE]


@functools.cache
def _forkserver_output() -> tuple[WorkerOutput, str]:
    """Return what the process writes that workers are forked from, and by which path it finds the pipe for it.

    There is one such process for all workers, and it may be started again; so the pipe stays open.
    """
    ours, theirs = multiprocessing.Pipe(duplex=False)
    return WorkerOutput("workers", ours), f"/proc/{os.getpid()}/fd/{os.dup(theirs.fileno())}"
