"""A round packs its adapter once, stores it once, and reads an update once before it is aggregated."""

import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import Tensor

sys.path.append(str(Path(__file__).parent))

from peers import LORA, Peer, honest, make_grid, small_adapter

from fedlora.adapters import pack, packed, unpack
from fedlora.adapters.tensor_file import TensorFile
from fedlora.aggregation import FedIT
from fedlora.common.config import RunConfig
from fedlora.common.flower_privates import assume_identity
from fedlora.common.messages import OK, TrainReceipt, TrainRequest
from fedlora.common.packed_file import PackedFile
from fedlora.server.disk.store import RunFolder
from fedlora.server.rounds.admission import Admitted, admit
from fedlora.server.rounds.federated_run import FederatedRun
from fedlora.server.sites import LastingSites

NAMES = ("a", "b", "c")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Return how often this thread packs an adapter, and reads each tensor of a file."""
    counts: Counter[str] = Counter()
    here = threading.get_ident()
    tensor_bytes, read = packed.tensor_bytes, TensorFile.read

    def packing(*args: object) -> bytes:
        counts["packed"] += threading.get_ident() == here
        return tensor_bytes(*args)  # type: ignore[arg-type]

    def reading(self: TensorFile, key: str) -> Tensor:
        counts[f"{self.path.name} {key}"] += threading.get_ident() == here
        return read(self, key)

    monkeypatch.setattr(packed, "tensor_bytes", packing)
    monkeypatch.setattr(TensorFile, "read", reading)
    return counts


@pytest.fixture
def finished(tmp_path: Path, counted: Counter[str]) -> Iterator[Path]:  # noqa: ARG001 (it counts from the start)
    """Return the folder of a run of two rounds over sites, in this thread."""
    give_back = assume_identity()
    grid, exchange = make_grid(tmp_path, lambda _event: None)
    for name in NAMES:
        Peer(grid, exchange, name, honest)
    config = RunConfig.model_validate(
        {
            "federation": {"rounds": 2, "sites": 3},
            "data": {"labels": ["a", "b"]},
            "lora": LORA,
            "aggregation": {"method": "fedit"},
            "exchange": {"precision": "float32"},
        }
    )
    FederatedRun(config, FedIT(), RunFolder(tmp_path), num_sites=3, command="test").start(LastingSites(grid))
    yield tmp_path
    give_back()


def test_an_adapter_is_packed_once_a_round(finished: Path, counted: Counter[str]) -> None:
    assert (finished / "rounds" / "0002" / "report.json").is_file()
    assert counted["packed"] == 3  # The first adapter, and one of each round.


def test_an_adapter_is_stored_once_and_has_a_name_wherever_it_is_wanted(finished: Path) -> None:
    journal = finished / "rounds" / "0002" / "adapter.safetensors"
    assert journal.samefile(finished / "adapter" / "adapter_model.safetensors")
    before = finished / "rounds" / "0001" / "adapter.safetensors"
    assert sum(before.samefile(path) for path in (finished / "exchange" / "whole").iterdir()) == 1


def test_what_is_stored_is_also_pefts_file(finished: Path) -> None:
    adapter = unpack((finished / "rounds" / "0002" / "adapter.safetensors").read_bytes())
    assert pack(adapter) == (finished / "adapter" / "adapter_model.safetensors").read_bytes()


def test_an_update_is_read_once_before_it_is_aggregated(tmp_path: Path, counted: Counter[str]) -> None:
    start, path = small_adapter(0), tmp_path / "update"
    path.write_bytes(pack(small_adapter(1)))
    receipt = TrainReceipt(
        "run", 1, 0, "a", OK, num_examples=1, num_steps=1, loss=0.5, adapter=PackedFile(path, path.stat().st_size)
    )
    request = TrainRequest("run", 1, 0, seed=0, num_rounds=1, validation_examples=0)
    admitted = admit(receipt, request=request, client="a", num_examples=1, reference=start)
    assert isinstance(admitted, Admitted)
    assert admitted.moved > 0
    assert admitted.distance > 0
    reads = {key: number for key, number in counted.items() if key.startswith("update ")}
    assert set(reads.values()) == {1}
    assert len(reads) == 2


def test_reports_are_appended_and_never_written_again(finished: Path) -> None:
    listed, folder = finished / "rounds.jsonl", RunFolder(finished)
    latest = folder.latest()
    assert latest is not None
    lines, inode = listed.read_bytes(), listed.stat().st_ino
    for torn in (lines, lines[:-20], lines[: lines.index(b"\n") + 5]):
        listed.write_bytes(torn)
        folder.publish(latest.stored, latest.round)
        assert listed.read_bytes() == lines
        assert listed.stat().st_ino == inode
