"""How a resident worker is started: forked from one process that has imported the heavy modules once."""

import multiprocessing
import multiprocessing.context
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from flwr.clientapp import ClientApp

from fedlora.client.worker import serve

_DEATH_SECONDS = 5.0


@dataclass(eq=False)
class WorkerProcess:
    """A worker, and our end of its pipe: (message, context) goes in, (reply, state) comes out."""

    process: BaseProcess
    connection: Connection
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
        return self.exit_code


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
            self._processes.set_forkserver_preload(list(preload))
            _ensure_forkserver()
        else:
            self._processes = multiprocessing.get_context("spawn")

    def start(self, make_app: Callable[[], ClientApp], environment: Mapping[str, str]) -> WorkerProcess:
        """Return a new worker over the app that `make_app` gives, with these environment variables."""
        ours, theirs = self._processes.Pipe()
        process = self._processes.Process(target=serve, args=(theirs, make_app, dict(environment)), daemon=True)
        process.start()
        theirs.close()
        return WorkerProcess(process, ours)


def _ensure_forkserver() -> None:
    """Start the process that workers are forked from; Ctrl-C, which reaches the whole group, is left to us."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
