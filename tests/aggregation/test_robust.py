"""Attackers against robust aggregation under every method, and honest updates that must not be harmed by it."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlora.adapters import Adapter, LoraLayer
from fedlora.aggregation import METHODS, FedIT, LoraFair, Robust, aggregate
from fedlora.aggregation.gauge import regauged
from fedlora.aggregation.products import gram_of_changes, line_of, product_moves
from fedlora.aggregation.robust import geometric_median_weights, krum_order
from fedlora.common.errors import AdapterError

few = settings(derandomize=True, database=None, deadline=None, max_examples=20)
every_method = pytest.mark.parametrize("method", [make() for make in METHODS.values()], ids=list(METHODS))

OUT, IN, RANK, SCALING = 40, 60, 3, 2.0


def random(generator, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def cohort(seed=0, *, num_honest=8, spread=0.1):
    """Return a round's start and honest updates near it: they share a direction, and each adds its own."""
    generator = torch.Generator().manual_seed(seed)
    start = LoraLayer(random(generator, RANK, IN), random(generator, OUT, RANK), SCALING)
    head = random(generator, 5)
    common = spread * random(generator, RANK, IN), spread * random(generator, OUT, RANK)
    reference = Adapter({"q": start}, {"head": head})
    honest = {
        f"honest-{index}": Adapter(
            {
                "q": replace(
                    start,
                    A=start.A + common[0] + 0.3 * spread * random(generator, RANK, IN),
                    B=start.B + common[1] + 0.3 * spread * random(generator, OUT, RANK),
                )
            },
            {"head": head + spread * random(generator, 5)},
        )
        for index in range(num_honest)
    }
    return reference, honest


def effective(adapter):
    """Return what an adapter does to the weight: its product, and the change of the base weights."""
    layer = adapter.layers["q"]
    product = layer.scaling * layer.B.double() @ layer.A.double()
    change = adapter.base_change.get("q")
    return product if change is None else product + change.B @ change.A


def mixed_products(adapter, reference):
    """Return what happens where the global A meets an honest client's B, and the other way round: gauges show there."""
    layer, start = adapter.layers["q"], reference.layers["q"]
    return torch.cat([start.B @ layer.A, layer.B @ start.A])


def in_gauge(adapter, T):
    layer = adapter.layers["q"]
    return replace(adapter, layers={"q": replace(layer, A=T @ layer.A, B=layer.B @ torch.linalg.inv(T))})


def scaled_up(reference, update):
    start, layer = reference.layers["q"], update.layers["q"]
    return replace(
        update,
        layers={"q": replace(layer, A=layer.A, B=start.B + 1000 * (layer.B - start.B))},
    )


def sign_flipped(reference, update):
    start, layer = reference.layers["q"], update.layers["q"]
    return replace(
        update,
        layers={"q": replace(layer, A=start.A - 30 * (layer.A - start.A), B=start.B - 30 * (layer.B - start.B))},
    )


def small_beside_a_large_a(reference, update):
    return in_gauge(scaled_up(reference, update), 1000 * torch.eye(RANK, dtype=torch.float64))


def small_beside_a_large_b(reference, update):
    return in_gauge(scaled_up(reference, update), 1e-3 * torch.eye(RANK, dtype=torch.float64))


def empty_product(_reference, update):
    layer = update.layers["q"]
    noise = random(torch.Generator().manual_seed(9), RANK, IN)
    return replace(update, layers={"q": replace(layer, A=1000 * noise, B=torch.zeros_like(layer.B))})


ATTACKS = [scaled_up, sign_flipped, small_beside_a_large_a, small_beside_a_large_b, empty_product]
DEFENCES = {
    "clip": Robust(regauge=True, clip=1.0),
    "multi_krum": Robust(regauge=True, select="multi_krum", attackers=1),
    "geometric_median": Robust(regauge=True, weighting="geometric_median"),
    "all": Robust(regauge=True, clip=1.0, select="multi_krum", attackers=1, weighting="geometric_median"),
}


def distance(found, expected):
    return float((found - expected).norm() / expected.norm())


@every_method
@pytest.mark.parametrize("robust", DEFENCES.values(), ids=DEFENCES)
@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attacker_changes_little_where_it_would_have_changed_everything(attack, robust, method):
    reference, honest = cohort()
    attacked = honest | {"attacker": attack(reference, honest["honest-0"])}

    def result(updates, defence):
        return aggregate(updates, method=method, reference=reference, robust=defence, measure=False).adapter

    expected = result(honest, None)
    defended, plain = result(attacked, robust), result(attacked, None)
    assert distance(effective(defended), effective(expected)) < 0.15
    if not (attack is empty_product and method.name in ("flora", "fedex_lora", "flex_lora")):
        # An empty product costs a method that averages products no more than its share of the weight.
        harm = distance(effective(plain), effective(expected))
        assert max(harm, distance(mixed_products(plain, reference), mixed_products(expected, reference))) > 0.4


@every_method
def test_an_honest_update_in_another_gauge_is_not_harmed(method):
    reference, honest = cohort()
    generator = torch.Generator().manual_seed(3)
    robust = Robust(regauge=True)
    expected = aggregate(honest, method=method, reference=reference, robust=robust, measure=False).adapter
    for size in (1.0, 1000.0, 1e-3):
        T = size * random(generator, RANK, RANK)
        turned = honest | {"honest-3": in_gauge(honest["honest-3"], T)}
        result = aggregate(turned, method=method, reference=reference, robust=robust, measure=False)
        assert distance(effective(result.adapter), effective(expected)) < 1e-8
        assert not result.report.notes


@few
@given(st.integers(0, 1000), st.sampled_from([1.0, 1e3, 1e-3]))
def test_regauging_leaves_the_product_and_comes_no_farther_from_the_start(seed, size):
    reference, honest = cohort(seed)
    update = in_gauge(honest["honest-1"], size * random(torch.Generator().manual_seed(seed), RANK, RANK))
    found = regauged(update, reference, anchors={})
    assert distance(effective(found.adapter), effective(update)) < 1e-9
    start, layer = reference.layers["q"].A, found.adapter.layers["q"]
    assert float((layer.A - start).norm()) <= float((honest["honest-1"].layers["q"].A - start).norm()) * (1 + 1e-9)
    assert found.distance == pytest.approx(float((layer.A - start).norm() / start.norm()), rel=1e-6)


def test_without_settings_nothing_is_changed():
    reference, honest = cohort()
    expected = aggregate(honest, reference=reference)
    found = aggregate(honest, reference=reference, robust=Robust())
    assert torch.equal(found.adapter.layers["q"].B, expected.adapter.layers["q"].B)
    assert found.report == expected.report


def test_an_update_that_is_not_finite_is_left_out_and_named():
    reference, honest = cohort()
    layer = honest["honest-2"].layers["q"]
    spoiled = honest | {"honest-2": replace(honest["honest-2"], layers={"q": replace(layer, A=layer.A * math.nan)})}
    result = aggregate(spoiled, reference=reference, robust=Robust())
    expected = aggregate({name: update for name, update in honest.items() if name != "honest-2"}, reference=reference)
    assert torch.equal(result.adapter.layers["q"].B, expected.adapter.layers["q"].B)
    assert result.report.notes == ("honest-2: left out, it has values that are not finite",)


def dense_changes(updates, reference):
    start = effective(reference)
    return torch.stack(
        [
            torch.cat([(effective(update) - start).flatten(), update.dense["head"] - reference.dense["head"]])
            for update in updates.values()
        ]
    )


@few
@given(st.integers(0, 1000), st.sampled_from([1.0, 1e-4]))
def test_norms_and_inner_products_of_changes_are_the_dense_ones(seed, spread):
    reference, honest = cohort(seed, spread=spread)
    changes = dense_changes(honest, reference)
    torch.testing.assert_close(gram_of_changes(honest, reference), changes @ changes.T, rtol=1e-7, atol=0)
    for index, moved in enumerate(product_moves(honest, reference).values()):
        assert moved == pytest.approx(float(changes[index].norm()), rel=1e-8)


def test_a_smaller_rank_and_another_scaling_are_judged_by_what_they_do():
    reference, honest = cohort()
    layer = honest["honest-0"].layers["q"]
    small = replace(honest["honest-0"], layers={"q": LoraLayer(layer.A[:2], layer.B[:, :2] * 2, SCALING / 2)})
    start = reference.layers["q"]
    change = SCALING * (layer.B[:, :2] @ layer.A[:2] - start.B[:, :2] @ start.A[:2])
    head = small.dense["head"] - reference.dense["head"]
    expected = math.hypot(float(change.norm()), float(head.norm()))
    assert product_moves({"a": small}, reference)["a"] == pytest.approx(expected, rel=1e-10)
    assert regauged(small, reference, anchors={}).adapter.layers["q"].rank == 2


def test_clipping_brings_a_large_change_to_the_limit_and_leaves_the_others():
    reference, honest = cohort()
    updates = honest | {"large": sign_flipped(reference, honest["honest-0"])}
    moves = product_moves(updates, reference)
    limit = 1.5 * sorted(moves.values())[len(moves) // 2]
    result = aggregate({"large": updates["large"]}, method=FedIT(), reference=reference, robust=None, measure=False)
    assert product_moves({"large": result.adapter}, reference)["large"] > 10 * limit

    from fedlora.aggregation.robust import admitted

    p = dict.fromkeys(updates, 1 / len(updates))
    kept, weights, notes = admitted(updates, p, reference=reference, robust=Robust(clip=1.5))
    clipped = product_moves(kept, reference)
    assert clipped["large"] == pytest.approx(limit, rel=1e-9)
    assert all(clipped[name] == moves[name] for name in honest)
    assert weights == pytest.approx(p)
    (note,) = notes
    assert note.startswith("large: pulled back to ")


@few
@given(st.integers(0, 1000), st.integers(0, 2))
def test_multi_krum_takes_those_with_the_nearest_neighbours(seed, attackers):
    points = random(torch.Generator().manual_seed(seed), 7, 4)
    squares = torch.cdist(points, points).square()
    scores = [sorted(float(squares[i, j]) for j in range(7) if j != i)[: 7 - attackers - 2] for i in range(7)]
    expected = sorted(range(7), key=lambda index: sum(scores[index]))
    assert krum_order(squares, attackers=attackers) == expected


def test_too_few_updates_for_multi_krum_are_refused_with_what_it_needs():
    reference, honest = cohort(num_honest=4)
    with pytest.raises(AdapterError, match="4 updates; multi_krum with attackers = 1 needs at least 5"):
        aggregate(honest, reference=reference, robust=Robust(select="multi_krum", attackers=1))


@few
@given(st.integers(0, 1000))
def test_the_geometric_median_has_no_slope(seed):
    """At the minimum of sum_i p_i |x_i - z|, the weighted unit vectors towards the points add up to zero."""
    points = random(torch.Generator().manual_seed(seed), 9, 4)
    p = torch.linspace(1, 2, 9, dtype=torch.float64)
    p /= p.sum()
    w = geometric_median_weights(points @ points.T, p)
    z = w @ points
    directions = (points - z) / (points - z).norm(dim=1, keepdim=True)
    assert float((p @ directions).norm()) < 1e-5
    assert float(w.sum()) == pytest.approx(1)


def test_the_geometric_median_of_one_client_and_of_equal_ones_are_the_weights_given():
    p = torch.tensor([0.3, 0.7], dtype=torch.float64)
    assert torch.equal(geometric_median_weights(torch.ones(2, 2, dtype=torch.float64), p), p)
    assert torch.equal(geometric_median_weights(torch.ones(1, 1, dtype=torch.float64), p[:1] / p[0]), p[:1] / p[0])


def test_the_order_of_clients_changes_no_bit():
    reference, honest = cohort()
    updates = honest | {"attacker": scaled_up(reference, honest["honest-0"])}
    expected = aggregate(updates, reference=reference, robust=DEFENCES["all"])
    found = aggregate(dict(reversed(updates.items())), reference=reference, robust=DEFENCES["all"])
    assert torch.equal(found.adapter.layers["q"].B, expected.adapter.layers["q"].B)
    assert found.report == expected.report


def test_the_squares_along_the_line_give_the_change_of_any_part_of_the_way():
    reference, honest = cohort()
    update = honest["honest-0"]
    line = line_of(update, reference)
    start, layer = reference.layers["q"], update.layers["q"]
    for g in (0.1, 0.5, 1.0):
        A, B = torch.lerp(start.A, layer.A, g), torch.lerp(start.B, layer.B, g)
        change = SCALING * (B @ A - start.B @ start.A)
        head = g * (update.dense["head"] - reference.dense["head"])
        assert line.square_at(g) == pytest.approx(float(change.square().sum() + head.square().sum()), rel=1e-10)


def test_robust_aggregation_needs_the_rounds_start():
    _, honest = cohort()
    with pytest.raises(ValueError, match="needs `reference`"):
        aggregate(honest, method=LoraFair(), robust=Robust())


@pytest.mark.parametrize(
    "settings_",
    [
        {"gauge_limit": 0.0},
        {"clip": 0.0},
        {"clip": math.inf},
        {"attackers": -1},
        {"select": "krum"},
        {"weighting": "median"},
    ],
)
def test_settings_out_of_range_are_refused(settings_):
    with pytest.raises(ValueError, match=f"{next(iter(settings_))} is "):
        Robust(**settings_)
