"""Norms, limits and inner products of what updates change, against dense ones; in float64 unless said otherwise."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlora.adapters import Adapter, LoraLayer, open_adapter, save_adapter
from fedlora.aggregation.products import (
    Move,
    misfit,
    move_of,
    product_gram,
    product_moves,
    pulled_back,
    start_of,
)
from fedlora.common.errors import AdapterError

few = settings(derandomize=True, database=None, deadline=None, max_examples=20)
cohorts = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])


def mixed_cohort(seed=0, *, spread=0.3, dtype=torch.float64):
    """Return updates of several ranks, scalings and layers with biases, magnitudes and a head, and their start."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    start = Adapter(
        {
            "q": LoraLayer(random(4, 9), random(12, 4), 2.0, bias=random(12)),
            "v": LoraLayer(random(3, 10), random(7, 3), 0.5, magnitude=random(7)),
            "e": LoraLayer(random(2, 15), random(6, 2), 1.0, is_embedding=True),
        },
        {"head": random(3, 5), "norm": random(4)},
    )

    def moved(tensor):
        return None if tensor is None else (tensor + spread * random(*tensor.shape)).to(dtype)

    def client(paths, dense, ranks, scalings):
        layers = {}
        for path in paths:
            layer = start.layers[path]
            rank, scaling = ranks.get(path, layer.rank), scalings.get(path, layer.scaling)
            bias = None if layer.bias is None else layer.bias * layer.scaling / scaling
            B = layer.B[:, :rank] * layer.scaling / scaling
            layers[path] = replace(
                layer,
                A=moved(layer.A[:rank]),
                B=moved(B),
                scaling=scaling,
                bias=moved(bias),
                magnitude=moved(layer.magnitude),
            )
        return Adapter(layers, {path: moved(start.dense[path]) for path in dense})

    updates = {
        "a": client("qve", ("head", "norm"), {}, {}),
        "b": client("qv", ("head",), {"q": 2}, {"q": 3.0}),
        "c": client("ve", ("norm",), {"v": 1}, {"v": 0.25}),
        "d": client("q", (), {"q": 3}, {}),
    }
    return updates, start


def dense_change(update, start):
    """Return all that an update changes in one vector: whole weights, biases as they act, magnitudes, dense tensors."""
    parts = []
    for path, layer in start.layers.items():
        found = update.layers.get(path)
        if found is None:
            size = layer.B.shape[0]
            vectors = sum(size for vector in (layer.bias, layer.magnitude) if vector is not None)
            parts.append(torch.zeros(layer.B.shape[0] * layer.A.shape[1] + vectors, dtype=torch.float64))
            continue
        rank = found.rank
        before = layer.scaling * layer.B[:, :rank].double() @ layer.A[:rank].double()
        parts.append((found.scaling * found.B.double() @ found.A.double() - before).flatten())
        if layer.bias is not None:
            parts.append(found.scaling * found.bias.double() - layer.scaling * layer.bias.double())
        if layer.magnitude is not None:
            parts.append(found.magnitude.double() - layer.magnitude.double())
    for path, tensor in start.dense.items():
        found = update.dense.get(path, tensor)
        parts.append((found.double() - tensor.double()).flatten())
    return torch.cat(parts)


@few
@given(st.integers(0, 1000), st.sampled_from([1e-3, 0.3, 100.0]))
def test_norms_and_inner_products_are_the_dense_ones(seed, spread):
    updates, start = mixed_cohort(seed, spread=spread)
    changes = torch.stack([dense_change(update, start) for update in updates.values()])
    moves = torch.tensor(list(product_moves(updates, start).values()), dtype=torch.float64)
    torch.testing.assert_close(moves, changes.norm(dim=1), rtol=1e-10, atol=0)
    expected = changes @ changes.T
    scale = float(expected.diagonal().max())
    torch.testing.assert_close(product_gram(updates, start), expected, rtol=1e-10, atol=1e-12 * scale)
    torch.testing.assert_close(product_gram(updates, start).diagonal().sqrt(), moves, rtol=1e-10, atol=0)


@cohorts
def test_smaller_types_are_measured_in_float64(dtype):
    updates, start = mixed_cohort(dtype=dtype, spread=1e-2)
    for client, norm in product_moves(updates, start).items():
        assert norm == pytest.approx(float(dense_change(updates[client], start).norm()), rel=1e-10)


def test_the_norm_of_an_update_next_to_its_start_loses_nothing(make_updates):
    (start,) = make_updates(num_clients=1, spread=0, dtype=torch.float32).values()
    layer = start.layers["q_proj"]
    step = torch.zeros_like(layer.B)
    step[0, 0] = 2.0**-20 * float(layer.B[0, 0])
    update = Adapter({"q_proj": replace(layer, B=layer.B + step)})
    difference = update.layers["q_proj"].B.double() - layer.B.double()
    expected = 2 * float((difference @ layer.A.double()).norm())
    assert product_moves({"a": update}, start)["a"] == pytest.approx(expected, rel=1e-12)


def test_the_start_itself_does_not_move():
    _, start = mixed_cohort()
    assert product_moves({"a": start}, start) == {"a": 0}


@few
@given(st.integers(0, 1000), st.sampled_from([1e-6, 0.01, 0.5, 0.999]), st.sampled_from([0.1, 3.0, 1000.0]))
def test_an_update_pulled_back_moves_by_exactly_the_limit_and_keeps_its_rank(seed, fraction, spread):
    updates, start = mixed_cohort(seed, spread=spread)
    for update in updates.values():
        move = move_of(update, start)
        limit = fraction * move.norm()
        share = move.share_within(limit)
        assert 0 < share < 1
        pulled = pulled_back(update, start, share)
        assert float(dense_change(pulled, start).norm()) == pytest.approx(limit, rel=1e-9)
        assert {path: layer.shapes() for path, layer in pulled.layers.items()} == {
            path: layer.shapes() for path, layer in update.layers.items()
        }
        for path, layer in pulled.layers.items():
            A, B = start_of(start.layers[path], layer)
            torch.testing.assert_close(layer.A, A + share * (update.layers[path].A - A), rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(layer.B, B + share * (update.layers[path].B - B), rtol=1e-9, atol=1e-12)


@few
@given(
    st.floats(1e-12, 1e12),
    st.floats(-1, 1),
    st.floats(1e-12, 1e12),
    st.floats(1e-9, 0.999),
)
def test_a_share_is_found_for_any_two_parts_of_a_move(linear, cosine, quadratic, fraction):
    move = Move(linear**2, cosine * linear * quadratic, quadratic**2)
    limit = fraction * move.norm()
    if limit > 0:
        assert move.norm(move.share_within(limit)) <= limit
        assert move.norm(move.share_within(limit)) == pytest.approx(limit, rel=1e-6)


def test_no_move_at_all_is_allowed_for():
    assert Move(1.0, 0.0, 1.0).share_within(0.0) == 0


@cohorts
def test_an_update_pulled_back_is_in_at_least_float32(dtype):
    updates, start = mixed_cohort(dtype=dtype)
    pulled = pulled_back(updates["a"], start, 0.5)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    tensors = [*pulled.dense.values(), *(part for layer in pulled.layers.values() for part in (layer.A, layer.B))]
    assert {tensor.dtype for tensor in (*tensors, pulled.layers["q"].bias, pulled.layers["v"].magnitude)} == {expected}
    whole, nothing = pulled_back(updates["a"], start, 1.0), pulled_back(updates["a"], start, 0.0)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    assert (dense_change(whole, start) - dense_change(updates["a"], start)).norm() < 100 * tolerance
    assert dense_change(nothing, start).norm() < 100 * tolerance


def test_adapters_on_disk_are_judged_like_those_in_memory(make_updates, tmp_path):
    (start,) = make_updates(num_clients=1, spread=0).values()
    updates = make_updates(dtype=torch.float32)
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 6}
    for client, update in updates.items():
        save_adapter(replace(update, config=config), tmp_path / client)
    stored = {client: open_adapter(tmp_path / client) for client in updates}
    assert product_moves(stored, start) == product_moves(updates, start)
    assert torch.equal(product_gram(stored, start), product_gram(updates, start))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_norm_of_what_is_not_finite_is_infinite(make_updates, value):
    (start,) = make_updates(num_clients=1, spread=0).values()
    layer = start.layers["q_proj"]
    for part in ("A", "B"):
        broken = getattr(layer, part).clone()
        broken[1, 1] = value
        assert product_moves({"a": Adapter({"q_proj": replace(layer, **{part: broken})})}, start) == {"a": math.inf}
    huge = Adapter({"q_proj": replace(layer, A=layer.A * 1e200)})
    assert product_moves({"a": huge}, start) == {"a": math.inf}


def test_what_does_not_fit_is_named():
    updates, start = mixed_cohort()
    assert not any(misfit(update, start) for update in updates.values())
    q, head = updates["a"].layers["q"], updates["a"].dense["head"]
    for layers, dense, expected in (
        ({"k": q}, {}, "a layer k, which the round did not start from"),
        ({"q": replace(q, A=q.A[:, :1])}, {}, "q: A (4, 1), B (12, 4) against A (4, 9), B (12, 4)"),
        ({"q": replace(q, B=q.B[:, :1])}, {}, "q: A (4, 9), B (12, 1) against A (4, 9), B (12, 4)"),
        ({"q": replace(q, A=q.A[0])}, {}, "q: A (9,), B (12, 4) against"),
        ({"q": replace(q, A=q.A.repeat(2, 1), B=q.B.repeat(1, 2))}, {}, "q: A (8, 9), B (12, 8) against"),
        ({"q": replace(q, is_embedding=True)}, {}, "q: A (4, 9), B (12, 4) against"),
        ({"q": replace(q, scaling=0.0)}, {}, "q: a scaling of 0.0"),
        ({"q": replace(q, scaling=math.nan)}, {}, "q: a scaling of nan"),
        ({"q": replace(q, bias=torch.ones(1))}, {}, "q: a bias (1,); expected (12,)"),
        ({}, {"tail": head}, "a tensor tail, which the round did not start from"),
        ({}, {"head": head[0]}, "head: (5,) against (3, 5)"),
    ):
        assert misfit(Adapter(layers, dense), start).startswith(expected)
    with pytest.raises(AdapterError, match=r"b: a layer k, which the round did not start from; all must train"):
        product_moves({"a": start, "b": Adapter({"k": q})}, start)


@pytest.mark.parametrize("part", ["A", "B", "bias", "dense"])
def test_a_value_of_1e30_is_pulled_back_to_the_limit_like_any_other(part):
    updates, start = mixed_cohort()
    update = updates["a"]
    if part == "dense":
        huge = replace(update, dense={**update.dense, "norm": update.dense["norm"] * 1e30})
    else:
        layer = update.layers["q"]
        huge = replace(update, layers={**update.layers, "q": replace(layer, **{part: getattr(layer, part) * 1e30})})
    pulled = pulled_back(huge, start, move_of(huge, start).share_within(2.0))
    assert float(dense_change(pulled, start).norm()) == pytest.approx(2.0, rel=1e-9)
