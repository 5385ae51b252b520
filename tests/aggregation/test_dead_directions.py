"""No direction of a pair is dead in both factors: a client could not train it, whatever its data."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlora.adapters import Adapter, LoraLayer
from fedlora.aggregation import METHODS, FedIT, FlexLora, LoraFair, LoraFairCosine, LoraFairTwoSided, aggregate
from fedlora.algebra.dead_directions import brought_to_life, dead_directions
from fedlora.algebra.low_rank import projected, truncated

few = settings(derandomize=True, database=None, deadline=None, max_examples=8)
seeds = st.integers(0, 10_000)


def rows_of(A, B):
    """Return both factors side by side (rank, in_features + out_features), each of norm 1 if it is not zero."""
    factors = [factor.double() / max(float(factor.double().norm()), 1e-300) for factor in (A, B.T)]
    return torch.cat(factors, 1)


def is_alive(A, B):
    """Return whether in every direction the gradient of A or that of B is a share of the factor's, not rounding."""
    return bool(torch.linalg.svdvals(rows_of(A, B))[-1] > 1e-4)


def relative(found, expected):
    return float((found - expected).norm() / expected.norm()) if expected.any() else float(found.norm())


def untrained(A, B):
    return A, torch.zeros_like(B)


def untrained_embedding(A, B):
    return torch.zeros_like(A), B


def of_rank_one(A, B):
    return A, B[:, :1] @ torch.ones_like(B[:1])


def of_rank_one_in_a(A, B):
    return torch.ones_like(A[:, :1]) @ A[:1], B


def empty_rows(A, B):
    return torch.cat([A[:-2].clone(), torch.zeros_like(A[-2:])]), B


def dead_rows(A, B):
    return empty_rows(A, B)[0], empty_rows(B.T, A)[0].T.contiguous()


def nothing(A, B):
    return torch.zeros_like(A), torch.zeros_like(B)


KINDS = [untrained, untrained_embedding, of_rank_one, of_rank_one_in_a, empty_rows, dead_rows, nothing]
VARIANTS = [
    LoraFair(ridge=0),
    LoraFair(corrects="A"),
    LoraFairCosine(penalty=0),
    LoraFairCosine(repairs_scale=True),
    LoraFairTwoSided(ridge=0),
]


@pytest.mark.parametrize("method", [*(make() for make in METHODS.values()), *VARIANTS], ids=str)
@settings(few, max_examples=40)
@given(
    seeds,
    st.sampled_from(KINDS),
    st.sampled_from([[4] * 3, [4, 3, 4], [4]]),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    st.sampled_from([1.0, 1e-8, 1e8]),
)
def test_every_method_and_every_fit_leave_a_gradient_in_every_direction(
    make_updates, method, seed, kind, ranks, dtype, scale
):
    updates = {}
    for name, update in make_updates(seed, ranks=ranks, dtype=dtype).items():
        A, B = kind(update.layers["q_proj"].A, update.layers["q_proj"].B)
        updates[name] = Adapter({"q_proj": LoraLayer(A, scale * B, 2.0)})
    layer = aggregate(updates, method=method).adapter.layers["q_proj"]
    assert is_alive(layer.A, layer.B)
    for rank in (1, 2, 3):
        assert is_alive(*method.fit(layer.A, layer.B, rank))


@few
@given(seeds, st.integers(1, 4), st.sampled_from([torch.float64, torch.float32]), st.sampled_from([1.0, 1e-6]))
def test_flex_lora_keeps_the_product_and_the_clients_a_where_it_has_a_smaller_rank(
    make_updates, dense_mean, seed, rank, dtype, scale
):
    updates = {}
    for name, update in make_updates(seed, 3, rank=5, in_features=40, spread=0.0, dtype=dtype).items():
        layer = update.layers["q_proj"]
        B = torch.cat([scale * layer.B[:, :rank], torch.zeros_like(layer.B[:, rank:])], 1)
        updates[name] = Adapter({"q_proj": LoraLayer(layer.A, B, 2.0)})
    M, mean_A, _ = dense_mean(updates)
    found = aggregate(updates, method=FlexLora()).adapter.layers["q_proj"]
    assert relative(found.B.double() @ found.A.double(), M) < (1e-13 if dtype == torch.float64 else 1e-6)
    is_empty = ~found.B.any(0)
    assert int(is_empty.sum()) == 5 - rank
    for row in torch.nonzero(is_empty).flatten():
        # What the clients have there, beyond what the product needs.
        live = torch.linalg.svd(M).Vh[:rank]
        expected = mean_A[row] - mean_A[row] @ live.T @ live
        assert relative(found.A[row].double(), expected) < (1e-9 if dtype == torch.float64 else 1e-5)


def test_before_the_first_step_every_client_starts_from_its_rows_of_a():
    A, B = torch.randn(8, 384, generator=torch.Generator().manual_seed(0)), torch.zeros(384, 8)
    for found in (FlexLora().fit(A, B, 2), truncated(A, B, 2), projected(A, B, 2)):
        assert torch.equal(found[0], A[:2])
        assert not found[1].any()
    turned_A, turned_B = FlexLora().fit(B.T, A.T, 2)
    assert not turned_A.any()
    assert torch.equal(turned_B, A.T[:, :2])


def test_a_cut_takes_other_rows_of_a_where_the_first_have_nothing():
    generator = torch.Generator().manual_seed(0)
    A, B = torch.randn(4, 30, generator=generator), torch.zeros(20, 4)
    A[:2] = 0
    for fit in (FedIT().fit, FlexLora().fit):
        found_A, found_B = fit(A, B, 2)
        assert not found_B.any()
        assert relative(found_A @ torch.linalg.pinv(A) @ A, found_A) < 1e-5
        assert torch.linalg.matrix_rank(found_A) == 2


def test_more_directions_than_a_has_columns_come_to_life_in_b():
    A, B = brought_to_life(torch.zeros(6, 2), torch.zeros(5, 6), like=(torch.zeros(6, 2), torch.zeros(5, 6)))
    assert is_alive(A, B)
    assert (B @ A).norm() < 1e-6
    A, B = brought_to_life(torch.zeros(9, 2), torch.zeros(5, 9), like=(torch.zeros(9, 2), torch.zeros(5, 9)))
    assert dead_directions(A, B).shape[1] == 9 - 2 - 5


def test_a_live_pair_stays_as_it_is():
    generator = torch.Generator().manual_seed(0)
    A, B = torch.randn(4, 30, generator=generator), torch.randn(20, 4, generator=generator)
    found = brought_to_life(A, B, like=(A, B))
    assert found[0] is A
    assert found[1] is B


def test_what_is_drawn_comes_from_no_global_state():
    empty = torch.zeros(3, 7), torch.zeros(5, 3)
    torch.manual_seed(1)
    A, _ = brought_to_life(*empty, like=empty)
    state = torch.get_rng_state()
    again, _ = brought_to_life(*empty, like=empty)
    assert torch.equal(A, again)
    assert torch.equal(state, torch.get_rng_state())
    torch.testing.assert_close(A @ A.T, torch.eye(3))


def test_the_report_says_where_means_had_a_dead_direction(make_updates):
    (update,) = make_updates(num_clients=1, rank=4, dtype=torch.float32).values()
    A, B = dead_rows(update.layers["q_proj"].A, update.layers["q_proj"].B)
    result = aggregate({"only": Adapter({"q_proj": LoraLayer(A, B, 2.0)})}, method=FedIT())
    found = result.adapter.layers["q_proj"]
    assert torch.equal(found.B, B)
    assert torch.equal(found.A[:2], A[:2])
    assert found.A[2:].norm(dim=1).min() > 0.3
    assert result.report.layers["q_proj"].note.startswith("2 of 4 directions were zero in both A and B")
    alive = aggregate({"only": update}, method=FedIT())
    assert alive.report.layers["q_proj"].note == ""


def test_the_cosine_without_a_penalty_keeps_the_b_that_a_does_not_show(make_updates):
    updates = {}
    for name, update in make_updates(rank=4).items():
        updates[name] = Adapter({"q_proj": LoraLayer(*empty_rows(*update.layers["q_proj"].tensors()), 2.0)})
    found = aggregate(updates, method=LoraFairCosine(penalty=0)).adapter.layers["q_proj"]
    mean = aggregate(updates, method=FedIT()).adapter.layers["q_proj"]
    torch.testing.assert_close(found.B[:, 2:], mean.B[:, 2:])
