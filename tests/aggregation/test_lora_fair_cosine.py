"""The cosine objective's exact solution against its gradient, other solvers, its limits and its fallbacks."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlora.adapters import Adapter, LoraLayer
from fedlora.aggregation import LoraFair, LoraFairCosine, aggregate
from fedlora.common.errors import AdapterError

few = settings(derandomize=True, database=None, deadline=None, max_examples=12)
seeds = st.integers(0, 10_000)


def solved(updates, p=None, **options):
    """Return the layer's A, B and the report's note."""
    result = aggregate(updates, weights=p, method=LoraFairCosine(**options))
    layer = result.adapter.layers["q_proj"]
    return layer.A, layer.B, result.report.layers["q_proj"].note


def objective(M, mean_A, mean_B, B, penalty):
    X = B @ mean_A
    return 1 - (M * X).sum() / (M.norm() * X.norm()) + penalty * (B - mean_B).square().sum()


def gradient_over_its_terms(M, mean_A, mean_B, B, penalty):
    """Return the gradient's norm, relative to that of the larger of its two terms."""
    B = B.clone().requires_grad_()
    (whole,) = torch.autograd.grad(objective(M, mean_A, mean_B, B, penalty), B)
    (cosine,) = torch.autograd.grad(objective(M, mean_A, mean_B, B, 0.0), B)
    # A cosine's gradient is a difference of two terms of about this size.
    size = max(float(cosine.norm()), float(mean_A.norm() / (B.detach() @ mean_A).norm()))
    return float(whole.norm()) / size


def with_rows_down_to_a_hundredth(update):
    layer = update.layers["q_proj"]
    sizes = torch.logspace(0, -2, layer.rank, dtype=torch.float64)[:, None]
    return Adapter({"q_proj": replace(layer, A=sizes * layer.A)})


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("num_layers", [70, pytest.param(200, marks=pytest.mark.slow)])
def test_a_sweep_of_random_layers_all_converge(make_updates, dense_mean, uneven_p, num_layers):
    fallbacks = 0
    generator = torch.Generator().manual_seed(1)
    for seed in range(num_layers):
        num_clients, rank = (int(torch.randint(low, 7, (), generator=generator)) for low in (2, 1))
        penalty = 10 ** float(torch.empty(()).uniform_(-6, 2, generator=generator))
        spread = 10 ** float(torch.empty(()).uniform_(-2, 1, generator=generator))
        updates = make_updates(seed, num_clients, rank=rank, spread=spread)
        if seed % 2:
            # Rows of very different size give the objective several stationary points.
            updates = {name: with_rows_down_to_a_hundredth(update) for name, update in updates.items()}
        M, mean_A, mean_B = dense_mean(updates, uneven_p(updates))
        A, B, note = solved(updates, uneven_p(updates), penalty=penalty)
        torch.testing.assert_close(A, mean_A, rtol=1e-13, atol=1e-13)
        points_away = float((M * (mean_B @ mean_A)).sum()) <= 0
        least_squares = M @ torch.linalg.pinv(mean_A)
        if note.startswith("least squares"):
            assert float((least_squares * mean_B).sum()) <= 0
            assert relative(B, least_squares) < 1e-6
        else:
            assert bool(note) == points_away
        fallbacks += bool(note)
        if not note:
            assert gradient_over_its_terms(M, mean_A, mean_B, B, penalty) < 1e-9, (seed, penalty, spread)
            before, after = (float(objective(M, mean_A, mean_B, each, penalty)) for each in (mean_B, B))
            assert after <= before + 1e-12
    assert fallbacks < num_layers / 5


@few
@given(seeds, st.sampled_from([1e-4, 1e-2, 1.0]), st.sampled_from([0.1, 1.0, 3.0]))
def test_no_other_start_of_a_long_descent_finds_less(make_updates, dense_mean, seed, penalty, spread):
    updates = make_updates(seed, spread=spread)
    M, mean_A, mean_B = dense_mean(updates)
    _, found, note = solved(updates, penalty=penalty)
    if note:
        return
    least_squares = mean_B + (M - mean_B @ mean_A) @ torch.linalg.pinv(mean_A)
    for start in (mean_B, least_squares, found):
        B = start.clone().requires_grad_()
        solver = torch.optim.LBFGS(
            [B], max_iter=400, tolerance_grad=1e-13, tolerance_change=1e-16, line_search_fn="strong_wolfe"
        )

        def loss(B=B, solver=solver):
            solver.zero_grad()
            value = objective(M, mean_A, mean_B, B, penalty)
            value.backward()
            return value

        solver.step(loss)
        least = float(objective(M, mean_A, mean_B, B.detach(), penalty))
        assert float(objective(M, mean_A, mean_B, found, penalty)) <= least + 1e-10


@few
@given(seeds)
def test_towards_no_penalty_b_is_a_multiple_of_the_least_squares_solution_no_longer_than_the_mean(
    make_updates, dense_mean, seed
):
    updates = make_updates(seed, spread=0.5)
    M, mean_A, mean_B = dense_mean(updates)
    expected = M @ torch.linalg.pinv(mean_A)
    for penalty, precision in ((0.0, 1e-10), (1e-10, 1e-4)):
        _, B, note = solved(updates, penalty=penalty)
        assert not note
        factor = float((B * expected).sum() / expected.square().sum())
        assert factor > 0
        assert relative(B, factor * expected) < precision
        assert B.norm() <= mean_B.norm() * (1 + 1e-9)


@few
@given(seeds)
def test_a_large_penalty_gives_the_mean(make_updates, dense_mean, seed):
    updates = make_updates(seed, spread=0.5)
    _, _, mean_B = dense_mean(updates)
    for penalty, precision in ((1e2, 1e-3), (1e6, 1e-7), (1e300, 1e-13)):
        assert relative(solved(updates, penalty=penalty)[1], mean_B) < precision


@few
@given(seeds, st.sampled_from([0.0, 1e-8, 1e-3, 0.01, 1.0, 1e6]), st.sampled_from([0.1, 1.0]))
def test_with_its_scale_repaired_the_residual_lies_between_the_floor_and_the_plain_mean(
    make_updates, dense_mean, uneven_p, seed, penalty, spread
):
    updates = make_updates(seed, spread=spread)
    M, mean_A, mean_B = dense_mean(updates, uneven_p(updates))
    A, B, _ = solved(updates, uneven_p(updates), penalty=penalty, repairs_scale=True)
    residual = (M - B @ A).norm()
    assert residual <= (M - mean_B @ mean_A).norm() * (1 + 1e-10)
    assert residual >= torch.linalg.svdvals(M)[A.shape[0] :].norm() * (1 - 1e-10)


@few
@given(seeds, st.sampled_from([1e-3, 0.01, 1.0]))
def test_repairing_the_scale_changes_nothing_but_the_scale(make_updates, dense_mean, seed, penalty):
    updates = make_updates(seed, spread=0.5)
    M, mean_A, _ = dense_mean(updates)
    _, plain, _ = solved(updates, penalty=penalty)
    _, repaired, _ = solved(updates, penalty=penalty, repairs_scale=True)
    X = plain @ mean_A
    assert relative(repaired, float((M * X).sum() / X.square().sum()) * plain) < 1e-10


def test_the_plain_cosine_does_not_see_that_averaging_shrinks_the_product(make_updates):
    (common,) = make_updates(num_clients=1).values()
    layer = common.layers["q_proj"]
    # All three products are the same, that of the means is a ninth of it.
    flipped = replace(common, layers={"q_proj": replace(layer, A=-layer.A, B=-layer.B)})
    updates = {"a": common, "b": common, "c": flipped}
    plain = aggregate(updates, method=LoraFairCosine()).report
    repaired = aggregate(updates, method=LoraFairCosine(repairs_scale=True)).report
    assert plain.error_after == pytest.approx(plain.error_before) == pytest.approx(8 / 9)
    assert repaired.error_after < 1e-6


@pytest.mark.parametrize("solver", ["exact", "sgd"])
@pytest.mark.parametrize("penalty", [0.0, 0.01])
def test_means_that_point_away_from_the_update_are_returned_with_a_note(solver, penalty):
    pairs = {"a": ([[3.0, 0.0]], [[1.0], [0.5]]), "b": ([[-1.0, 1.0]], [[-3.0], [0.2]])}
    updates = {
        name: Adapter({"q_proj": LoraLayer(torch.tensor(A), torch.tensor(B), 1.0)}) for name, (A, B) in pairs.items()
    }
    A, B, note = solved(updates, penalty=penalty, solver=solver)
    assert note == "the plain mean: it does not point towards the update"
    torch.testing.assert_close(A, torch.tensor([[1.0, 0.5]]))
    torch.testing.assert_close(B, torch.tensor([[-1.0], [0.35]]))


@pytest.mark.parametrize("penalty", [0.0, 0.01])
def test_an_update_of_zero_is_returned_as_it_is_with_a_note(make_updates, penalty):
    updates = {
        name: Adapter({"q_proj": replace(update.layers["q_proj"], B=torch.zeros(12, 3, dtype=torch.float64))})
        for name, update in make_updates().items()
    }
    _, B, note = solved(updates, penalty=penalty)
    assert note.startswith("the plain mean")
    assert not B.any()


@pytest.mark.parametrize("penalty", [0.0, 1e-12, 1e-3])
def test_a_solution_never_points_away_from_the_update_and_never_shrinks_to_nothing(penalty, make_updates, dense_mean):
    num_turned = 0
    for seed in range(100):
        updates = make_updates(seed, 2, rank=4, out_features=5, in_features=5, spread=3.0)
        M, mean_A, mean_B = dense_mean(updates)
        least_squares = M @ torch.linalg.pinv(mean_A)
        A, B, note = solved(updates, penalty=penalty)
        if float((M * (mean_B @ mean_A)).sum()) > 0:
            # Here the nearest multiple of the least-squares solution is a negative one.
            is_turned = float((least_squares * mean_B).sum()) < 0
            num_turned += is_turned
            assert penalty > 0 or note.startswith("least squares") == is_turned
            assert float((M * (B @ A)).sum()) > 0, (seed, note)
            assert B.norm() > 0.01 * mean_B.norm(), (seed, note)
    assert num_turned > 0


def test_values_whose_squares_overflow_are_not_mistaken_for_an_update_of_zero(make_updates):
    updates = {
        name: Adapter({"q_proj": replace(update.layers["q_proj"], A=update.layers["q_proj"].A * 1e25)})
        for name, update in make_updates(dtype=torch.float32, spread=0.5).items()
    }
    with pytest.raises(AdapterError, match="q_proj: values so large that their products overflow"):
        solved(updates)


def test_sgd_moves_towards_the_exact_solution(make_updates, dense_mean):
    updates = make_updates(spread=0.5)
    M, mean_A, mean_B = dense_mean(updates)
    _, exact, _ = solved(updates)
    left = [
        float((solved(updates, solver="sgd", steps=steps)[1] - exact).norm() / (mean_B - exact).norm())
        for steps in (0, 30, 300, 1000)
    ]
    assert left[0] == pytest.approx(1.0)
    assert left[0] > left[1] > left[2] > left[3]
    assert objective(M, mean_A, mean_B, exact, 0.01) < objective(M, mean_A, mean_B, mean_B, 0.01)


def test_sgd_starts_from_the_same_noise_each_time_and_of_the_size_asked_for(make_updates, dense_mean):
    updates = make_updates()
    _, _, mean_B = dense_mean(updates)
    noise = solved(updates, solver="sgd", steps=0, start=0.5)[1] - mean_B
    assert torch.equal(noise, solved(updates, solver="sgd", steps=0, start=0.5)[1] - mean_B)
    assert noise.square().mean().sqrt() == pytest.approx(0.5, rel=0.3)
    assert relative(solved(updates, solver="sgd", steps=0, start=0.1)[1] - mean_B, noise / 5) < 1e-12


@pytest.mark.parametrize(("axis", "dim"), [("rows", 1), ("columns", 0)])
def test_sgd_takes_the_mean_cosine_along_the_axis_asked_for(make_updates, dense_mean, axis, dim):
    updates = make_updates()
    M, mean_A, mean_B = dense_mean(updates)
    expected = mean_B
    for _ in range(3):
        B = expected.clone().requires_grad_()
        loss = 1 - torch.cosine_similarity(M, B @ mean_A, dim=dim).mean() + 0.5 * (B - mean_B).square().sum()
        expected = expected - 0.1 * torch.autograd.grad(loss, B)[0]
    found = solved(updates, solver="sgd", steps=3, axis=axis, learning_rate=0.1, penalty=0.5)[1]
    assert relative(found - mean_B, expected - mean_B) < 1e-9


def test_at_a_moderate_penalty_it_turns_b_as_least_squares_does(make_updates):
    updates = make_updates(spread=0.5)
    _, B, _ = solved(updates, penalty=1e-8, repairs_scale=True)
    fair = aggregate(updates, method=LoraFair(ridge=0)).adapter.layers["q_proj"].B
    assert relative(B, fair) < 1e-3


@pytest.mark.parametrize("settings", [{"penalty": -1.0}, {"learning_rate": math.nan}, {"start": -0.1}, {"steps": -1}])
def test_negative_settings_are_refused(settings):
    with pytest.raises(ValueError, match="Input should be"):
        LoraFairCosine(**settings)


@pytest.mark.parametrize(("name", "value"), [("solver", "adam"), ("axis", "diagonal")])
def test_unknown_words_are_refused(name, value):
    with pytest.raises(ValueError, match=rf"{name}\n *Input should be"):
        LoraFairCosine(**{name: value})
