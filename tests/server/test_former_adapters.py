"""What the round before started from, beside each round's adapter: for everybody, after a restart, as sites hold it."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from flwr.supercore.task_identity import TaskIdentity

sys.path.append(str(Path(__file__).parent))

from peers import LORA, Peer, honest, make_grid, small_adapter

from fedlora.adapters import pack, unpack
from fedlora.aggregation import FedIT
from fedlora.common.config import RunConfig
from fedlora.common.errors import StoreError
from fedlora.common.messages import OK, TrainReceipt, TrainRequest
from fedlora.server.disk.store import Checkpoint, RunFolder
from fedlora.server.rounds.federated_run import FederatedRun
from fedlora.server.rounds.starts import Former, Starts, for_rank
from fedlora.server.sites import LastingSites
from fedlora.v1 import session_pb2

NAMES = ("a", "b", "c")


@pytest.fixture(autouse=True)
def identity() -> Iterator[None]:
    """Give back what a Grid sets in Flower."""
    before = (TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id)
    yield
    TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id = before


class Ran:
    """What was asked of peers in a run, or what was left of it, and where it stands.

    Attributes:
        sent: by round, the digests of adapter and former adapter, the same for all.
        asked: by round, who was.
    """

    def __init__(self, folder: Path, *, rounds: int, momentum: float = 0.5, precision: str = "float32") -> None:
        config = RunConfig.model_validate(
            {
                "federation": {"rounds": rounds, "sites": 3, "cohort": 2},
                "data": {"labels": ["a", "b"]},
                "lora": LORA,
                "train": {"client_momentum": momentum},
                "aggregation": {"method": "fedit"},
                "exchange": {"precision": precision},
            }
        )
        grid, exchange = make_grid(folder, lambda _event: None)
        exchange.precision = precision  # type: ignore[assignment]
        peers = [Peer(grid, exchange, name, honest) for name in NAMES]
        FederatedRun(config, FedIT(), RunFolder(folder), num_sites=3, command="").start(LastingSites(grid))
        checkpoint = RunFolder(folder).latest()
        assert checkpoint is not None
        self.checkpoint: Checkpoint = checkpoint
        self.sent: dict[int, tuple[str, str]] = {}
        self.asked: dict[int, set[str]] = {}
        for peer in peers:
            for request in peer.received:
                if request.HasField("train"):
                    found = digests(request)
                    assert self.sent.setdefault(request.train.round, found) == found
                    self.asked.setdefault(request.train.round, set()).add(peer.name)


def digests(request: session_pb2.Request) -> tuple[str, str]:
    return request.adapter.whole.sha256.hex(), request.former.whole.sha256.hex()


def require_chain(sent: Sequence[tuple[str, str]]) -> None:
    """Check that each round's former adapter is the one that the round before started from."""
    assert [former for _, former in sent[1:]] == [adapter for adapter, _ in sent[:-1]]
    assert len({adapter for adapter, _ in sent}) == len(sent)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_everybody_is_offered_what_the_round_before_started_from_as_sites_hold_it(
    tmp_path: Path, precision: str
) -> None:
    ran = Ran(tmp_path, rounds=4, precision=precision)
    assert ran.sent[1][1] == ""
    require_chain([ran.sent[number] for number in range(1, 5)])
    # Some of them sat out the round before.
    assert any(ran.asked[number] - ran.asked[number - 1] for number in range(2, 5))


def test_nobody_is_offered_it_in_a_run_without_momentum(tmp_path: Path) -> None:
    ran = Ran(tmp_path, rounds=2, momentum=0.0)
    assert [former for _, former in ran.sent.values()] == ["", ""]
    assert not (tmp_path / "rounds" / "0000" / "adapter.safetensors").exists()


def test_a_run_that_goes_on_sends_the_same_two(tmp_path: Path) -> None:
    whole = Ran(tmp_path / "whole", rounds=4)
    first, rest = Ran(tmp_path / "parts", rounds=2), Ran(tmp_path / "parts", rounds=4)
    assert {**first.sent, **rest.sent} == whole.sent
    assert rest.checkpoint.stored.sha256 == whole.checkpoint.stored.sha256


def test_a_round_whose_adapter_is_damaged_is_done_again_from_the_two_before(tmp_path: Path) -> None:
    before = Ran(tmp_path, rounds=3)
    damage(tmp_path, 3)
    again = Ran(tmp_path, rounds=3)
    assert again.sent == {3: before.sent[3]}
    assert again.checkpoint.stored.sha256 == before.checkpoint.stored.sha256


def test_what_was_accepted_after_a_round_that_is_done_again_counts_no_more(tmp_path: Path) -> None:
    """It was trained from an adapter that this round need not end in."""
    whole = Ran(tmp_path / "whole", rounds=4)
    Ran(tmp_path / "parts", rounds=3)
    folder = RunFolder(tmp_path / "parts")
    client = sorted(whole.asked[4])[0]
    run = str((folder.manifest() or {})["run_id"])
    update = pack(small_adapter(7))
    folder.write_accepted(
        4, TrainReceipt(run, 4, 0, client, OK, num_examples=10, num_steps=1, loss=0.5, adapter=update)
    )
    damage(folder.path, 3)
    again = Ran(tmp_path / "parts", rounds=4)
    assert again.asked == {number: whole.asked[number] for number in (3, 4)}
    assert again.checkpoint.stored.sha256 == whole.checkpoint.stored.sha256


def test_a_run_without_its_last_adapter_but_one_says_so_in_a_line(tmp_path: Path) -> None:
    Ran(tmp_path, rounds=3)
    damage(tmp_path, 2)
    assert Ran(tmp_path, rounds=3).sent == {}, "it is over, and needs nothing"
    with pytest.raises(StoreError, match=r"0002/adapter\.safetensors is missing or damaged, and the next round"):
        Ran(tmp_path, rounds=4)


def damage(folder: Path, number: int) -> None:
    (folder / "rounds" / f"{number:04d}" / "adapter.safetensors").write_bytes(b"noise")


def test_a_client_of_a_smaller_rank_gets_both_as_it_was_sent_them() -> None:
    method, request = FedIT(), TrainRequest("run", 2, 0, 0, 5, 0)
    given, before = small_adapter(1), small_adapter(0)
    former = Former(before, pack(before), ("north",))
    starts = Starts(given, pack(given), request, method=method, former=former)
    whole, cut = starts.for_rank(2), starts.for_rank(1)
    assert (whole.request.adapter, whole.request.former) == (pack(given), pack(before))
    # What it started from in the round before, to the last bit.
    earlier = Starts(before, pack(before), request, method=method).for_rank(1).request.adapter
    assert cut.request.former == earlier == pack(for_rank(before, 1, method=method))
    assert isinstance(cut.request.former, bytes)
    assert torch.equal(unpack(cut.request.former).layers["block.q_proj"].A, before.layers["block.q_proj"].A[:1])


def test_only_a_client_that_lacks_it_is_counted_as_sent_it() -> None:
    given, before = small_adapter(1), small_adapter(0)
    former = Former(before, pack(before), ("north",))
    starts = Starts(given, pack(given), TrainRequest("run", 2, 0, 0, 5, 0), method=FedIT(), former=former)
    assert starts.bytes_down("north", 2) == len(pack(given))
    assert starts.bytes_down("south", 2) == len(pack(given)) + len(pack(before))
