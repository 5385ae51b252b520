"""ClientApps for test_inprocess.py, in a module of their own because the workers unpickle them by name.

A TrainRequest's `run` says what is to happen, with a path where that needs one.
"""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any, cast

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedlora.common.messages import TrainReceipt, TrainRequest
from fedlora.common.records import adapter_in, carried, to_record

DEADLINE_SECONDS = 120.0


def make_obedient_app() -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        began = time.monotonic()
        # Unread: no run has such a name.
        asked: Any = carried(message.content)
        request = TrainRequest(asked.run, asked.round, asked.attempt, 0, 1, 0, cast(bytes, adapter_in(message.content)))
        count = _count(context)
        what, _, where = request.run.partition(" ")
        adapter = _obey(what, Path(where), request)
        receipt = TrainReceipt(
            run=request.run,
            round=request.round,
            attempt=request.attempt,
            client=f"client {context.node_id}",
            status="ok",
            num_steps=count,
            loss=float(os.getpid()),
            seconds={
                "forward": began,
                "backward": time.monotonic(),
                "optimizer": float(os.environ.get("THE_THREAD", "-1")),
            },
            adapter=adapter,
        )
        return None if what == "forget" else Message(to_record(receipt), reply_to=message)  # type: ignore[return-value]

    return app


def _count(context: Context) -> int:
    """Return for the how many-th time this node works, which it notes in its state."""
    number = int(context.state.config_records.get("count", ConfigRecord({"number": 0}))["number"]) + 1  # type: ignore[arg-type]
    context.state["count"] = ConfigRecord({"number": number})
    return number


def _obey(what: str, path: Path, request: TrainRequest) -> bytes:
    if what == "raise":
        raise ValueError("as was asked")
    if what == "leave":
        raise SystemExit(3)
    if what == "exit":
        os._exit(4)
    if what == "exit-at-first" and request.attempt < 2:
        os._exit(5)
    if what == "meet":
        _wait_for(path, mark=str(request.round), num_marks=2)
    if what == "wait":
        _wait_for(path, num_marks=1)
    if what == "loop" and request.attempt == 0:
        (path / str(os.getpid())).touch()
        while True:
            pass
    if what == "die-while-answering" and request.attempt == 0:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return bytes(30_000_000)
    return request.adapter


def _wait_for(folder: Path, *, num_marks: int, mark: str | None = None) -> None:
    if mark is not None:
        (folder / mark).touch()
    deadline = time.monotonic() + DEADLINE_SECONDS
    while len(list(folder.iterdir())) < num_marks:
        if time.monotonic() > deadline:
            raise TimeoutError("nobody came")
        time.sleep(0.01)


def make_averaging_app() -> ClientApp:
    """Return an app as Flower's own strategies expect one: it adds its partition's number to every array."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        moved = [array + int(context.node_config["partition-id"]) for array in _arrays(message).to_numpy_ndarrays()]
        content = RecordDict({"arrays": ArrayRecord(moved), "metrics": MetricRecord({"num-examples": 10, "loss": 0.5})})
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, _context: Context) -> Message:
        level = float(_arrays(message).to_numpy_ndarrays()[0].mean())
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 10, "level": level})}), reply_to=message)

    return app


def _arrays(message: Message) -> ArrayRecord:
    return message.content.array_records["arrays"]


def make_nothing() -> ClientApp:
    raise ValueError("there is no app")
