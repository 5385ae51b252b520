"""Flower's Grid on one machine: resident worker processes that serve all nodes, without a server in between.

Flower's own simulation engine starts Ray. Here a message goes straight from the ServerApp into the
pipe of an idle worker, and no cost is paid per client or per round.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType
from typing import Any

from flwr.app import Error, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedlora.client.worker.process import WorkerProcess, WorkerStarter, is_starting_worker
from fedlora.client.worker.resident import APP_DIED
from fedlora.common.errors import RunError
from fedlora.common.flower_privates import assume_identity, give_id
from fedlora.server.sites.polled_grid import PolledGrid
from fedlora.simulation.virtual_nodes import node_contexts, server_context

_POLL_SECONDS = 0.2
_MAX_IDLE_DEATHS = 3


def run_in_process(
    make_client_app: Callable[[], ClientApp],
    make_server_app: Callable[[], ServerApp],
    *,
    num_nodes: int,
    num_workers: int | None,
    preload: Sequence[str] = ("fedlora.client.worker.app",),
) -> None:
    """Run a ServerApp to its end against `num_nodes` nodes served by `num_workers` processes.

    Args:
        make_client_app: called in each worker, so it must be picklable.
        make_server_app: called here once the workers are starting.
        num_workers: without it one for each core, or for each GPU where there are any; never more than nodes.
        preload: modules that are imported once for all workers.
    """
    environments = worker_environments(num_nodes, num_workers)
    with InProcessGrid(make_client_app, num_nodes=num_nodes, environments=environments, preload=preload) as grid:
        make_server_app()(grid, server_context())


def refuse_inside_a_starting_worker() -> None:
    """Raise RunError in a process that is importing its parent's main script, which would start everything again."""
    if is_starting_worker():
        raise RunError(
            "a simulation was started while its own workers were starting; "
            'put the call under: if __name__ == "__main__":'
        )


def worker_environments(num_nodes: int, num_workers: int | None) -> list[dict[str, str]]:
    """Return the environment variables of each worker: with GPUs, workers take them in turn."""
    gpus = _gpus()
    wanted = num_workers or len(gpus) or _num_cores()
    return [
        {"CUDA_VISIBLE_DEVICES": gpus[index % len(gpus)]} if gpus else {} for index in range(min(wanted, num_nodes))
    ]


def _num_cores() -> int:
    """Return the number of cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpus() -> list[str]:
    """Return the numbers of the CUDA devices this process may use."""
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        return []
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",") if given else [str(index) for index in range(torch.cuda.device_count())]


@dataclass(eq=False)
class _Worker:
    running: WorkerProcess
    message: Message | None = None


class InProcessGrid(PolledGrid):
    """A Grid whose nodes are served by resident worker processes, each message by whichever is idle.

    Node n has the `partition-id` n - 1, and works on one message at a time. A worker that dies in the middle of a
    message is replaced, and the message answered with Flower's error "the ClientApp died". Use it as a context
    manager: at its end the workers are gone.
    """

    def __init__(
        self,
        make_app: Callable[[], ClientApp],
        *,
        num_nodes: int,
        environments: Sequence[Mapping[str, str]],
        preload: Sequence[str] = (),
    ) -> None:
        """Begin to import `preload`, once for all workers; they start with the first messages.

        There is a worker for each of `environments`, its environment variables. `make_app` and what it holds are sent
        to each.
        """
        super().__init__()
        refuse_inside_a_starting_worker()
        self._starter = WorkerStarter(preload)
        self._make_app = make_app
        self._contexts = node_contexts(num_nodes)
        self._queue: deque[Message] = deque()
        self._replies: dict[str, Message] = {}
        self._num_messages = 0
        self._num_idle_deaths = 0
        self._give_identity_back = assume_identity()
        self._environments = list(environments)
        self._workers: list[_Worker] = []

    def __enter__(self) -> "InProcessGrid":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the workers and give back their pipes."""
        for worker in self._workers:
            worker.running.end()
        self._workers = []
        self._give_identity_back()

    def get_node_ids(self) -> Iterable[int]:
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        while len(self._workers) < len(self._environments):
            self._workers.append(self._start_worker(len(self._workers)))
        message_ids = []
        for message in messages:
            self._num_messages += 1
            give_id(message, str(self._num_messages))
            self._queue.append(message)
            message_ids.append(message.metadata.message_id)
        self._dispatch()
        return message_ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there; where none is, after a short wait for one."""
        wanted = list(message_ids)
        if not any(message_id in self._replies for message_id in wanted):
            self._collect(_POLL_SECONDS)
        return [self._replies.pop(message_id) for message_id in wanted if message_id in self._replies]

    def _start_worker(self, place: int) -> _Worker:
        name = f"worker {place + 1}" if len(self._environments) > 1 else "worker"
        return _Worker(self._starter.start(self._make_app, self._environments[place], name=name))

    def _dispatch(self) -> None:
        """Give each idle worker the first waiting message whose node has no message at work."""
        busy = {worker.message.metadata.dst_node_id for worker in self._workers if worker.message is not None}
        for worker in [worker for worker in self._workers if worker.message is None]:
            message = next((message for message in self._queue if message.metadata.dst_node_id not in busy), None)
            if message is None:
                return
            self._queue.remove(message)
            busy.add(message.metadata.dst_node_id)
            worker.message = message
            try:
                worker.running.connection.send((message, self._contexts[message.metadata.dst_node_id]))
            except OSError:
                self._replace(worker)

    def _collect(self, timeout_seconds: float) -> None:
        by_connection: dict[Any, _Worker] = {worker.running.connection: worker for worker in self._workers}
        for connection in wait(list(by_connection), timeout_seconds):
            worker = by_connection[connection]
            try:
                reply, state = worker.running.connection.recv()
            except (EOFError, OSError):
                self._replace(worker)
                continue
            if not reply.has_error():
                self._contexts[reply.metadata.src_node_id].state = state
            self._replies[reply.metadata.reply_to_message_id] = reply
            worker.message = None
            self._num_idle_deaths = 0
        self._dispatch()

    def _replace(self, worker: _Worker) -> None:
        """Start another process in the place of a dead one, and answer its message with an error."""
        death = worker.running.death()
        if worker.message is None:
            self._num_idle_deaths += 1
            if self._num_idle_deaths >= _MAX_IDLE_DEATHS:
                raise RunError(f"workers die as they start {death}")
        else:
            died = Error(APP_DIED, f"the worker process died {death}")
            reply = Message(died, reply_to=worker.message)
            self._replies[worker.message.metadata.message_id] = reply
        place = self._workers.index(worker)
        self._workers[place] = self._start_worker(place)
