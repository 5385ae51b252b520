"""LoRA-FAIR's correction against dense formulas, limits and invariants; in float64 unless said otherwise."""

import math
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlora.adapters import Adapter, LoraLayer
from fedlora.aggregation import FedIT, LoraFair, aggregate
from fedlora.aggregation.updates import LayerUpdates, centre

few = settings(derandomize=True, database=None, deadline=None, max_examples=20)
seeds = st.integers(0, 10_000)
ridges = st.sampled_from([0.0, 1e-9, 1e-3, 0.03, 1.0, 100.0])
sides = st.sampled_from(["A", "B"])
both_sides = pytest.mark.parametrize("corrects", ["A", "B"])


def pair_of(updates, method=None, **options):
    layer = aggregate(updates, method=method or LoraFair(), **options).adapter.layers["q_proj"]
    return layer.A, layer.B


def with_every(updates, part, change):
    """Return the updates with `change` applied to A, or B, of each client."""
    return {
        client: Adapter(
            {path: replace(pair, **{part: change(getattr(pair, part))}) for path, pair in adapter.layers.items()}
        )
        for client, adapter in updates.items()
    }


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


def dense_pair(M, mean_A, mean_B, *, ridge, corrects):
    """Return A and B by ridge regression on the full matrices."""
    E, identity = M - mean_B @ mean_A, torch.eye(mean_A.shape[0], dtype=torch.float64)
    if corrects == "B":
        G = mean_A @ mean_A.T
        return mean_A, mean_B + E @ mean_A.T @ torch.linalg.inv(G + ridge * G.trace() / len(G) * identity)
    G = mean_B.T @ mean_B
    return mean_A + torch.linalg.inv(G + ridge * G.trace() / len(G) * identity) @ mean_B.T @ E, mean_B


@few
@given(seeds, st.integers(2, 6), st.integers(1, 5), st.sampled_from([1e-6, 1e-3, 0.03, 1.0, 100.0]), sides)
def test_the_factored_correction_equals_the_dense_one(
    make_updates, dense_mean, uneven_p, seed, num_clients, rank, ridge, corrects
):
    updates = make_updates(seed, num_clients, rank=rank)
    expected = dense_pair(*dense_mean(updates, uneven_p(updates)), ridge=ridge, corrects=corrects)
    found = pair_of(updates, LoraFair(ridge=ridge, corrects=corrects), weights=uneven_p(updates))
    for one, other in zip(found, expected, strict=True):
        assert relative(one, other) < 1e-9


@few
@given(seeds, st.sampled_from([1e-3, 0.03, 1.0]), sides)
def test_the_gradient_of_the_dense_objective_vanishes_at_the_solution(
    make_updates, dense_mean, uneven_p, seed, ridge, corrects
):
    updates = make_updates(seed)
    M, mean_A, mean_B = dense_mean(updates, uneven_p(updates))
    A, B = pair_of(updates, LoraFair(ridge=ridge, corrects=corrects), weights=uneven_p(updates))
    mean, kept = (mean_B, mean_A) if corrects == "B" else (mean_A, mean_B)
    moved = (B if corrects == "B" else A).requires_grad_()
    penalty = ridge * kept.square().sum() / A.shape[0]
    objective = (M - B @ A).square().sum() + penalty * (moved - mean).square().sum()
    (gradient,) = torch.autograd.grad(objective, moved)
    assert gradient.abs().max() < 1e-10


@few
@given(seeds, sides)
def test_towards_an_infinite_ridge_the_result_is_fedit(make_updates, seed, corrects):
    updates = make_updates(seed)
    A, B = pair_of(updates, FedIT())
    for ridge, tolerance in ((1e6, 1e-5), (1e12, 1e-11), (sys.float_info.max, 1e-15)):
        fair_A, fair_B = pair_of(updates, LoraFair(ridge=ridge, corrects=corrects))
        assert relative(fair_A, A) <= (tolerance if corrects == "A" else 0)
        assert relative(fair_B, B) <= (tolerance if corrects == "B" else 0)


@few
@given(seeds, ridges, sides)
def test_the_residual_lies_between_the_best_rank_r_product_and_the_plain_mean(
    make_updates, dense_mean, uneven_p, seed, ridge, corrects
):
    updates = make_updates(seed)
    M, mean_A, mean_B = dense_mean(updates, uneven_p(updates))
    A, B = pair_of(updates, LoraFair(ridge=ridge, corrects=corrects), weights=uneven_p(updates))
    residual = (M - B @ A).norm()
    floor = torch.linalg.svdvals(M)[A.shape[0] :].square().sum().sqrt()
    assert floor <= residual * (1 + 1e-12)
    assert residual <= (M - mean_B @ mean_A).norm() * (1 + 1e-12)


@few
@given(seeds)
def test_at_ridge_zero_the_product_is_the_ideal_update_projected_on_the_other_mean(
    make_updates, dense_mean, uneven_p, seed
):
    updates = make_updates(seed)
    M, mean_A, mean_B = dense_mean(updates, uneven_p(updates))
    A, B = pair_of(updates, LoraFair(ridge=0), weights=uneven_p(updates))
    assert relative(B @ A, M @ torch.linalg.pinv(mean_A) @ mean_A) < 1e-11
    A, B = pair_of(updates, LoraFair(ridge=0, corrects="A"), weights=uneven_p(updates))
    assert relative(B @ A, mean_B @ torch.linalg.pinv(mean_B) @ M) < 1e-11


@few
@given(seeds, ridges, st.sampled_from([1e-6, 1e-2, 3.0, 1e5]), sides)
def test_a_rescaled_kept_factor_gives_the_same_correction(make_updates, seed, ridge, factor, corrects):
    kept = "A" if corrects == "B" else "B"
    updates = make_updates(seed)
    method = LoraFair(ridge=ridge, corrects=corrects)
    pair = dict(zip("AB", pair_of(updates, method), strict=True))
    scaled = dict(zip("AB", pair_of(with_every(updates, kept, lambda part: factor * part), method), strict=True))
    assert relative(scaled[kept], factor * pair[kept]) < 1e-14
    assert relative(scaled[corrects], pair[corrects]) < 1e-10


@few
@given(seeds, ridges)
def test_correcting_a_is_correcting_b_of_the_transposed_layer(make_updates, seed, ridge):
    updates = make_updates(seed)
    transposed = {
        client: Adapter({path: LoraLayer(pair.B.T, pair.A.T, 2.0) for path, pair in adapter.layers.items()})
        for client, adapter in updates.items()
    }
    A, B = pair_of(updates, LoraFair(ridge=ridge, corrects="A"))
    other_A, other_B = pair_of(transposed, LoraFair(ridge=ridge))
    assert relative(A, other_B.T) < 1e-12
    assert relative(B, other_A.T) < 1e-12


@pytest.mark.parametrize("ridge", [0.0, 1e-12, 1e-6, 0.03])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@both_sides
def test_a_kept_factor_with_repeated_rows_gives_a_finite_correction(make_updates, corrects, dtype, ridge):
    updates = make_updates(rank=4, dtype=dtype)
    if corrects == "B":
        updates = with_every(updates, "A", lambda A: A[:1].expand_as(A))
    else:
        updates = with_every(updates, "B", lambda B: B[:, :1].expand_as(B))
    result = aggregate(updates, method=LoraFair(ridge=ridge, corrects=corrects))
    layer = result.adapter.layers["q_proj"]
    assert layer.A.norm() < 100
    assert layer.B.norm() < 100
    assert result.report.error_after <= result.report.error_before * (1 + 1e-6)


def test_a_singular_a_at_ridge_zero_still_projects_the_ideal_update(make_updates, dense_mean):
    updates = with_every(make_updates(rank=4), "A", lambda A: A[[0, 1, 2, 0]])
    M, mean_A, _ = dense_mean(updates)
    A, B = pair_of(updates, LoraFair(ridge=0))
    assert relative(B @ A, M @ torch.linalg.pinv(mean_A, rtol=1e-10) @ mean_A) < 1e-7


@pytest.mark.parametrize("ranks", [[8] * 10, [8, 4] * 5], ids=["one rank", "mixed ranks"])
@pytest.mark.parametrize("spread", [1e-2, 1e-3, 1e-4])
def test_float32_keeps_the_error_of_close_clients(make_updates, dense_mean, ranks, spread):
    updates = make_updates(ranks=ranks, out_features=96, in_features=128, spread=spread, dtype=torch.float32)
    M, mean_A, mean_B = dense_mean(updates)
    N = (M - mean_B @ mean_A) @ mean_A.T

    pairs = [(adapter.layers["q_proj"].A, adapter.layers["q_proj"].B) for adapter in updates.values()]
    largest = max(pairs, key=lambda pair: len(pair[0]))
    update = centre(LayerUpdates((0.1,) * 10, tuple(ranks), pairs.__getitem__, *map(torch.zeros_like, largest)))
    P, Q = update.stacked_deviations()
    assert P.dtype == Q.dtype == torch.float32
    assert relative(P @ (Q @ update.mean_A.T), N) < 1e-4
    one_by_one = sum(p * dB @ (dA @ update.mean_A.T) for p, dA, dB in update.deviations())
    assert relative(one_by_one, N) < 1e-4


@pytest.mark.parametrize("ranks", [[8] * 10, [8, 4] * 5], ids=["one rank", "mixed ranks"])
@pytest.mark.parametrize("spread", [1e-1, 1e-2, 1e-3, 1e-4])
@both_sides
def test_float32_corrects_close_clients_to_the_last_digit_of_the_result(
    make_updates, dense_mean, ranks, spread, corrects
):
    updates = make_updates(ranks=ranks, out_features=96, in_features=128, spread=spread, dtype=torch.float32)
    M, mean_A, mean_B = dense_mean(updates)
    expected = dense_pair(M, mean_A, mean_B, ridge=0.03, corrects=corrects)
    found = pair_of(updates, LoraFair(corrects=corrects))
    for one, other, mean in zip(found, expected, (mean_A, mean_B), strict=True):
        # Half of float32's last digit, twice: once in the mean, once in the sum.
        assert (one - other).norm() <= 1e-5 * (other - mean).norm() + 6e-8 * other.norm()


@pytest.mark.parametrize("ridge", [-1e-9, math.inf, math.nan])
def test_a_ridge_that_is_negative_or_not_finite_is_refused(ridge):
    with pytest.raises(ValueError, match="Input should be"):
        LoraFair(ridge=ridge)


def test_a_side_that_is_none_is_refused():
    with pytest.raises(ValueError, match="Input should be 'A' or 'B'"):
        LoraFair(corrects="both")
