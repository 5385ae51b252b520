"""The two-sided correction: its dense formulas, its objective by sweep, and how near it comes to the floor."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlora.aggregation import FedIT, LoraFair, LoraFairTwoSided, aggregate

few = settings(derandomize=True, database=None, deadline=None, max_examples=15)
seeds = st.integers(0, 10_000)


def pair_of(updates, method, p=None):
    layer = aggregate(updates, weights=p, method=method, measure=False).adapter.layers["q_proj"]
    return layer.A, layer.B


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


def penalties(mean_A, mean_B, ridge):
    return ridge * mean_A.square().sum() / len(mean_A), ridge * mean_B.square().sum() / len(mean_A)


def objective(M, mean_A, mean_B, A, B, ridge):
    penalty_B, penalty_A = penalties(mean_A, mean_B, ridge)
    moved = penalty_B * (B - mean_B).square().sum() + penalty_A * (A - mean_A).square().sum()
    return (M - B @ A).square().sum() + moved


@few
@given(seeds, st.integers(1, 4), st.sampled_from([1e-3, 0.03, 1.0]), st.sampled_from([[3] * 4, [3, 1, 2, 3]]))
def test_each_sweep_is_the_dense_one(make_updates, dense_mean, uneven_p, seed, sweeps, ridge, ranks):
    updates = make_updates(seed, ranks=ranks)
    p = uneven_p(updates)
    M, mean_A, mean_B = dense_mean(updates, p)
    penalty_B, penalty_A = penalties(mean_A, mean_B, ridge)
    A, B, identity = mean_A, mean_B, torch.eye(3, dtype=torch.float64)
    for _ in range(sweeps):
        B = (M @ A.T + penalty_B * mean_B) @ torch.linalg.inv(A @ A.T + penalty_B * identity)
        A = torch.linalg.inv(B.T @ B + penalty_A * identity) @ (B.T @ M + penalty_A * mean_A)
    found_A, found_B = pair_of(updates, LoraFairTwoSided(ridge=ridge, sweeps=sweeps), p)
    assert relative(found_A, A) < 1e-9
    assert relative(found_B, B) < 1e-9


@few
@given(seeds, st.sampled_from([0.0, 1e-6, 0.03, 1.0, 100.0]))
def test_the_objective_never_rises_from_sweep_to_sweep(make_updates, dense_mean, seed, ridge):
    updates = make_updates(seed)
    M, mean_A, mean_B = dense_mean(updates)
    values = [float(objective(M, mean_A, mean_B, mean_A, mean_B, ridge))]
    for sweeps in (1, 2, 3, 5, 10):
        pair = pair_of(updates, LoraFairTwoSided(ridge=ridge, sweeps=sweeps))
        values.append(float(objective(M, mean_A, mean_B, *pair, ridge)))
    assert all(after <= before * (1 + 1e-12) for before, after in itertools.pairwise(values))
    assert values[1] < values[0]


@pytest.mark.parametrize("seed", range(5))
def test_the_gradient_vanishes_after_many_sweeps(make_updates, dense_mean, seed):
    updates = make_updates(seed, spread=0.5)
    M, mean_A, mean_B = dense_mean(updates)
    A, B = (factor.requires_grad_() for factor in pair_of(updates, LoraFairTwoSided(ridge=0.1, sweeps=800)))
    gradients = torch.autograd.grad(objective(M, mean_A, mean_B, A, B, 0.1), (A, B))
    assert max(float(gradient.abs().max()) for gradient in gradients) < 1e-10


@few
@given(seeds)
def test_the_gradient_of_the_factor_solved_last_vanishes_after_any_sweep(make_updates, dense_mean, seed):
    updates = make_updates(seed)
    M, mean_A, mean_B = dense_mean(updates)
    A, B = pair_of(updates, LoraFairTwoSided())
    A.requires_grad_()
    (gradient,) = torch.autograd.grad(objective(M, mean_A, mean_B, A, B, 0.03), A)
    assert float(gradient.abs().max()) < 1e-10


@pytest.mark.parametrize("spread", [0.1, 0.3])
def test_two_sweeps_come_within_five_percent_of_the_floor(make_updates, spread):
    for seed in range(10):
        updates = make_updates(seed, 5, out_features=40, in_features=48, rank=4, spread=spread)
        report = aggregate(updates, method=LoraFairTwoSided(ridge=1e-3)).report
        assert report.floor <= report.error_after <= 1.05 * report.floor
        assert report.error_after < report.error_before
        one_sided = aggregate(updates, method=LoraFair(ridge=1e-3)).report
        assert report.error_after < one_sided.error_after


def test_towards_an_infinite_ridge_the_result_is_fedit(make_updates):
    updates = make_updates()
    for ridge, tolerance in ((1e6, 1e-5), (1e12, 1e-11)):
        for found, expected in zip(
            pair_of(updates, LoraFairTwoSided(ridge=ridge)), pair_of(updates, FedIT()), strict=True
        ):
            assert relative(found, expected) < tolerance


@pytest.mark.parametrize("settings", [{"ridge": -1.0}, {"ridge": float("nan")}, {"sweeps": 0}])
def test_a_negative_ridge_and_no_sweep_are_refused(settings):
    with pytest.raises(ValueError, match="Input should be"):
        LoraFairTwoSided(**settings)
