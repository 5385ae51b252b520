"""FlexLoRA and what every method sends to a client of a smaller rank, against dense singular value decompositions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlora.aggregation import FlexLora, aggregate
from fedlora.algebra.low_rank import aligned, best_product, projected, truncated

few = settings(derandomize=True, database=None, deadline=None, max_examples=20)
seeds = st.integers(0, 10_000)
CLIENTS = [[3] * 4, [3, 1, 2, 3], [3] * 2, [4] * 9]


def best(M, rank):
    U, S, Vh = torch.linalg.svd(M)
    kept = min(rank, len(S))
    return (U[:, :kept] * S[:kept]) @ Vh[:kept]


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


@few
@given(seeds, st.sampled_from(CLIENTS), st.sampled_from([1.0, 1e-2]))
def test_the_product_is_the_best_of_the_largest_rank(make_updates, dense_mean, uneven_p, seed, ranks, spread):
    updates = make_updates(seed, ranks=ranks, spread=spread)
    M, _, _ = dense_mean(updates, uneven_p(updates))
    result = aggregate(updates, weights=uneven_p(updates), method=FlexLora())
    layer = result.adapter.layers["q_proj"]
    assert layer.rank == max(ranks)
    assert relative(layer.B @ layer.A, best(M, layer.rank)) < 1e-12
    assert result.report.error_after == pytest.approx(result.report.floor, abs=1e-7)


@pytest.mark.parametrize(
    ("spread", "dtype", "iterations", "excess"),
    [
        # Above the error of the exact product, relative to the ideal update; clients that disagree are the hard case.
        (0.1, torch.float32, 0, 1e-2),
        (0.1, torch.float32, 2, 1e-6),
        (1.0, torch.float32, 0, 1e-1),
        (1.0, torch.float32, 2, 5e-3),
        (1.0, torch.float64, 20, 1e-6),
    ],
)
@pytest.mark.parametrize("ranks", [[4] * 10, [4, 2, 3] * 4], ids=["one rank", "mixed ranks"])
def test_sums_over_the_clients_come_as_close_to_the_best_product_as_they_say(
    make_updates, ranks, spread, dtype, iterations, excess
):
    updates = make_updates(ranks=ranks, spread=spread, out_features=96, in_features=128, dtype=dtype)
    exact = aggregate(updates, method=FlexLora())
    found = aggregate(updates, method=FlexLora(power_iterations=iterations))
    assert exact.report.floor <= found.report.error_after * (1 + 1e-9)
    assert found.report.error_after <= exact.report.error_after + excess
    assert torch.equal(
        found.adapter.layers["q_proj"].A,
        aggregate(updates, method=FlexLora(power_iterations=iterations)).adapter.layers["q_proj"].A,
    )


@few
@given(seeds, st.sampled_from(CLIENTS))
def test_both_factors_have_the_square_roots_of_the_singular_values(make_updates, dense_mean, seed, ranks):
    updates = make_updates(seed, ranks=ranks)
    M, _, _ = dense_mean(updates)
    layer = aggregate(updates, method=FlexLora()).adapter.layers["q_proj"]
    expected = torch.linalg.svdvals(M)[: layer.rank].sqrt()
    torch.testing.assert_close(torch.linalg.svdvals(layer.A), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.linalg.svdvals(layer.B), expected, rtol=1e-12, atol=1e-12)


@few
@given(seeds)
def test_no_rotation_brings_a_closer_to_its_mean(make_updates, dense_mean, seed):
    updates = make_updates(seed, spread=0.3)
    M, mean_A, _ = dense_mean(updates)
    layer = aggregate(updates, method=FlexLora()).adapter.layers["q_proj"]
    distance = (layer.A - mean_A).norm()
    unaligned_A, _ = best_product(M, torch.eye(9, dtype=torch.float64), 3)
    assert distance < (unaligned_A - mean_A).norm()
    assert distance < 0.6 * mean_A.norm()
    generator = torch.Generator().manual_seed(seed)
    for _ in range(20):
        turn, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=generator))
        assert distance <= (turn @ layer.A - mean_A).norm() + 1e-12


@few
@given(seeds)
def test_alignment_undoes_a_rotation_and_changes_no_product(seed):
    generator = torch.Generator().manual_seed(seed)
    A, B = (torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in ((3, 9), (12, 3)))
    turn, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=generator))
    found_A, found_B = aligned(turn @ A, B @ turn.T, to=A)
    assert relative(found_A, A) < 1e-12
    assert relative(found_B, B) < 1e-12


@few
@given(seeds, st.integers(1, 3))
def test_a_client_of_a_smaller_rank_gets_the_best_product_of_that_rank(make_updates, dense_mean, seed, rank):
    updates = make_updates(seed)
    M, _, _ = dense_mean(updates)
    layer = aggregate(updates, method=FlexLora()).adapter.layers["q_proj"]
    A, B = FlexLora().fit(layer.A, layer.B, rank)
    assert (A.shape, B.shape) == ((rank, 9), (12, rank))
    assert relative(B @ A, best(M, rank)) < 1e-12
    assert relative(B @ A, best(layer.B @ layer.A, rank)) < 1e-12


@pytest.mark.parametrize("shape", [(5, 2, 7), (5, 9, 7), (7, 5, 5), (1, 1, 1), (3, 2, 40)])
@pytest.mark.parametrize("rank", [1, 2, 6])
def test_the_best_product_takes_any_shape_and_pads_with_zeros(shape, rank):
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(shape[0], shape[1], dtype=torch.float64, generator=generator)
    right = torch.randn(shape[1], shape[2], dtype=torch.float64, generator=generator)
    A, B = best_product(left, right, rank)
    assert (A.shape, B.shape) == ((rank, shape[2]), (shape[0], rank))
    assert relative(B @ A, best(left @ right, rank)) < 1e-12
    assert not A[min(shape) :].any()
    assert not B[:, min(shape) :].any()


@few
@given(seeds, st.integers(1, 4), st.booleans())
def test_solving_b_again_for_the_first_rows_of_a_never_loses_to_cutting_both(seed, rank, is_singular):
    generator = torch.Generator().manual_seed(seed)
    A, B = (torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in ((5, 9), (12, 5)))
    if is_singular:
        A[1] = A[0]
        A[2] = 0
    cut_A, cut_B = truncated(A, B, rank)
    kept_A, solved_B = projected(A, B, rank)
    assert torch.equal(cut_A, A[:rank])
    assert torch.equal(cut_B, B[:, :rank])
    assert torch.equal(kept_A, A[:rank])
    assert (B @ A - solved_B @ kept_A).norm() <= (B @ A - cut_B @ cut_A).norm() * (1 + 1e-12)
    assert relative(solved_B @ kept_A, B @ A @ torch.linalg.pinv(kept_A, rtol=1e-10) @ kept_A) < 1e-7


def test_every_method_fits_its_result_to_a_smaller_rank(make_updates, any_method):
    layer = aggregate(make_updates(dtype=torch.float32), method=any_method).adapter.layers["q_proj"]
    for rank in (1, 2, 3):
        A, B = any_method.fit(layer.A, layer.B, rank)
        assert (A.shape, B.shape) == ((rank, 9), (12, rank))
        assert {A.dtype, B.dtype} == {torch.float32}
        if layer.B.any():
            whole = layer.B @ layer.A
            cut = layer.B[:, :rank] @ layer.A[:rank]
            assert (whole - B @ A).norm() <= (whole - cut).norm() + 1e-5 * whole.norm()
            if any_method.name.startswith("lora_fair") and rank < 3:
                assert (whole - B @ A).norm() < (whole - cut).norm()
        if not isinstance(any_method, FlexLora):
            assert torch.equal(A, layer.A[:rank])
    torch.testing.assert_close(B @ A, layer.B @ layer.A, rtol=1e-4, atol=1e-4)
