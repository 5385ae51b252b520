"""Time the server alone: python timed_server_cpu.py NUM_ROUNDS NUM_CLIENTS ANSWER

The run's folder is made in the working directory. Two layers of 64 x 64 in rank 4, one torch thread, no evaluation.
Of the whole, what each check of CHECKS took is told too: without them the same run would take so much less.
"""

import importlib
import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import wraps
from pathlib import Path

import torch
from flwr.app import Message

from fedlora.adapters import Adapter, LoraLayer, pack, unpack
from fedlora.aggregation import FedIT
from fedlora.common.config import RunConfig
from fedlora.common.flower_privates import assume_identity, give_id
from fedlora.common.messages import (
    OK,
    DescribeRequest,
    InitialiseReceipt,
    InitialiseRequest,
    SiteDescription,
    TrainReceipt,
    TrainRequest,
)
from fedlora.common.packed_file import packed_bytes
from fedlora.common.records import from_record, kind_of, to_record
from fedlora.server.disk.store import RunFolder
from fedlora.server.rounds.federated_run import FederatedRun
from fedlora.server.sites import FlowerSites
from fedlora.server.sites.polled_grid import PolledGrid

_RANK, _SIDE, _STEP = 4, 64, 0.01


# What stands between an answer and its place in the average, each by the module that has it and its name there.
CHECKS = {
    "messages read and their bounds": ("fedlora.common.records", "from_record"),
    "admission": ("fedlora.server.rounds.admission", "admit"),
    "outliers": ("fedlora.server.rounds.admission", "outliers"),
}


class CheckTimes:
    """CPU seconds of the server inside each check, wherever it is called from.

    Attributes:
        seconds: by the check's title.
        is_paused: while the clients answer, whose time is not the server's.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(CHECKS, 0.0)
        self.is_paused = False
        for title, (module, name) in CHECKS.items():
            check = getattr(importlib.import_module(module), name)
            # Who imported it by name holds it under that name.
            for holder in list(sys.modules.values()):
                if getattr(holder, name, None) is check:
                    setattr(holder, name, self._timed(title, check))

    def _timed(self, title: str, check: Callable[..., object]) -> Callable[..., object]:
        @wraps(check)
        def timed(*given: object, **named: object) -> object:
            if self.is_paused:
                return check(*given, **named)
            began = time.process_time()
            try:
                return check(*given, **named)
            finally:
                self.seconds[title] += time.process_time() - began

        return timed


class InstantGrid(PolledGrid):
    """A Grid whose nodes answer as they are asked.

    Attributes:
        own_seconds: CPU time that the answers took.
    """

    def __init__(self, num_nodes: int, times: CheckTimes) -> None:
        super().__init__()
        self._num_nodes = num_nodes
        self._times = times
        self._replies: dict[str, Message] = {}
        self._num_messages = 0
        self.own_seconds = 0.0

    def get_node_ids(self) -> Iterable[int]:
        return range(1, self._num_nodes + 1)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            self._num_messages += 1
            ids.append(str(self._num_messages))
            give_id(message, ids[-1])
            began, self._times.is_paused = time.process_time(), True
            content = to_record(answer_of(message), with_local=True)
            self._replies[ids[-1]] = Message(content, reply_to=message)
            self.own_seconds += time.process_time() - began
            self._times.is_paused = False
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(message_id) for message_id in message_ids if message_id in self._replies]


def answer_of(message: Message) -> object:
    """Return what a node answers: who it is, a first adapter, or the given one a step further."""
    node = message.metadata.dst_node_id
    if kind_of(message.content) == DescribeRequest.__name__:
        return SiteDescription(f"client {node:04d}", 10, 0, 0, "accuracy", ("a", "b"), "base", "f", "d", "0", _RANK)
    if kind_of(message.content) == InitialiseRequest.__name__:
        return InitialiseReceipt(pack(first_adapter()))
    request = from_record(message.content, TrainRequest)
    given = unpack(packed_bytes(request.adapter))
    layers = {path: replace(layer, B=layer.B + _STEP * (1 + node % 7)) for path, layer in given.layers.items()}
    receipt = TrainReceipt(request.run, request.round, request.attempt, f"client {node:04d}", OK, 10, 1, 0.5)
    return replace(receipt, adapter=pack(replace(given, layers=layers)))


def first_adapter() -> Adapter:
    """Return a small adapter."""
    draw = torch.Generator().manual_seed(0)

    def layer() -> LoraLayer:
        return LoraLayer(torch.randn(_RANK, _SIDE, generator=draw), torch.zeros(_SIDE, _RANK), 2.0)

    config = {"peft_type": "LORA", "r": _RANK, "lora_alpha": 2 * _RANK, "target_modules": ["q_proj"]}
    return Adapter({f"blocks.{index}.q_proj": layer() for index in range(2)}, {}, config)


def main() -> None:
    num_rounds, num_clients, answer = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    assume_identity()
    config = RunConfig.model_validate(
        {
            "federation": {"rounds": num_rounds},
            "data": {"labels": ["a", "b"]},
            "lora": {"rank": _RANK, "alpha": 2.0 * _RANK, "target_modules": ["q_proj"]},
            "evaluation": {"client_examples": 0, "round_examples": 0},
        }
    )
    times = CheckTimes()
    grid = InstantGrid(num_clients, times)
    run = FederatedRun(config, FedIT(), RunFolder(Path("run")), num_sites=num_clients, command="benchmark")
    began = time.process_time()
    run.start(FlowerSites(grid, num_sites=num_clients))
    total = time.process_time() - began - grid.own_seconds
    answer.write_text(json.dumps({"total": total, "checks": times.seconds}))


if __name__ == "__main__":
    main()
