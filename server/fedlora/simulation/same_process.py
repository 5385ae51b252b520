"""Flower's Grid without a second process: the caller serves every node itself, one message at a time.

For whoever does many runs one after another: what the process holds, such as torch and a base model, is there for each.
A client that brings the process down, by a driver's fault or for want of memory, brings the caller down with it.
"""

from collections.abc import Callable, Iterable

from flwr.app import Message
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedlora.client.worker.resident import reply_of
from fedlora.common.flower_privates import assume_identity, give_id
from fedlora.server.sites.polled_grid import PolledGrid
from fedlora.simulation.virtual_nodes import node_contexts, server_context


def run_in_same_process(
    make_client_app: Callable[[], ClientApp],
    make_server_app: Callable[[], ServerApp],
    *,
    num_nodes: int,
    num_workers: int | None = None,  # noqa: ARG001 (there is one)
) -> None:
    """Run a ServerApp to its end against `num_nodes` nodes, all served here, however many workers are asked for."""
    give_identity_back = assume_identity()
    try:
        make_server_app()(SameProcessGrid(make_client_app(), num_nodes=num_nodes), server_context())
    finally:
        give_identity_back()


class SameProcessGrid(PolledGrid):
    """A Grid that answers a message when its reply is asked for; node n has the `partition-id` n - 1."""

    def __init__(self, app: ClientApp, *, num_nodes: int) -> None:
        super().__init__()
        self._app = app
        self._contexts = node_contexts(num_nodes)
        self._waiting: dict[str, Message] = {}
        self._num_messages = 0

    def get_node_ids(self) -> Iterable[int]:
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        message_ids = []
        for message in messages:
            self._num_messages += 1
            give_id(message, str(self._num_messages))
            self._waiting[message.metadata.message_id] = message
            message_ids.append(message.metadata.message_id)
        return message_ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the reply to the first of these messages that has none yet."""
        wanted = set(message_ids)
        first = next((message_id for message_id in self._waiting if message_id in wanted), None)
        if first is None:
            return []
        message = self._waiting.pop(first)
        return [reply_of(self._app, message, self._contexts[message.metadata.dst_node_id])]
