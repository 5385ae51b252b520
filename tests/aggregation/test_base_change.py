"""FLoRA and FedEx-LoRA: exact, and their change of the base weights adds up over rounds, in bounded rank."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlora.adapters import Adapter, LoraLayer, with_base_change_inside
from fedlora.aggregation import FedExLora, FedIT, Flora, aggregate
from fedlora.aggregation.base_change import accumulated
from fedlora.algebra.low_rank import recompressed

few = settings(derandomize=True, database=None, deadline=None, max_examples=20)
seeds = st.integers(0, 10_000)
both = pytest.mark.parametrize("method", [Flora(), FedExLora()], ids=["flora", "fedex_lora"])
# Wide enough for the change to stay in factors, and narrow enough to be written anew.
SIZES = [{"out_features": 60, "in_features": 50}, {"out_features": 12, "in_features": 9}]


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


@both
@pytest.mark.parametrize("size", SIZES, ids=["wide", "narrow"])
@few
@given(seeds, st.sampled_from([[3] * 4, [3, 1, 2, 3], [1, 3], [2]]), st.sampled_from([1.0, 1e-3]))
def test_the_ideal_update_is_reproduced(
    make_updates, dense_mean, uneven_p, whole_change, method, size, seed, ranks, spread
):
    updates = make_updates(seed, ranks=ranks, spread=spread, **size)
    M, _, _ = dense_mean(updates, uneven_p(updates))
    result = aggregate(updates, weights=uneven_p(updates), method=method)
    assert relative(whole_change(result), 2.0 * M) < 1e-13
    assert result.report.error_after < 1e-6


def test_fedex_keeps_the_means_and_one_rank_less_than_the_clients_have(make_updates, dense_mean):
    updates = make_updates(num_clients=4, rank=3, **SIZES[0])
    M, mean_A, mean_B = dense_mean(updates)
    adapter = aggregate(updates, method=FedExLora()).adapter
    assert relative(adapter.layers["q_proj"].A, mean_A) < 1e-14
    assert relative(adapter.layers["q_proj"].B, mean_B) < 1e-14
    change = adapter.base_change["q_proj"]
    assert change.rank == (4 - 1) * 3
    assert change.scaling == 1
    assert relative(change.B @ change.A, 2.0 * (M - mean_B @ mean_A)) < 1e-12


def test_flora_stacks_all_pairs_and_leaves_a_fresh_pair(make_updates, dense_mean):
    updates = make_updates(ranks=[3, 1, 2, 3], **SIZES[0])
    M, _, _ = dense_mean(updates)
    adapter = aggregate(updates, method=Flora()).adapter
    assert not adapter.layers["q_proj"].B.any()
    assert adapter.layers["q_proj"].A.any()
    assert adapter.base_change["q_proj"].rank == 3 + 1 + 2 + 3
    assert relative(adapter.base_change["q_proj"].B @ adapter.base_change["q_proj"].A, 2.0 * M) < 1e-14


@both
def test_a_base_change_written_into_the_adapter_acts_the_same(make_updates, whole_change, method):
    result = aggregate(make_updates(), method=method)
    inside = with_base_change_inside(result.adapter)
    assert not inside.base_change
    assert relative(whole_change(inside), whole_change(result)) < 1e-14


@both
@pytest.mark.parametrize("size", SIZES, ids=["wide", "narrow"])
@pytest.mark.parametrize(("dtype", "precision"), [(torch.float64, 1e-13), (torch.float32, 5e-6)])
def test_over_many_rounds_the_change_is_the_sum_of_all_and_its_rank_is_bounded(
    make_updates, method, size, dtype, precision
):
    reference, expected, ranks = None, torch.zeros(size["out_features"], size["in_features"]).double(), []
    for round in range(25):
        updates = make_updates(round, num_clients=3, rank=2, dtype=dtype, **size)
        alone = aggregate(updates, method=method).adapter.base_change["q_proj"]
        expected += alone.B.double() @ alone.A.double()
        reference = aggregate(updates, method=method, reference=reference).adapter
        change = reference.base_change["q_proj"]
        assert relative(change.B.double() @ change.A.double(), expected) < precision
        assert change.rank <= min(size.values())
        assert change.A.dtype == dtype
        ranks.append(change.rank)
    assert ranks[-1] == min(size.values())
    assert ranks[0] < ranks[-1] or size == SIZES[1]


def test_a_method_that_leaves_the_base_alone_hands_an_earlier_change_on(make_updates):
    start = aggregate(make_updates(0), method=Flora()).adapter
    result = aggregate(make_updates(1), method=FedIT(), reference=start)
    assert result.adapter.base_change["q_proj"] is start.base_change["q_proj"]


@both
def test_a_layer_without_updates_this_round_keeps_its_change(make_updates, method):
    def both_layers(adapter):
        return Adapter({"q_proj": adapter.layers["q_proj"], "v_proj": adapter.layers["q_proj"]})

    start = aggregate({name: both_layers(update) for name, update in make_updates(0).items()}, method=method).adapter
    result = aggregate(make_updates(1), method=method, reference=start).adapter
    assert torch.equal(result.layers["v_proj"].A, start.layers["v_proj"].A)
    assert torch.equal(result.base_change["v_proj"].A, start.base_change["v_proj"].A)
    assert torch.equal(result.base_change["v_proj"].B, start.base_change["v_proj"].B)
    assert result.base_change["q_proj"] is not start.base_change["q_proj"]


def test_changes_are_set_side_by_side_without_any_rounding_while_that_is_small():
    generator = torch.Generator().manual_seed(0)
    parts = [
        LoraLayer(torch.randn(2, 30, generator=generator), torch.randn(40, 2, generator=generator), 1.0)
        for _ in range(8)
    ]
    total = None
    for part in parts:
        total = accumulated(total, part)
    assert torch.equal(total.A, torch.cat([part.A for part in parts]))
    assert torch.equal(total.B, torch.cat([part.B for part in parts], 1))
    # 18 * (30 + 40) is more than 30 * 40, and the sum of nine such has rank 18.
    assert accumulated(total, parts[0]).rank == 16


@pytest.mark.parametrize("shape", [(6, 20, 9), (6, 3, 9), (40, 30, 30)])
def test_factors_of_a_low_numerical_rank_are_written_with_it(shape):
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(*size, dtype=torch.float64, generator=generator) for size in (shape[:2], shape[1:]))
    left[:, 2:] = left[:, :1]
    found_left, found_right = recompressed(left, right)
    assert (found_left.shape, found_right.shape) == ((shape[0], 2), (2, shape[2]))
    assert relative(found_left @ found_right, left @ right) < 1e-14


def test_factors_of_zero_have_rank_zero():
    left, right = recompressed(torch.zeros(5, 3), torch.ones(3, 4))
    assert (left.shape, right.shape) == ((5, 0), (0, 4))
