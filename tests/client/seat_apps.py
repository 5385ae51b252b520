"""A ClientApp for tests of a site, in a module of its own because the worker unpickles its maker by name.

It notes each training in the folder that SEAT_FOLDER names. A file `order` there says what is to happen, once.
"""

import multiprocessing
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedlora.adapters import pack, unpack
from fedlora.client.worker import interruption
from fedlora.client.worker.files_mod import adapters_as_files
from fedlora.common.messages import (
    DescribeRequest,
    EvaluateReceipt,
    EvaluateRequest,
    Failure,
    InitialiseReceipt,
    Score,
    SiteDescription,
    TrainReceipt,
    TrainRequest,
)
from fedlora.common.packed_file import packed_bytes
from fedlora.common.records import from_record, to_record

FOLDER = "SEAT_FOLDER"
DEADLINE_SECONDS = 120.0


def make_app() -> ClientApp:
    app = ClientApp(mods=[adapters_as_files])
    folder = Path(os.environ[FOLDER])

    @app.query("describe")
    def describe(message: Message, _context: Context) -> Message:
        rehearse = from_record(message.content, DescribeRequest).rehearse
        _note(folder / "rehearsals", f"{os.getpid()} {rehearse}")
        failure = _obey(folder)
        description = SiteDescription(
            "north", 10, 2, 4, "accuracy", ("a", "b"), "base", "sha256:base", "data", "0.1.0", 2, has_own_held_out=True
        )
        if (folder / "long examples").exists():
            fates = {"training": {"too_long": 4}, "test": {"cut": 1}}
            description = replace(description, fates=fates, notes=("the column 'ward' is left aside, in 9 rows",))
        return Message(to_record(failure or description, with_local=True), reply_to=message)

    @app.query("initialise")
    def initialise(message: Message, _context: Context) -> Message:
        packed = (folder / "first").read_bytes()
        return Message(to_record(InitialiseReceipt(packed)), reply_to=message)

    @app.train()
    def train(message: Message, _context: Context) -> Message:
        request = from_record(message.content, TrainRequest)
        _note(folder / "trainings", f"{os.getpid()} {request.round}")
        (folder / "former").write_bytes(packed_bytes(request.former))
        (folder / "moments").write_bytes(packed_bytes(request.moments))
        failure = _obey(folder)
        if failure is not None and failure.code != "loss_not_finite":
            return Message(to_record(failure), reply_to=message)
        receipt = TrainReceipt(
            request.run, request.round, request.attempt, "north", "ok" if failure is None else failure.code,
            num_examples=10, num_steps=3, loss=0.5, before=Score(2, 0.7, 0.5), after=Score(2, 0.6, 1.0),
            adapter=_stepped(request.adapter) if failure is None and request.adapter else b"",
        )  # fmt: skip
        return Message(to_record(receipt), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, _context: Context) -> Message:
        request = from_record(message.content, EvaluateRequest)
        _note(folder / "evaluations", f"{os.getpid()} {request.round}")
        groups = {"ward 3": Score(1, 1.0, 0.0), "ward 4": Score(3, 0.0, 1.0)}
        receipt = EvaluateReceipt(request.run, request.round, request.shard, groups, {0: 1})
        return Message(to_record(_obey(folder) or receipt), reply_to=message)

    return app


def _obey(folder: Path) -> Failure | None:
    """Do what the order says, and return the failure that it leads to."""
    try:
        order = (folder / "order").read_text()
    except FileNotFoundError:
        return None
    (folder / "order").unlink()
    if order == "die":
        os._exit(4)
    if order == "fork, then loop":
        child = multiprocessing.Process(target=time.sleep, args=(10 * DEADLINE_SECONDS,), daemon=True)
        child.start()
        _note(folder / "children", str(child.pid))
        order = "loop"
    if order.startswith("speak"):
        print("printed \u2713")
        print("on standard error", file=sys.stderr)
        os.write(1, b"by a library\n")
        os.write(2, b"and another")
        if order == "speak, then die":
            os._exit(4)
        return None
    if order == "shout":
        for _ in range(1000):
            os.write(2, b"x" * 4000 + b"\n")
        return None
    if order == "raise":
        raise ValueError("as was asked")
    if order in ("loop", "loop, then linger"):
        (folder / "begun").touch()
        _wait(interruption.is_unwanted)
        if order == "loop, then linger":
            (folder / "interrupted").touch()
            _wait((folder / "go").exists)
        return Failure("interrupted")
    return Failure(order)


def _wait(is_time: object) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not is_time():  # type: ignore[operator]
        if time.monotonic() > deadline:
            raise TimeoutError("nobody came")
        time.sleep(0.01)


def _note(path: Path, line: str) -> None:
    with open(path, "a") as file:
        file.write(f"{line}\n")


def _stepped(packed: bytes) -> bytes:
    adapter = unpack(packed)
    layers = {
        path: replace(layer, A=layer.A + step(layer.A), B=layer.B + step(layer.B))
        for path, layer in adapter.layers.items()
    }
    return pack(replace(adapter, layers=layers))


def step(matrix: torch.Tensor) -> torch.Tensor:
    """Return what a training adds: another number at each place, none of them a round one in 8 bits."""
    return torch.linspace(-0.01, 0.03, matrix.numel()).view(matrix.shape)
