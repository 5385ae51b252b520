"""Shared moments between a server and its peers: the mean is sent on, in the exchange's precision, restarts or not."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.supercore.task_identity import TaskIdentity
from torch import Tensor

sys.path.append(str(Path(__file__).parent))

from peers import LORA, Behaviour, Peer, honest, make_grid

from fedlora.adapters import pack, unpack
from fedlora.adapters.keys import to_state_dict
from fedlora.adapters.moments import unpack_moments
from fedlora.aggregation import FedIT
from fedlora.common.config import RunConfig
from fedlora.common.messages import TrainReceipt
from fedlora.common.wire import Receipt
from fedlora.server.disk.exchange import Precision
from fedlora.server.disk.store import RunFolder
from fedlora.server.rounds.federated_run import FederatedRun
from fedlora.server.sites import LastingSites
from fedlora.v1 import session_pb2

SIZES = {"a": 0.25, "b": 0.5, "c": 1.5}


@pytest.fixture(autouse=True)
def identity() -> Iterator[None]:
    """Give back what a Grid sets in Flower."""
    before = (TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id)
    yield
    TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id = before


def moments_of(peer: str, round: int) -> dict[str, Tensor]:
    from peers import first_adapter

    found = {}
    for key, tensor in to_state_dict(first_adapter()).items():
        size = SIZES[peer] * round / 3
        found |= {f"{key}/exp_avg": torch.full_like(tensor, size), f"{key}/exp_avg_sq": torch.full_like(tensor, size)}
        found[f"{key}/step"] = torch.tensor(float(round))
    return found


def sharing(peer: Peer, request: session_pb2.Request) -> Receipt | None:
    """Train as an honest peer, with moments that depend on its name and the round."""
    receipt = honest(peer, request)
    if isinstance(receipt, TrainReceipt) and isinstance(receipt.adapter, bytes):
        adapter = unpack(receipt.adapter)
        return replace(receipt, adapter=pack(adapter, moments=moments_of(peer.name, receipt.round)))
    return receipt


def run(
    folder: Path, *, rounds: int, precision: Precision = "float32", last: Behaviour = sharing
) -> tuple[dict[int, dict[str, Tensor]], RunFolder]:
    """Return by round the moments that all peers were sent, and the run's folder; `last` is what the third does."""
    config: dict[str, Any] = {
        "federation": {"rounds": rounds, "sites": 3, "quorum": 0.5},
        "data": {"labels": ["a", "b"]},
        "lora": LORA,
        "train": {"optimizer_state": "shared", "steps": 1},
        "exchange": {"precision": precision},
    }
    grid, exchange = make_grid(folder, lambda _event: None)
    exchange.precision = precision
    peers = [Peer(grid, exchange, name, last if name == "c" else sharing) for name in SIZES]
    journal = RunFolder(folder)
    FederatedRun(RunConfig.model_validate(config), FedIT(), journal, num_sites=3, command="").start(LastingSites(grid))
    digests: dict[int, set[str]] = {}
    for peer in peers:
        for request in peer.received:
            if request.HasField("train"):
                digests.setdefault(request.train.round, set()).add(request.moments.whole.sha256.hex())
    assert all(len(found) == 1 for found in digests.values())
    files = {number: exchange.find(next(iter(found))) for number, found in digests.items()}
    return {number: unpack_moments(path.read_bytes()) for number, path in files.items() if path is not None}, journal


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_everybody_is_sent_the_mean_of_the_round_before(tmp_path: Path, precision: Precision) -> None:
    sent, _ = run(tmp_path, rounds=3, precision=precision)
    assert sorted(sent) == [2, 3]
    for number, moments in sent.items():
        every = [moments_of(name, number - 1) for name in SIZES]
        assert moments.keys() == every[0].keys()
        for key, tensor in moments.items():
            mean = sum(each[key].double() for each in every) / 3  # type: ignore[operator]
            is_rounded = precision != "float32" and not key.endswith("step")
            assert tensor.dtype == (torch.bfloat16 if is_rounded else torch.float32)
            torch.testing.assert_close(tensor.double(), mean, rtol=2**-8 if is_rounded else 1e-6, atol=0.0)


def test_a_run_that_goes_on_sends_the_same(tmp_path: Path) -> None:
    whole, _ = run(tmp_path / "whole", rounds=3)
    run(tmp_path / "parts", rounds=2)
    rest, journal = run(tmp_path / "parts", rounds=3)
    assert rest.keys() == {3}
    assert all(torch.equal(rest[3][key], whole[3][key]) for key in whole[3])
    checkpoint = journal.latest()
    assert checkpoint is not None
    assert checkpoint.round == 3


def without(peer: Peer, request: session_pb2.Request) -> Receipt | None:
    return honest(peer, request)


def negative(peer: Peer, request: session_pb2.Request) -> Receipt | None:
    receipt = honest(peer, request)
    if not (isinstance(receipt, TrainReceipt) and isinstance(receipt.adapter, bytes)):
        return receipt
    spoiled = {key: -value if key.endswith("_sq") else value for key, value in moments_of(peer.name, 1).items()}
    return replace(receipt, adapter=pack(unpack(receipt.adapter), moments=spoiled))


@pytest.mark.parametrize(
    ("behaviour", "reason"), [(without, "exp_avg is missing"), (negative, "exp_avg_sq holds -0.5; expected 0 or more")]
)
def test_who_sends_others_is_refused_and_the_round_goes_on(tmp_path: Path, behaviour: Behaviour, reason: str) -> None:
    sent, journal = run(tmp_path, rounds=2, last=behaviour)
    checkpoint = journal.latest()
    assert checkpoint is not None
    for report in checkpoint.reports[1:]:
        assert sorted(report.clients) == ["a", "b"]
        assert report.refused["c"].startswith("moments: base_model.model.block.q_proj.lora_A.weight/")
        assert report.refused["c"].endswith(reason)
    # Of those that count.
    mean = (SIZES["a"] + SIZES["b"]) / 2 / 3
    assert all(value.eq(torch.tensor(mean)).all() for key, value in sent[2].items() if key.endswith("exp_avg"))
