"""Attacks on every method, with and without a defence; honest updates in other gauges; what is left out and said."""

import math
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch

from fedlora.adapters import Adapter, LoraLayer, open_adapter, save_adapter
from fedlora.aggregation import FedIT, FfaLora, FlexLora, LoraFair, Robust, RoLora, aggregate
from fedlora.aggregation.products import product_gram, product_moves
from fedlora.aggregation.robust import admitted
from fedlora.common.errors import AdapterError

combine = partial(aggregate, measure=False)

PATHS = ("q_proj", "v_proj")
OUT, IN, RANK = 24, 120, 3


@dataclass(frozen=True)
class Round:
    """Seven honest updates, and the adapter that they started from."""

    honest: dict[str, Adapter]
    start: Adapter


def honest_round(seed=0, *, dtype=torch.float64, num_clients=7):
    """Return a round whose clients went one common way from one start, and a little way of their own."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape, size=1.0):
        return size * torch.randn(*shape, dtype=torch.float64, generator=generator)

    start, common = {}, {}
    for path in PATHS:
        start[path] = LoraLayer(random(RANK, IN, size=IN**-0.5), random(OUT, RANK, size=0.3), 2.0)
        common[path] = (random(RANK, IN, size=0.05), random(OUT, RANK, size=0.2))
    head, way = random(5, 4), random(5, 4, size=0.2)
    honest = {}
    for client in range(num_clients):
        layers = {}
        for path, (dA, dB) in common.items():
            layer = start[path]
            A = layer.A + dA + random(RANK, IN, size=0.01)
            B = layer.B + dB + random(OUT, RANK, size=0.04)
            layers[path] = replace(layer, A=A.to(dtype), B=B.to(dtype))
        honest[f"client-{client}"] = Adapter(layers, {"head": (head + way + random(5, 4, size=0.04)).to(dtype)})
    return Round(honest, Adapter(start, {"head": head}))


def mapped(adapter, change):
    """Return the adapter with `change` applied to each pair A, B."""
    layers = {}
    for path, layer in adapter.layers.items():
        A, B = change(layer.A, layer.B)
        layers[path] = replace(layer, A=A, B=B)
    return replace(adapter, layers=layers)


def away_from(start, adapter, factor):
    """Return the adapter moved by `factor` times its way from the start."""

    def moved(begin, end):
        return begin + factor * (end - begin)

    layers = {
        path: replace(layer, A=moved(start.layers[path].A, layer.A), B=moved(start.layers[path].B, layer.B))
        for path, layer in adapter.layers.items()
    }
    return replace(adapter, layers=layers, dense={"head": moved(start.dense["head"], adapter.dense["head"])})


def random_map(seed, scale):
    generator = torch.Generator().manual_seed(seed)
    U, S, Vh = torch.linalg.svd(torch.randn(RANK, RANK, dtype=torch.float64, generator=generator))
    return scale * (U * (S + 0.1)) @ Vh


def in_gauge(adapter, T):
    return mapped(adapter, lambda A, B: (T.to(A) @ A, B @ torch.linalg.inv(T).to(B)))


def noise_like(A):
    return 1000 * torch.randn(A.shape, dtype=A.dtype, generator=torch.Generator().manual_seed(5))


def scaled_1000_times(update, start):
    return away_from(start, update, 1000.0)


def flipped(update, start):
    return away_from(start, update, -8.0)


def flipped_behind_a_huge_a(update, start):
    return in_gauge(flipped(update, start), 1000 * torch.eye(RANK))


def flipped_behind_a_tiny_a(update, start):
    return in_gauge(flipped(update, start), torch.eye(RANK) / 1000)


def noise_without_product(update, _start):
    return mapped(update, lambda A, B: (noise_like(A), 0 * B))


def noise_of_honest_size(update, _start):
    return mapped(update, lambda A, B: (noise_like(A), B * (A.norm() / noise_like(A).norm())))


ATTACKS = (
    scaled_1000_times,
    flipped,
    flipped_behind_a_huge_a,
    flipped_behind_a_tiny_a,
    noise_without_product,
    noise_of_honest_size,
)
attacks = pytest.mark.parametrize("attack", ATTACKS)


def attacked(round_, attack):
    """Return the round's updates with one more, that of an attacker who took the first client's."""
    return {"attacker": attack(round_.honest["client-0"], round_.start), **round_.honest}


def effect(result):
    """Return what a result does in one vector: the weights' change, that of the base included, and the head."""
    adapter = result.adapter
    parts = []
    for path in PATHS:
        pairs = [pairs[path] for pairs in (adapter.layers, adapter.base_change) if path in pairs]
        change = sum((pair.scaling * pair.B.double() @ pair.A.double() for pair in pairs), torch.zeros(()))
        parts.append(change.flatten())
    return torch.cat([*parts, adapter.dense["head"].double().flatten()])


def start_effect(start):
    layers = [layer.scaling * layer.B.double() @ layer.A.double() for layer in start.layers.values()]
    return torch.cat([*(layer.flatten() for layer in layers), start.dense["head"].double().flatten()])


def harm(found, expected, start):
    """Return how far a result is from the expected one, in lengths of the way that this one went."""
    return float((effect(found) - effect(expected)).norm() / (effect(expected) - start_effect(start)).norm())


def averages_products(method):
    return method.name in ("flora", "fedex_lora", "flex_lora")


KRUM = Robust(regauge=True, select="multi_krum", attackers=1)
MEDIAN = Robust(regauge=True, weighting="geometric_median")
CLIP = Robust(regauge=True, clip=1.0)
EVERYTHING = Robust(regauge=True, clip=1.5, select="multi_krum", attackers=2, weighting="geometric_median")


@attacks
def test_without_a_defence_an_attack_does_harm(any_method, attack):
    round_ = honest_round()
    expected = combine(round_.honest, method=any_method, reference=round_.start)
    found = combine(attacked(round_, attack), method=any_method, reference=round_.start)
    # Noise whose product is no larger than an honest one has only its share in a mean of products.
    is_diluted = averages_products(any_method) and attack in (noise_without_product, noise_of_honest_size)
    assert harm(found, expected, round_.start) > (0.1 if is_diluted else 0.5)


@attacks
def test_multi_krum_gives_the_result_of_the_honest_alone(any_method, attack):
    round_ = honest_round()
    expected = combine(round_.honest, method=any_method, reference=round_.start, robust=Robust(regauge=True))
    robust = KRUM
    updates, p, notes = admitted(
        attacked(round_, attack),
        dict.fromkeys(["attacker", *round_.honest], 1 / 8),
        reference=round_.start,
        robust=robust,
    )
    assert "attacker" not in updates
    assert len(p) >= 6
    assert any(note.startswith("attacker: left out, ") for note in notes)
    if len(p) == 7:
        found = combine(attacked(round_, attack), method=any_method, reference=round_.start, robust=robust)
        assert harm(found, expected, round_.start) < 1e-9
        assert found.report.notes == notes


@attacks
@pytest.mark.parametrize(("robust", "limit"), [(MEDIAN, 0.1), (CLIP, 0.35), (EVERYTHING, 0.1)])
def test_a_defence_keeps_the_result_near_that_of_the_honest_alone(any_method, attack, robust, limit):
    round_ = honest_round()
    expected = combine(round_.honest, method=any_method, reference=round_.start)
    found = combine(attacked(round_, attack), method=any_method, reference=round_.start, robust=robust)
    assert harm(found, expected, round_.start) < limit


@pytest.mark.parametrize("scale", [1.0, 1000.0, 1e-3])
def test_an_honest_update_in_another_gauge_does_no_harm(any_method, scale):
    round_ = honest_round()
    other = {**round_.honest, "client-3": in_gauge(round_.honest["client-3"], random_map(1, scale))}
    expected = combine(round_.honest, method=any_method, reference=round_.start)
    plain = combine(other, method=any_method, reference=round_.start)
    if scale == 1000 and not averages_products(any_method):
        assert harm(plain, expected, round_.start) > 0.1
    robust = Robust(regauge=True)
    turned = combine(round_.honest, method=any_method, reference=round_.start, robust=robust)
    found = combine(other, method=any_method, reference=round_.start, robust=robust)
    assert harm(found, turned, round_.start) < 1e-9
    assert harm(turned, expected, round_.start) < 0.05
    for path in PATHS:
        torch.testing.assert_close(found.adapter.layers[path].A, turned.adapter.layers[path].A, rtol=1e-9, atol=1e-10)
    assert found.report.notes == ()


def test_only_regauging_helps_against_factors_that_hide_in_an_honest_product():
    round_ = honest_round()
    updates = {**round_.honest, "attacker": in_gauge(round_.honest["client-0"], 1000 * torch.eye(RANK))}
    expected = combine(round_.honest, method=FedIT(), reference=round_.start)
    for settings in ({"clip": 1.0}, {"select": "multi_krum", "attackers": 1}, {"weighting": "geometric_median"}):
        without = combine(updates, method=FedIT(), reference=round_.start, robust=Robust(**settings))
        assert harm(without, expected, round_.start) > 10
        found = combine(updates, method=FedIT(), reference=round_.start, robust=Robust(regauge=True, **settings))
        assert harm(found, expected, round_.start) < 0.1


def test_a_defence_costs_little_where_all_are_honest(any_method):
    round_ = honest_round()
    expected = combine(round_.honest, method=any_method, reference=round_.start)
    for robust in (KRUM, MEDIAN, CLIP, EVERYTHING):
        found = combine(round_.honest, method=any_method, reference=round_.start, robust=robust)
        assert harm(found, expected, round_.start) < 0.15


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_smaller_types_are_defended_too(any_method, dtype):
    round_ = honest_round(dtype=dtype)
    expected = combine(round_.honest, method=any_method, reference=round_.start)
    attacker = mapped(
        scaled_1000_times(round_.honest["client-0"], round_.start), lambda A, B: (A.to(dtype), B.to(dtype))
    )
    updates = {**round_.honest, "attacker": attacker}
    for robust, limit in ((KRUM, 0.05), (MEDIAN, 0.1), (CLIP, 0.35)):
        found = combine(updates, method=any_method, reference=round_.start, robust=robust)
        assert {layer.A.dtype for layer in found.adapter.layers.values()} == {torch.float32}
        assert harm(found, expected, round_.start) < limit


@pytest.mark.parametrize("robust", [KRUM, MEDIAN, CLIP, EVERYTHING])
def test_the_order_of_clients_changes_no_bit(robust):
    round_ = honest_round()
    updates = attacked(round_, flipped)
    weights = {client: 1.0 + index for index, client in enumerate(updates)}
    turned_round = dict(reversed(updates.items()))
    found = combine(turned_round, weights=weights, reference=round_.start, robust=robust)
    expected = combine(updates, weights=dict(reversed(weights.items())), reference=round_.start, robust=robust)
    assert torch.equal(effect(found), effect(expected))
    assert found.report == expected.report


def test_by_default_updates_and_weights_stay_as_they_are():
    round_ = honest_round()
    p = {client: (index + 1) / 28 for index, client in enumerate(round_.honest)}
    updates, weights, notes = admitted(round_.honest, p, reference=round_.start, robust=Robust())
    assert all(updates[client] is round_.honest[client] for client in p)
    assert weights == pytest.approx(p, rel=1e-15)
    assert notes == ()


@pytest.mark.parametrize("robust", [Robust(), KRUM, MEDIAN, CLIP])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("part", ["A", "B", "head"])
def test_an_update_that_is_not_finite_is_left_out_and_poisons_nothing(robust, value, part):
    round_ = honest_round()
    broken = round_.honest["client-0"]
    if part == "head":
        broken = replace(broken, dense={"head": broken.dense["head"] * value})
    else:
        broken = mapped(broken, lambda A, B: (A * value, B) if part == "A" else (A, B * value))
    found = combine({**round_.honest, "x": broken}, reference=round_.start, robust=robust)
    where = "head" if part == "head" else "q_proj"
    assert found.report.notes[0] == f"x: left out, {where} holds values that are not finite or beyond 1e+50"
    expected = combine(round_.honest, reference=round_.start, robust=robust)
    assert torch.equal(effect(found), effect(expected))
    assert found.report.notes[1:] == expected.report.notes


def test_an_update_of_other_shapes_is_left_out_with_what_was_found():
    round_ = honest_round()
    wrong = mapped(round_.honest["client-0"], lambda A, B: (A[:, :1], B))
    found = combine({**round_.honest, "x": wrong}, reference=round_.start, robust=Robust())
    assert found.report.notes == (
        "x: left out, q_proj: A (3, 1), B (24, 3) against A (3, 120), B (24, 3) of the round's start",
    )


@pytest.mark.parametrize("scale", [1e15, 1e40])
def test_products_beyond_every_type_are_clipped_or_left_out(scale):
    round_ = honest_round(dtype=torch.float32)
    wild = mapped(round_.honest["client-0"], lambda A, B: (A.double() * scale, B.double() * scale))
    expected = combine(round_.honest, reference=round_.start)
    for robust in (CLIP, KRUM, MEDIAN):
        found = combine({**round_.honest, "x": wild}, reference=round_.start, robust=robust)
        assert harm(found, expected, round_.start) < 0.35


def test_where_no_update_is_left_the_error_gives_all_reasons():
    round_ = honest_round(num_clients=2)
    broken = {name: mapped(update, lambda A, B: (A * math.nan, B)) for name, update in round_.honest.items()}
    with pytest.raises(AdapterError, match=r"no update is left to aggregate; client-0: left out, .*; client-1: left"):
        combine(broken, reference=round_.start, robust=Robust())


def test_clipped_updates_move_by_the_limit_and_say_so():
    round_ = honest_round()
    updates = {**round_.honest, "x": scaled_1000_times(round_.honest["client-0"], round_.start)}
    p = dict.fromkeys(updates, 1 / 8)
    moves = product_moves(updates, round_.start)
    ordered = sorted(moves.values())
    middle = (ordered[3] + ordered[4]) / 2
    clipped, _, notes = admitted(updates, p, reference=round_.start, robust=Robust(clip=2.0))
    found = product_moves(clipped, round_.start)
    assert found["x"] == pytest.approx(2 * middle, rel=1e-10)
    assert {client: found[client] for client in round_.honest} == {client: moves[client] for client in round_.honest}
    assert notes == (f"x: clipped to 2 times the median, its product moved {moves['x'] / middle:.3g} times the median",)


def test_where_most_did_not_move_the_others_are_clipped_to_the_start():
    round_ = honest_round()
    updates = {**dict.fromkeys("abc", round_.start), "x": round_.honest["client-0"]}
    clipped, _, notes = admitted(
        updates, dict.fromkeys(updates, 1 / 4), reference=round_.start, robust=Robust(clip=2.0)
    )
    assert product_moves(clipped, round_.start)["x"] == 0
    assert notes == ("x: clipped to 2 times the median, its product moved while most did not move",)


def test_multi_krum_keeps_those_with_the_smallest_dense_scores():
    round_ = honest_round(num_clients=9)
    updates = {
        client: away_from(round_.start, update, 1 + 0.3 * index)
        for index, (client, update) in enumerate(round_.honest.items())
    }
    vectors = torch.stack([effect(combine({"a": update}, method=FedIT())) for update in updates.values()])
    distances = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist").square()
    scores = distances.sort(dim=1).values[:, 1 : 9 - 3 - 1].sum(1)
    expected = {list(updates)[index] for index in scores.argsort()[:6].tolist()}
    kept, p, notes = admitted(
        updates,
        {client: (index + 1) / 45 for index, client in enumerate(updates)},
        reference=round_.start,
        robust=Robust(select="multi_krum", attackers=3),
    )
    assert set(kept) == set(p) == expected
    assert math.fsum(p.values()) == pytest.approx(1, abs=1e-15)
    first, second = list(p)[:2]
    ranks = list(updates)
    assert p[second] / p[first] == pytest.approx((ranks.index(second) + 1) / (ranks.index(first) + 1))
    assert {note.split(":")[0] for note in notes} == set(updates) - expected


def test_multi_krum_needs_more_than_twice_the_attackers_plus_two():
    round_ = honest_round(num_clients=6)
    with pytest.raises(AdapterError, match=r"6 updates for Multi-Krum against 2 attackers; expected more than 6"):
        combine(round_.honest, reference=round_.start, robust=Robust(select="multi_krum", attackers=2))


def test_the_geometric_median_gives_weights_at_which_the_pulls_cancel():
    round_ = honest_round()
    updates = attacked(round_, flipped)
    p = {client: (index + 1) / 36 for index, client in enumerate(updates)}
    kept, weights, notes = admitted(updates, p, reference=round_.start, robust=Robust(weighting="geometric_median"))
    assert list(weights) == list(p)
    assert all(kept[client] is updates[client] for client in p)
    gram, found = product_gram(updates, round_.start), torch.tensor(list(weights.values()), dtype=torch.float64)
    distances = (gram.diagonal() - 2 * gram @ found + found @ gram @ found).sqrt()
    pulls = torch.tensor(list(p.values()), dtype=torch.float64) / distances
    torch.testing.assert_close(found, pulls / pulls.sum(), rtol=1e-8, atol=1e-10)
    assert notes == (
        f"attacker: weighs {weights['attacker']:.2g} instead of {p['attacker']:.2g} by the geometric median",
    )


@pytest.mark.parametrize(("method", "frozen"), [(FfaLora(), "A"), (RoLora(), "A"), (RoLora(), "B")])
def test_a_factor_that_is_frozen_in_this_round_stays_to_the_last_bit(method, frozen):
    round_ = honest_round(dtype=torch.float32)
    start = mapped(round_.start, lambda A, B: (A.float(), B.float()))
    updates = {}
    for client, update in round_.honest.items():
        layers = {
            path: replace(layer, **{frozen: getattr(start.layers[path], frozen)})
            for path, layer in update.layers.items()
        }
        updates[client] = replace(update, layers=layers)
    updates["x"] = in_gauge(updates["client-0"], random_map(2, 1000.0))
    robust = Robust(regauge=True)
    found = combine(updates, method=method, reference=start, robust=robust)
    del updates["x"]
    alone = combine(updates, method=method, reference=start, robust=robust)
    for path in PATHS:
        assert torch.equal(getattr(alone.adapter.layers[path], frozen), getattr(start.layers[path], frozen))
    assert harm(found, alone, start) < 0.05


def test_mixed_ranks_scalings_and_missing_layers_are_defended(any_method):
    round_ = honest_round()
    start = round_.start

    def cut(update, rank, scaling):
        layers = {
            path: LoraLayer(layer.A[:rank], layer.B[:, :rank] * 2.0 / scaling, scaling)
            for path, layer in update.layers.items()
        }
        return replace(update, layers=layers)

    honest = {
        **round_.honest,
        "client-5": cut(round_.honest["client-5"], 2, 4.0),
        "client-6": replace(cut(round_.honest["client-6"], 3, 0.5), dense={}),
    }
    honest["client-4"] = replace(honest["client-4"], layers={"v_proj": honest["client-4"].layers["v_proj"]})
    expected = combine(honest, method=any_method, reference=start)
    attacker = cut(scaled_1000_times(round_.honest["client-0"], start), 2, 4.0)
    updates = {**honest, "x": attacker}
    assert harm(combine(updates, method=any_method, reference=start), expected, start) > 1
    for robust, limit in ((CLIP, 0.4), (MEDIAN, 0.25), (KRUM, 0.35)):
        found = combine(updates, method=any_method, reference=start, robust=robust)
        assert harm(found, expected, start) < limit


def test_adapters_on_disk_give_the_result_of_those_in_memory(tmp_path):
    round_ = honest_round(dtype=torch.float32)
    updates = attacked(round_, lambda update, _: mapped(update, lambda A, B: (1000 * A, B)))
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK}
    for client, update in updates.items():
        save_adapter(replace(update, config=config), tmp_path / client)
    stored = {client: open_adapter(tmp_path / client) for client in updates}
    for robust in (CLIP, MEDIAN, EVERYTHING):
        found = combine(stored, reference=round_.start, robust=robust)
        expected = combine(updates, reference=round_.start, robust=robust)
        assert torch.equal(effect(found), effect(expected))
        assert found.report.notes == expected.report.notes != ()


def test_inputs_are_never_changed():
    round_ = honest_round()
    updates = attacked(round_, scaled_1000_times)
    before = {client: effect(combine({"a": update})) for client, update in updates.items()}
    combine(updates, reference=round_.start, robust=EVERYTHING)
    for client, update in updates.items():
        assert torch.equal(effect(combine({"a": update})), before[client])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clip": 0.0}, "clip is 0.0"),
        ({"clip": math.nan}, "clip is nan"),
        ({"clip": -1.0}, "clip is -1.0"),
        ({"gauge_limit": 0.0}, "gauge_limit is 0.0"),
        ({"gauge_limit": 1.5}, "gauge_limit is 1.5"),
        ({"gauge_limit": math.nan}, "gauge_limit is nan"),
        ({"select": "krum"}, "select is 'krum'; expected 'all' or 'multi_krum'"),
        ({"weighting": "median"}, "weighting is 'median'; expected 'given' or 'geometric_median'"),
        ({"select": "multi_krum"}, "attackers is 0 with select = 'multi_krum'"),
        ({"select": "multi_krum", "attackers": -1}, "attackers is -1"),
        ({"attackers": 1}, "attackers is 1 with select = 'all'"),
    ],
)
def test_a_setting_out_of_its_range_is_a_programmers_error(settings, message):
    with pytest.raises(ValueError, match=message):
        Robust(**settings)


def test_a_defence_without_the_rounds_start_is_a_programmers_error():
    with pytest.raises(ValueError, match="robust aggregation needs `reference`"):
        combine(honest_round().honest, robust=Robust())


def test_flex_lora_and_lora_fair_are_reported_with_the_notes_of_the_defence():
    round_ = honest_round()
    for method in (FlexLora(), LoraFair()):
        report = aggregate(attacked(round_, flipped), method=method, reference=round_.start, robust=CLIP).report
        assert report.method == method.name
        assert any(note.startswith("attacker: ") for note in report.notes)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@attacks
def test_the_gpu_agrees_with_the_cpu(attack):
    round_ = honest_round()
    updates = attacked(round_, attack)
    there = {
        name: replace(mapped(update, lambda A, B: (A.cuda(), B.cuda())), dense={"head": update.dense["head"].cuda()})
        for name, update in updates.items()
    }
    for robust in (CLIP, KRUM, MEDIAN, EVERYTHING):
        expected = aggregate(updates, reference=round_.start, robust=robust)
        found = aggregate(there, reference=round_.start, robust=robust)
        assert found.adapter.layers["q_proj"].A.device.type == "cuda"
        torch.testing.assert_close(effect(found).cpu(), effect(expected), rtol=1e-8, atol=1e-8)
        assert [note.split(",")[0] for note in found.report.notes] == [
            note.split(",")[0] for note in expected.report.notes
        ]
