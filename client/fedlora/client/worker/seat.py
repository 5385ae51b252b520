"""The seat of a site's resident worker: one message at a time, and another worker where one has died."""

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedlora.client.worker.process import WorkerProcess, WorkerStarter
from fedlora.client.worker.resident import APP_DIED, INTERRUPT
from fedlora.common.flower_privates import assume_identity
from fedlora.common.messages import WORKER_DIED, Failure
from fedlora.common.records import message_type_of, reply_from_record, to_record

_NODE = 1


class WorkerSeat:
    """Holds one worker, which loads base model and data once in its lifetime."""

    def __init__(self, make_app: Callable[[], ClientApp], environment: Mapping[str, str]) -> None:
        """`make_app` is sent to the worker, so it must be picklable; so are the environment variables."""
        assume_identity()
        self._make_app = make_app
        self._environment = environment
        self._starter = WorkerStarter(("fedlora.client.worker.app", "fedlora.client.worker.files_mod"))
        self._worker: WorkerProcess | None = None
        self._context = Context(1, _NODE, {"partition-id": 0, "num-partitions": 1}, RecordDict(), {})
        self._lock = threading.Lock()
        self._is_closed = False

    def message(self, request: object) -> Message:
        """Return the message that carries a request to the worker's ClientApp."""
        return Message(to_record(request), _NODE, message_type_of(request))

    def ask(self, message: Message, expected: type) -> object:
        """Return the worker's receipt of type `expected`, or a Failure; takes as long as the work does."""
        with self._lock:
            if self._is_closed:
                return Failure(WORKER_DIED, "the worker was ended")
            if self._worker is None:
                self._worker = self._starter.start(self._make_app, self._environment)
            worker = self._worker
        try:
            worker.connection.send((message, self._context))
            reply, state = worker.connection.recv()
        except (EOFError, OSError):
            with self._lock:
                death = worker.death() if not self._is_closed else "as it was ended"
                self._worker = None
            return Failure(WORKER_DIED, f"the worker process died {death}")
        if reply.has_error():
            died = reply.error.code == APP_DIED
            return Failure(WORKER_DIED if died else "internal", reply.error.reason or "")
        self._context.state = state
        return reply_from_record(reply.content, expected, with_files=True, with_local=True)

    def interrupt(self) -> None:
        """Let the worker leave off what it trains: nobody waits for it."""
        with self._lock:
            if self._worker is not None:
                with suppress(OSError):
                    self._worker.connection.send(INTERRUPT)

    def close(self) -> None:
        """End the worker, in whatever it does."""
        with self._lock:
            self._is_closed = True
            if self._worker is not None:
                self._worker.process.kill()
