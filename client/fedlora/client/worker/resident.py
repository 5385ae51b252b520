"""The resident worker: a process that runs one ClientApp on each message its parent sends, for as long as both live.

A process of its own keeps the parent's connections alive while Python trains, and a crash of a
driver or of the memory limit away from it. It knows neither torch nor where the messages come from.
"""

import ctypes
import multiprocessing
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from fedlora.client.worker import interruption
from fedlora.client.worker.output import write_into

# Flower's codes for an error reply.
APP_RAISED = 2
APP_DIED = 8

# In place of a request: the one at work is wanted no more.
INTERRUPT = "interrupt"

# Of Linux's prctl: the signal that a process gets when the one it was forked from ends.
_SET_SIGNAL_AT_PARENTS_DEATH = 1

Request = tuple[Message, Context]
Answer = tuple[Message, RecordDict]


def serve(
    connection: Connection, output: Connection, make_app: Callable[[], ClientApp], environment: Mapping[str, str]
) -> None:
    """Answer each (message, context) from `connection` with (reply, the context's new state), until it closes.

    Standard output and error go into `output`. `environment` is set first, such as the CUDA_VISIBLE_DEVICES that gives
    each worker a GPU of its own.
    """
    with output:
        write_into(output.fileno())
    os.environ.update(environment)
    _allow_children()
    # Ctrl-C reaches the whole process group; the parent decides what becomes of the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests: queue.SimpleQueue[Request] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, requests), daemon=True).start()
    app = make_app()
    while True:
        message, context = requests.get()
        interruption.begin()
        reply = reply_of(app, message, context)
        connection.send((reply, context.state))


def reply_of(app: ClientApp, message: Message, context: Context) -> Message:
    """Return the ClientApp's reply; what it raises is Flower's error."""
    try:
        reply = app(message, context)
        if not isinstance(reply, Message):
            raise TypeError(f"the ClientApp returned {type(reply).__name__}; expected a Message")
    except Exception as error:
        return Message(Error(APP_RAISED, f"{type(error).__name__}: {error}"), reply_to=message)
    return reply


def _allow_children() -> None:
    """Let a script's data loader have processes of its own, which die with the worker, however that ends.

    Python lets a daemon have none. Its parent still holds this process for one, and ends it as one.
    """
    multiprocessing.current_process().daemon = False
    if sys.platform == "linux":
        # Forked from the worker itself, as a script's are elsewhere: from another process they take seconds, and
        # outlive the worker. A process that is killed cannot end those it has forked, and they hold its pipes open.
        multiprocessing.set_start_method("fork", force=True)
        prctl = ctypes.CDLL(None).prctl
        os.register_at_fork(after_in_child=lambda: prctl(_SET_SIGNAL_AT_PARENTS_DEATH, signal.SIGKILL))


def _receive(connection: Connection, requests: "queue.SimpleQueue[Request]") -> None:
    """Pass on what the parent sends. Where it is gone, even by SIGKILL and in mid-training, so is the worker."""
    try:
        while True:
            received = connection.recv()
            if received == INTERRUPT:
                interruption.interrupt()
            else:
                requests.put(received)
    except (EOFError, OSError):
        os._exit(0)
