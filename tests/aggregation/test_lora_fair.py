"""LoRA-FAIR's correction against dense formulas, limits and invariants; in float64 unless said otherwise."""

import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlora.adapters import Adapter, LoraLayer
from fedlora.aggregation import FedIT, LoraFair, aggregate
from fedlora.aggregation.centring import centre

few = settings(derandomize=True, database=None, deadline=None, max_examples=20)
seeds = st.integers(0, 10_000)
ridges = st.sampled_from([0.0, 1e-9, 1e-3, 0.03, 1.0, 100.0])


def pair_of(updates, method=None, **options):
    layer = aggregate(updates, method=method or LoraFair(), **options).adapter.layers["q_proj"]
    return layer.A, layer.B


def with_every_a(updates, change):
    """Return the updates with `change` applied to each client's A."""
    return {
        client: Adapter(
            {path: LoraLayer(change(pair.A), pair.B, pair.scaling) for path, pair in adapter.layers.items()}
        )
        for client, adapter in updates.items()
    }


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


@few
@given(seeds, st.integers(2, 6), st.integers(1, 5), st.sampled_from([1e-6, 1e-3, 0.03, 1.0, 100.0]))
def test_the_factored_correction_equals_the_dense_one(
    make_updates, dense_mean, uneven_p, seed, num_clients, rank, ridge
):
    updates = make_updates(seed, num_clients, rank=rank)
    M, mean_A, mean_B = dense_mean(updates, uneven_p(updates))
    G = mean_A @ mean_A.T
    regularised = G + ridge * G.trace() / rank * torch.eye(rank, dtype=torch.float64)
    expected = mean_B + (M - mean_B @ mean_A) @ mean_A.T @ torch.linalg.inv(regularised)
    A, B = pair_of(updates, LoraFair(ridge=ridge), weights=uneven_p(updates))
    assert relative(A, mean_A) < 1e-14
    assert relative(B, expected) < 1e-9


@few
@given(seeds, st.sampled_from([1e-3, 0.03, 1.0]))
def test_the_gradient_of_the_dense_objective_vanishes_at_the_solution(make_updates, dense_mean, uneven_p, seed, ridge):
    updates = make_updates(seed)
    M, mean_A, mean_B = dense_mean(updates, uneven_p(updates))
    _, B = pair_of(updates, LoraFair(ridge=ridge), weights=uneven_p(updates))
    dB = (B - mean_B).requires_grad_()
    penalty = ridge * (mean_A @ mean_A.T).trace() / mean_A.shape[0]
    objective = (M - (mean_B + dB) @ mean_A).square().sum() + penalty * dB.square().sum()
    (gradient,) = torch.autograd.grad(objective, dB)
    assert gradient.abs().max() < 1e-10


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("ridge", [0.0, 0.03])
def test_one_client_returns_that_client_exactly(make_updates, dtype, ridge):
    updates = make_updates(num_clients=1, dtype=dtype)
    result = aggregate(updates, weights={"client-00": 7.0}, method=LoraFair(ridge=ridge))
    (expected,) = (adapter.layers["q_proj"] for adapter in updates.values())
    found = result.adapter.layers["q_proj"]
    assert torch.equal(found.A, expected.A.to(found.A.dtype))
    assert torch.equal(found.B, expected.B.to(found.B.dtype))
    assert result.report.error_before == result.report.error_after == result.report.correction == 0


@pytest.mark.parametrize("num_clients", [2, 3, 7, 10])
def test_equal_clients_need_no_correction(make_updates, num_clients):
    (common,) = make_updates(num_clients=1).values()
    result = aggregate({f"client-{index}": common for index in range(num_clients)})
    assert relative(result.adapter.layers["q_proj"].B, common.layers["q_proj"].B) < 1e-15
    assert result.report.correction < 1e-15


@pytest.mark.parametrize("num_clients", [3, 7, 10])
def test_equal_float32_clients_are_returned_exactly(make_updates, num_clients):
    (common,) = make_updates(num_clients=1, dtype=torch.float32).values()
    result = aggregate({f"client-{index}": common for index in range(num_clients)})
    found, expected = result.adapter.layers["q_proj"], common.layers["q_proj"]
    assert torch.equal(found.A, expected.A)
    assert torch.equal(found.B, expected.B)
    assert result.report.error_before == result.report.correction == 0


@few
@given(seeds)
def test_towards_an_infinite_ridge_the_result_is_fedit(make_updates, seed):
    updates = make_updates(seed)
    A, B = pair_of(updates, FedIT())
    for ridge, tolerance in ((1e6, 1e-5), (1e12, 1e-11), (sys.float_info.max, 1e-15)):
        fair_A, fair_B = pair_of(updates, LoraFair(ridge=ridge))
        assert torch.equal(fair_A, A)
        assert relative(fair_B, B) < tolerance


@few
@given(seeds, ridges)
def test_the_residual_lies_between_the_best_rank_r_product_and_the_plain_mean(
    make_updates, dense_mean, uneven_p, seed, ridge
):
    updates = make_updates(seed)
    M, mean_A, mean_B = dense_mean(updates, uneven_p(updates))
    A, B = pair_of(updates, LoraFair(ridge=ridge), weights=uneven_p(updates))
    residual = (M - B @ A).norm()
    floor = torch.linalg.svdvals(M)[A.shape[0] :].square().sum().sqrt()
    assert floor <= residual * (1 + 1e-12)
    assert residual <= (M - mean_B @ mean_A).norm() * (1 + 1e-12)


@few
@given(seeds)
def test_at_ridge_zero_the_product_is_the_ideal_update_on_the_row_space_of_mean_a(
    make_updates, dense_mean, uneven_p, seed
):
    updates = make_updates(seed)
    M, mean_A, _ = dense_mean(updates, uneven_p(updates))
    A, B = pair_of(updates, LoraFair(ridge=0), weights=uneven_p(updates))
    assert relative(B @ A, M @ torch.linalg.pinv(mean_A) @ mean_A) < 1e-11


@few
@given(seeds, ridges, st.sampled_from([1e-6, 1e-2, 3.0, 1e5]))
def test_a_rescaled_a_gives_the_same_correction(make_updates, seed, ridge, factor):
    updates = make_updates(seed)
    A, B = pair_of(updates, LoraFair(ridge=ridge))
    scaled_A, scaled_B = pair_of(with_every_a(updates, lambda A: factor * A), LoraFair(ridge=ridge))
    assert relative(scaled_A, factor * A) < 1e-14
    assert relative(scaled_B, B) < 1e-10


def repeat_first_row(A):
    return A[:1].expand_as(A).clone()


def zero_last_row(A):
    return torch.cat([A[:-1], torch.zeros_like(A[-1:])])


@pytest.mark.parametrize("ridge", [0.0, 1e-12, 1e-6, 0.03])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("change", [repeat_first_row, zero_last_row, torch.zeros_like])
def test_a_singular_a_gives_a_finite_correction_no_worse_than_the_mean(make_updates, change, dtype, ridge):
    updates = with_every_a(make_updates(rank=4, dtype=dtype), change)
    result = aggregate(updates, method=LoraFair(ridge=ridge))
    B = result.adapter.layers["q_proj"].B
    assert B.isfinite().all()
    assert B.norm() < 100
    assert result.report.error_after <= result.report.error_before * (1 + 1e-6)


def test_a_singular_a_at_ridge_zero_still_projects_the_ideal_update(make_updates, dense_mean):
    updates = with_every_a(make_updates(rank=4), repeat_first_row)
    M, mean_A, _ = dense_mean(updates)
    A, B = pair_of(updates, LoraFair(ridge=0))
    assert relative(B @ A, M @ torch.linalg.pinv(mean_A) @ mean_A) < 1e-7


@pytest.mark.parametrize("spread", [1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("ridge", [0.0, 0.03])
def test_float32_keeps_the_correction_of_close_clients(make_updates, dense_mean, spread, ridge):
    updates = make_updates(num_clients=10, out_features=96, in_features=128, rank=8, spread=spread, dtype=torch.float32)
    M, mean_A, mean_B = dense_mean(updates)
    G = mean_A @ mean_A.T
    regularised = G + ridge * G.trace() / 8 * torch.eye(8, dtype=torch.float64)
    expected = (M - mean_B @ mean_A) @ mean_A.T @ torch.linalg.inv(regularised)

    update = centre([adapter.layers["q_proj"] for adapter in updates.values()], p=[0.1] * 10)
    _, B = LoraFair(ridge=ridge).combine(update)
    assert update.P.dtype == torch.float32
    assert relative(B - update.mean_B, expected) < 1e-3
    report = aggregate(updates, method=LoraFair(ridge=ridge)).report
    assert report.correction == pytest.approx(float(expected.norm() / mean_B.norm()), rel=1e-3)


@pytest.mark.parametrize("ridge", [-1e-9, math.inf, math.nan])
def test_a_ridge_that_is_negative_or_not_finite_is_refused(ridge):
    with pytest.raises(ValueError, match="expected a finite number that is not negative"):
        LoraFair(ridge=ridge)
