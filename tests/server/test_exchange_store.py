"""What sites fetch for an adapter: all of it or a difference, the same bytes at every site, and a bounded disk."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import load
from torch import Tensor

sys.path.append(str(Path(__file__).parent))

from open_port import packed

from fedlora.adapters.differences import decode_file, encode_file
from fedlora.common.errors import AdapterError
from fedlora.common.files import sha256_of
from fedlora.server.disk.exchange import ExchangeStore, FileOnOffer, Offer, Precision

ROUNDED: tuple[Precision, ...] = ("bfloat16", "int8")
each_precision = pytest.mark.parametrize("precision", get_args(Precision))
each_rounded = pytest.mark.parametrize("precision", ROUNDED)


class Holder:
    """A site's files by digest, filled from a store as sites do it."""

    def __init__(self, folder: Path, store: ExchangeStore, *, takes_differences: bool = True) -> None:
        folder.mkdir()
        self._folder = folder
        self._store = store
        self._takes_differences = takes_differences
        self.num_bytes = 0
        self.num_differences = 0

    def fetch(self, offer: Offer) -> bytes:
        """Return the adapter on offer as this site holds it afterwards; the former ones are forgotten."""
        target = self._folder / offer.whole.sha256
        reference = self._folder / (offer.reference.sha256 if offer.reference is not None else "none")
        if offer.difference is not None and reference.is_file() and self._takes_differences:
            decode_file(self._fetched(offer.difference), target, reference=reference)
            self.num_differences += 1
        else:
            shutil.copy(self._fetched(offer.whole), target)
        for other in self._folder.iterdir():
            if other != target:
                other.unlink()
        assert sha256_of([target]) == offer.whole.sha256
        return target.read_bytes()

    def _fetched(self, file: FileOnOffer) -> Path:
        path = self._store.find(file.sha256)
        assert path is not None
        assert path.stat().st_size == file.size_bytes
        self.num_bytes += file.size_bytes
        return path


def walk(num_rounds: int, *, rows: int = 16, columns: int = 256, step: float = 1e-3) -> Iterator[dict[str, Tensor]]:
    """Give adapters that move a little each round."""
    random = torch.Generator().manual_seed(rows)
    tensors = {name: torch.randn(rows, columns, generator=random) for name in ("A", "B")}
    for _ in range(num_rounds):
        tensors = {
            name: tensor + torch.randn(tensor.shape, generator=random) * step for name, tensor in tensors.items()
        }
        yield tensors


def store_in(folder: Path, precision: Precision) -> ExchangeStore:
    return ExchangeStore(folder / "exchange", precision=precision)


@each_precision
def test_the_same_adapter_is_offered_the_same_way_again_also_after_a_restart(
    tmp_path: Path, precision: Precision
) -> None:
    store = store_in(tmp_path, precision)
    offers = {raw: store.offer(raw) for raw in map(packed, walk(3))}
    files = {path: path.stat().st_mtime_ns for path in store.folder.rglob("*")}
    for again in (store, store_in(tmp_path, precision)):
        for raw, offer in offers.items():
            assert again.offer(raw) == offer
    assert {path: path.stat().st_mtime_ns for path in store.folder.rglob("*")} == files


def test_in_float32_the_sites_get_the_very_bytes_and_no_differences(tmp_path: Path) -> None:
    store = store_in(tmp_path, "float32")
    holder = Holder(tmp_path / "site", store)
    for raw in map(packed, walk(3)):
        offer = store.offer(raw)
        assert (offer.difference, offer.reference) == (None, None)
        assert holder.fetch(offer) == raw


def test_in_bfloat16_the_sites_hold_the_reference_and_the_rounded_difference_to_it(tmp_path: Path) -> None:
    store = store_in(tmp_path, "bfloat16")
    held: dict[str, Tensor] | None = None
    for tensors in walk(20):
        found = load(store.whole_file(store.offer(packed(tensors))).read_bytes())
        if held is None:
            expected = tensors
        else:
            expected = {name: held[name] + (wanted - held[name]).bfloat16().float() for name, wanted in tensors.items()}
        assert {name: tensor.tolist() for name, tensor in found.items()} == {
            name: tensor.tolist() for name, tensor in expected.items()
        }
        held = found


@each_rounded
def test_what_rounding_takes_is_not_lost_over_twenty_rounds(tmp_path: Path, precision: Precision) -> None:
    store = store_in(tmp_path, precision)
    errors = []
    for tensors in walk(20):
        found = load(store.whole_file(store.offer(packed(tensors))).read_bytes())
        errors.append(float((found["A"] - tensors["A"]).abs().mean()))
    # Each round is as far from float32 as its own rounding takes it, the last no farther than the second.
    assert errors[0] == 0
    assert 0 < max(errors[1:]) < 1.5 * min(errors[1:])


def test_rounded_changes_one_after_the_other_would_lose_more(tmp_path: Path) -> None:
    store = store_in(tmp_path, "bfloat16")
    first, *rest = (tensors["A"] for tensors in walk(20))
    store.offer(packed({"A": first}))
    summed, former, found = first, first, first
    for tensor in rest:
        found = load(store.whole_file(store.offer(packed({"A": tensor}))).read_bytes())["A"]
        summed, former = summed + (tensor - former).bfloat16().float(), tensor
    assert float((summed - rest[-1]).abs().mean()) > 2.5 * float((found - rest[-1]).abs().mean())


@each_rounded
def test_who_holds_the_reference_and_who_fetches_all_have_the_same_bytes(tmp_path: Path, precision: Precision) -> None:
    store = store_in(tmp_path, precision)
    steady = Holder(tmp_path / "steady", store)
    whole = Holder(tmp_path / "whole", store, takes_differences=False)
    away = Holder(tmp_path / "away", store)
    for number, tensors in enumerate(walk(12)):
        offer = store.offer(packed(tensors))
        assert steady.fetch(offer) == whole.fetch(offer)
        if number % 4 in (0, 1):
            away.fetch(offer)
    assert steady.num_differences == 11
    assert whole.num_differences == 0
    assert away.num_differences == 3
    assert steady.num_bytes < whole.num_bytes * (0.6 if precision == "bfloat16" else 0.4)


@each_rounded
def test_a_crash_between_the_offer_and_its_note_as_the_newest_costs_one_whole_file(
    tmp_path: Path, precision: Precision
) -> None:
    store = store_in(tmp_path, precision)
    holder = Holder(tmp_path / "site", store)
    adapters = [packed(tensors) for tensors in walk(5)]
    for raw in adapters[:3]:
        holder.fetch(store.offer(raw))
    shutil.rmtree(store.folder / "newest")
    store = store_in(tmp_path, precision)
    again = store.offer(adapters[2])
    assert again.difference is not None
    after = store.offer(adapters[3])
    assert (after.difference, after.reference) == (None, None)
    assert holder.fetch(after) == store.whole_file(after).read_bytes() == adapters[3]
    assert store.offer(adapters[4]).reference == after.whole


@each_rounded
def test_a_reference_that_is_gone_from_disk_is_not_used(tmp_path: Path, precision: Precision) -> None:
    store = store_in(tmp_path, precision)
    first, second = map(packed, walk(2))
    store.whole_file(store.offer(first)).unlink()
    assert store.offer(second).reference is None


@each_precision
def test_the_disk_stays_bounded_over_fifty_offers_and_the_last_four_can_be_had(
    tmp_path: Path, precision: Precision
) -> None:
    store = store_in(tmp_path, precision)
    offers: list[Offer] = []
    largest = 0
    for number, tensors in enumerate(walk(50, rows=4, columns=64)):
        offers.append(store.offer(packed(tensors)))
        num_files = sum(path.is_file() for path in store.folder.rglob("*"))
        if number < 10:
            largest = max(largest, num_files)
        assert num_files <= largest
    for offer in offers[-4:]:
        for file in (offer.whole, offer.difference, offer.reference):
            assert file is None or store.find(file.sha256) is not None
    assert not any(store.find(offer.whole.sha256) for offer in offers[:-6])


@each_rounded
def test_adapters_of_several_ranks_have_chains_of_their_own(tmp_path: Path, precision: Precision) -> None:
    store = store_in(tmp_path, precision)
    before: dict[int, FileOnOffer] = {}
    for small, large in zip(walk(10, rows=4), walk(10, rows=8), strict=True):
        for rank, tensors in ((4, small), (8, large)):
            offer = store.offer(packed(tensors))
            assert offer.reference == before.get(rank)
            assert (offer.difference is None) == (rank not in before)
            before[rank] = offer.whole
    # As many as of one rank are kept of each.
    assert len(list((store.folder / "offers").iterdir())) == 8


def test_a_difference_that_is_no_smaller_is_not_offered(tmp_path: Path) -> None:
    store = store_in(tmp_path, "bfloat16")
    counts = {"n": torch.arange(50)}
    store.offer(packed(counts))
    offer = store.offer(packed({"n": torch.arange(50) + 1}))
    assert (offer.difference, offer.reference) == (None, None)


def test_only_what_is_on_offer_is_found(tmp_path: Path) -> None:
    store = store_in(tmp_path, "float32")
    offer = store.offer(packed({"A": torch.ones(2, 2)}))
    assert store.find(offer.whole.sha256) == store.whole_file(offer)
    for wrong in ("", "0" * 64, "../ticket.key", offer.whole.sha256.upper(), f"../whole/{offer.whole.sha256}"):
        assert store.find(wrong) is None


def test_what_is_no_packed_adapter_is_not_offered(tmp_path: Path) -> None:
    store = store_in(tmp_path, "float32")
    with pytest.raises(ValueError, match="no packed adapter"):
        store.offer(b"\x80\x04.")
    assert list((store.folder / "offers").iterdir()) == []


def test_a_site_has_one_upload_and_another_sites_stay(tmp_path: Path) -> None:
    store = store_in(tmp_path, "float32")
    theirs = store.upload_file("south", round=1, sha256="a" * 64)
    theirs.write_bytes(b"theirs")
    first = store.upload_file("north", round=1, sha256="a" * 64)
    first.with_name(f"{first.name}.part").write_bytes(b"half")
    assert store.upload_file("north", round=1, sha256="a" * 64) == first
    assert first.with_name(f"{first.name}.part").is_file()
    store.upload_file("north", round=2, sha256="a" * 64)
    assert list(first.parent.iterdir()) == []
    assert theirs.read_bytes() == b"theirs"
    assert store.upload_file("../north", round=1, sha256="a" * 64).parent.parent == first.parent.parent


@each_precision
def test_an_update_is_made_whole_once_and_what_is_none_is_said(tmp_path: Path, precision: Precision) -> None:
    store = store_in(tmp_path, precision)
    base, trained = walk(2)
    offer = store.offer(packed(base))
    source, encoded = tmp_path / "trained", tmp_path / "encoded"
    source.write_bytes(packed(trained))
    encode_file(source, encoded, reference=store.whole_file(offer), precision=precision)
    assert encoded.stat().st_size <= store.max_upload_bytes(offer)
    sha256 = sha256_of([encoded])
    shutil.copy(encoded, store.upload_file("north", round=1, sha256=sha256))
    whole = store.whole_update("north", round=1, sha256=sha256, offer=offer)
    error = (load(whole.read_bytes())["A"] - trained["A"]).abs().max()
    assert float(error) <= {"float32": 0.0, "bfloat16": 2e-5, "int8": 2e-5}[precision]
    made = whole.stat().st_mtime_ns
    assert store.whole_update("north", round=1, sha256=sha256, offer=offer) == whole
    assert whole.stat().st_mtime_ns == made
    store.upload_file("north", round=2, sha256=sha256).write_bytes(b"\x80\x04.")
    with pytest.raises(AdapterError):
        store.whole_update("north", round=2, sha256=sha256, offer=offer)
