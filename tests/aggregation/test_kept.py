"""A layer's clients are read once and kept as far as they fit, and no bit depends on how many do."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from fedlora.adapters import Adapter
from fedlora.adapters.on_demand import OnDemand
from fedlora.aggregation import FedExLora, FedIT, FlexLora, LoraFair, LoraFairTwoSided, Robust, aggregate
from fedlora.aggregation.kept import KEPT_BYTES

RANKS = [3, 2, 3, 1, 3]
PAIR_BYTES = 4 * 3 * (9 + 12)  # of the first client
VECTOR_BYTES = 4 * 2 * 12  # its bias and its magnitude


@pytest.fixture
def read_on_demand(make_updates):
    """Return clients in two scalings, and how many times each was read; with a bias and a magnitude, unless without."""

    def make(ranks=RANKS, dtype=torch.float32, *, has_vectors=True):
        reads = Counter()
        updates = {}
        for index, (client, update) in enumerate(make_updates(ranks=ranks, dtype=dtype).items()):
            vectors = {"bias": torch.arange(12.0) + index, "magnitude": torch.arange(12.0) * index}
            layer = replace(update.layers["q_proj"], scaling=2.0 + index % 2, **(vectors if has_vectors else {}))

            def read(_path, client=client, layer=layer):
                reads[client] += 1
                return layer

            updates[client] = Adapter(OnDemand(["q_proj"], read, {"q_proj": layer}))
        return updates, reads

    return make


def bits(result):
    pairs = [*result.adapter.layers.values(), *result.adapter.base_change.values()]
    return [tensor for layer in pairs for tensor in layer.tensors()]


@pytest.mark.parametrize("kept_bytes", [2 * PAIR_BYTES, None])
@pytest.mark.parametrize("ranks", [RANKS, [3] * 5], ids=["mixed ranks", "one rank"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_bit_depends_on_how_many_clients_are_kept(read_on_demand, any_method, kept_bytes, ranks, dtype):
    updates, _ = read_on_demand(ranks, dtype, has_vectors=any_method.takes_dora())
    expected = aggregate(updates, method=any_method, kept_bytes=0)
    found = aggregate(updates, method=any_method, kept_bytes=kept_bytes)
    assert all(map(torch.equal, bits(found), bits(expected)))
    assert found.report == expected.report


@pytest.mark.parametrize("measure", [True, False])
@pytest.mark.parametrize(
    ("method", "num_passes"),
    [
        (FedIT(), 1),
        (LoraFair(), 2),
        (LoraFairTwoSided(sweeps=2), 5),
        (FlexLora(), 2),
        (FlexLora(power_iterations=2), 7),
    ],
    ids=str,
)
def test_a_client_is_read_once_where_it_is_kept_and_else_at_each_pass(read_on_demand, method, num_passes, measure):
    updates, reads = read_on_demand()
    aggregate(updates, method=method, measure=measure, kept_bytes=KEPT_BYTES)
    assert set(reads.values()) == {1}
    reads.clear()
    # The first has rank 3 and leaves no room for the second; the fourth has rank 1.
    room = 4 * (9 + 12) + VECTOR_BYTES
    aggregate(updates, method=method, measure=measure, kept_bytes=PAIR_BYTES + VECTOR_BYTES + room)
    again = num_passes + measure + 2  # The means of the bias and of the magnitude are passes of their own.
    assert list(reads.values()) == [1, again, again, 1, again]


def test_by_default_it_is_kept_where_it_is_measured(read_on_demand):
    updates, reads = read_on_demand()
    aggregate(updates, method=LoraFair())
    assert set(reads.values()) == {1}
    reads.clear()
    aggregate(updates, method=LoraFair(), measure=False)
    assert set(reads.values()) == {4}


def test_what_a_change_of_the_base_takes_part_in_is_the_same(make_updates):
    start = aggregate(make_updates(1, dtype=torch.float32), method=FedExLora(residual_rank=2)).adapter
    updates = make_updates(2, dtype=torch.float32)
    for method in (FedExLora(), FedExLora(residual_rank=2), FedExLora(residual_rank=2, power_iterations=1)):
        found, expected = (
            aggregate(updates, method=method, reference=start, kept_bytes=kept_bytes) for kept_bytes in (None, 0)
        )
        assert all(map(torch.equal, bits(found), bits(expected)))
        assert found.report == expected.report


def test_what_is_changed_as_it_is_read_is_changed_once(read_on_demand, make_updates):
    (start,) = make_updates(7, num_clients=1, dtype=torch.float32).values()
    vectors = {"bias": torch.zeros(12), "magnitude": torch.ones(12)}
    start = Adapter({"q_proj": replace(start.layers["q_proj"], **vectors)})
    robust = Robust(regauge=True, gauge_limit=1)
    updates, reads = read_on_demand()
    expected = aggregate(updates, method=LoraFairTwoSided(), reference=start, robust=robust, kept_bytes=0)
    without = reads.total()
    reads.clear()
    found = aggregate(updates, method=LoraFairTwoSided(), reference=start, robust=robust)
    assert all(map(torch.equal, bits(found), bits(expected)))
    # Checked, gauged, and then read once.
    assert reads.total() <= 3 * len(updates) < without
