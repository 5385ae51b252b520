"""What we need of Flower beyond its public names, seen in flwr 1.42: here alone, with a test for each."""

from collections.abc import Callable

from flwr.app import Message
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = ["Run", "assume_identity", "empty_run", "give_id"]


def give_id(message: Message, message_id: str) -> None:
    """Give a message its id, which Flower's SuperLink does otherwise."""
    message.metadata.__dict__["_message_id"] = message_id


def empty_run() -> Run:
    """Return the run that a Grid has to show."""
    return Run.create_empty(run_id=1)


def assume_identity() -> Callable[[], None]:
    """Let this process make messages, which Flower allows in a task of its own alone; return what undoes it."""
    before = TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 0, 1

    def undo() -> None:
        TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id = before

    return undo
