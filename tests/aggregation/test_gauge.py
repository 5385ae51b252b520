"""Re-gauging: products stay, gauges meet, and what has no business near the start is told apart. In float64."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlora.adapters import Adapter, LoraLayer, open_adapter, save_adapter
from fedlora.aggregation.gauge import anchor_of, regauged
from fedlora.aggregation.products import start_of

few = settings(derandomize=True, database=None, deadline=None, max_examples=20)
PATH = "q_proj"
ON_A = {PATH: "A"}


def cohort_of(make_updates, seed=0, spread=0.2, **sizes):
    """Return updates, and the adapter that they started from."""
    (start,) = make_updates(seed, 1, spread=0, **sizes).values()
    return make_updates(seed, 3, spread=spread, **sizes), start


def with_pair(adapter, A, B):
    return replace(adapter, layers={PATH: replace(adapter.layers[PATH], A=A, B=B)})


def in_gauge(adapter, T):
    layer = adapter.layers[PATH]
    return with_pair(adapter, T @ layer.A, layer.B @ torch.linalg.inv(T))


def gauge_map(seed, rank, scale):
    """Return a random invertible map whose condition is at most some hundreds, times `scale`."""
    generator = torch.Generator().manual_seed(seed)
    U, S, Vh = torch.linalg.svd(torch.randn(rank, rank, dtype=torch.float64, generator=generator))
    return scale * (U * (S + 0.05)) @ Vh


def product(adapter):
    layer = adapter.layers[PATH]
    return layer.scaling * layer.B @ layer.A


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


@few
@given(st.integers(0, 1000), st.sampled_from([1e-6, 1e-3, 1.0, 1e3, 1e6]), st.sampled_from(["A", "B"]))
def test_every_gauge_of_one_product_becomes_the_same_pair(make_updates, seed, scale, anchor):
    updates, start = cohort_of(make_updates, seed)
    for update in updates.values():
        expected = regauged(update, start, anchors={PATH: anchor})
        found = regauged(in_gauge(update, gauge_map(seed, 3, scale)), start, anchors={PATH: anchor})
        for part in ("A", "B"):
            one, other = (getattr(each.adapter.layers[PATH], part) for each in (found, expected))
            assert relative(one, other) < 1e-9
        assert relative(product(found.adapter), product(update)) < 1e-10
        assert found.distance == pytest.approx(expected.distance, rel=1e-9)
        assert found.spill == pytest.approx(expected.spill, rel=1e-9)
        assert found.lost < 1e-10


@few
@given(st.integers(0, 1000))
def test_no_other_gauge_is_nearer_to_the_start(make_updates, seed):
    updates, start = cohort_of(make_updates, seed, spread=0.8)
    update, A_start = updates["client-00"], start.layers[PATH].A
    A = regauged(update, start, anchors=ON_A).adapter.layers[PATH].A
    best = torch.linalg.lstsq(update.layers[PATH].A.T, A_start.T).solution.T
    assert relative(A, best @ update.layers[PATH].A) < 1e-10


@few
@given(st.integers(0, 1000))
def test_the_distances_are_the_dense_ones(make_updates, seed):
    updates, start = cohort_of(make_updates, seed, spread=0.8)
    found = regauged(updates["client-00"], start, anchors=ON_A)
    layer, A_start = found.adapter.layers[PATH], start.layers[PATH].A
    assert found.distance == pytest.approx(relative(layer.A, A_start), rel=1e-9)
    assert found.spill == pytest.approx(relative(layer.B @ layer.A, layer.B @ A_start), rel=1e-9)
    assert 0 < found.distance < 1


def test_a_small_update_stays_where_it_is(make_updates):
    updates, start = cohort_of(make_updates, spread=1e-6)
    layer = regauged(updates["client-00"], start, anchors=ON_A).adapter.layers[PATH]
    assert relative(layer.A, updates["client-00"].layers[PATH].A) < 1e-5
    assert relative(layer.B, updates["client-00"].layers[PATH].B) < 1e-5


@pytest.mark.parametrize(("anchor", "frozen"), [("A", "A"), ("B", "B")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_pair_whose_anchor_is_frozen_stays_to_the_last_bit(make_updates, anchor, frozen, dtype):
    updates, start = cohort_of(make_updates, dtype=dtype)
    layer = replace(updates["client-00"].layers[PATH], **{frozen: getattr(start.layers[PATH], frozen)})
    found = regauged(Adapter({PATH: layer}), start, anchors={PATH: anchor})
    assert found.adapter.layers[PATH] is layer
    assert found.distance == found.spill == 0
    assert found.lost < 1e-14


def test_noise_in_place_of_a_is_far_from_the_start_however_small_its_product(make_updates):
    updates, start = cohort_of(make_updates, in_features=120)
    noise = 1000 * torch.randn(3, 120, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    B = updates["client-00"].layers[PATH].B
    for factor in (0.0, 1e-6):
        found = regauged(with_pair(start, noise, factor * B), start, anchors=ON_A)
        assert found.distance > 0.95
        assert found.adapter.layers[PATH].A.norm() < start.layers[PATH].A.norm()


def test_a_direction_that_the_start_hardly_has_is_seen_through_the_b_that_it_needs(make_updates):
    _, start = cohort_of(make_updates, in_features=120)
    layer = start.layers[PATH]
    noise = torch.randn(1, 120, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    A = torch.cat([layer.A[:2], noise])
    B = torch.cat([0 * layer.B[:, :2], layer.B[:, 2:]], 1)
    found = regauged(with_pair(start, A, B), start, anchors=ON_A)
    assert found.distance < 0.7
    assert found.spill > 0.95


def test_what_the_product_cannot_see_is_taken_from_the_start(make_updates):
    updates, start = cohort_of(make_updates)
    layer = updates["client-00"].layers[PATH]
    A, B = layer.A.clone(), layer.B.clone()
    A[2], B[:, 2] = 0, 1e6
    found = regauged(with_pair(start, A, B), start, anchors=ON_A)
    turned = found.adapter.layers[PATH]
    torch.testing.assert_close(product(found.adapter), 2 * B @ A, rtol=1e-10, atol=1e-10)
    assert turned.B.norm() < 10 * start.layers[PATH].B.norm()
    assert found.lost < 1e-10

    same_A = replace(start, layers={PATH: replace(start.layers[PATH], A=A)})
    turned = regauged(with_pair(start, A, B), same_A, anchors=ON_A).adapter.layers[PATH]
    torch.testing.assert_close(turned.A, A, rtol=0, atol=0)
    torch.testing.assert_close(turned.B[:, :2], B[:, :2], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(turned.B[:, 2], start.layers[PATH].B[:, 2], rtol=1e-12, atol=1e-12)


def test_rows_that_are_zero_at_the_start_and_in_the_update_stay_zero(make_updates):
    updates, start = cohort_of(make_updates)

    def without_last(adapter):
        layer = adapter.layers[PATH]
        A, B = layer.A.clone(), layer.B.clone()
        A[2], B[:, 2] = 0, 0
        return with_pair(adapter, A, B)

    update = without_last(updates["client-00"])
    found = regauged(update, without_last(start), anchors=ON_A)
    torch.testing.assert_close(product(found.adapter), product(update), rtol=1e-10, atol=1e-10)
    assert not found.adapter.layers[PATH].A[2].any()
    assert found.adapter.layers[PATH].B[:, 2].abs().max() < 1e-10
    assert found.lost < 1e-10


def test_a_product_without_place_at_the_start_is_reported_as_lost(make_updates):
    updates, start = cohort_of(make_updates)
    bare = with_pair(start, torch.zeros_like(start.layers[PATH].A), start.layers[PATH].B)
    assert regauged(updates["client-00"], bare, anchors=ON_A).lost == pytest.approx(1)


def test_an_embedding_that_starts_with_a_zero_is_anchored_on_b(make_updates):
    updates, start = cohort_of(make_updates)
    layer = start.layers[PATH]
    assert anchor_of(layer) == "A"
    assert anchor_of(replace(layer, B=torch.zeros_like(layer.B))) == "A"
    bare = replace(layer, A=torch.zeros_like(layer.A), is_embedding=True)
    assert anchor_of(bare) == "B"
    update = in_gauge(updates["client-00"], gauge_map(0, 3, 1000))
    found = regauged(update, Adapter({PATH: bare}), anchors={PATH: "B"})
    assert relative(product(found.adapter), product(update)) < 1e-10
    assert relative(found.adapter.layers[PATH].B, layer.B) == pytest.approx(found.distance)


def test_a_rank_above_the_layers_own_width_keeps_its_product(make_updates):
    updates, start = cohort_of(make_updates, rank=6, in_features=4)
    found = regauged(in_gauge(updates["client-00"], gauge_map(2, 6, 1.0)), start, anchors=ON_A)
    assert relative(product(found.adapter), product(updates["client-00"])) < 1e-10
    assert found.distance < 1e-10


def test_a_smaller_rank_and_another_scaling_are_compared_with_the_start_cut_and_rescaled(make_updates):
    (start,) = make_updates(1, spread=0, ranks=[4]).values()
    layer = start.layers[PATH]
    small = LoraLayer(layer.A[:2], layer.B[:, :2] * 2 / 0.5, scaling=0.5)
    A, B = start_of(layer, small)
    assert torch.equal(A, small.A)
    assert torch.equal(B, small.B)
    update = Adapter({PATH: replace(small, A=small.A + 0.1, B=small.B - 0.1)})
    found = regauged(in_gauge(update, gauge_map(0, 2, 1000.0)), start, anchors=ON_A)
    assert found.adapter.layers[PATH].scaling == 0.5
    assert relative(product(found.adapter), product(update)) < 1e-10
    assert relative(found.adapter.layers[PATH].A, layer.A[:2]) == pytest.approx(found.distance)


@pytest.mark.parametrize(("dtype", "precision"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-5), (torch.float16, 1e-5)])
def test_smaller_types_keep_their_products_to_float32s_rounding(make_updates, dtype, precision):
    updates, start = cohort_of(make_updates, dtype=dtype)
    update = updates["client-00"]
    found = regauged(update, start, anchors=ON_A).adapter
    layer = update.layers[PATH]
    assert found.layers[PATH].A.dtype == torch.float32
    assert relative(product(found).double(), 2 * layer.B.double() @ layer.A.double()) < precision


def test_an_adapter_on_disk_is_turned_as_it_is_read(make_updates, tmp_path):
    updates, start = cohort_of(make_updates, dtype=torch.float32)
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 6}
    save_adapter(replace(updates["client-00"], config=config), tmp_path)
    stored = open_adapter(tmp_path)
    found = regauged(stored, start, anchors=ON_A).adapter
    expected = regauged(updates["client-00"], start, anchors=ON_A).adapter
    assert found.outline[PATH].A.device.type == "meta"
    assert list(found.layers) == [PATH]
    assert PATH in found.layers
    assert torch.equal(found.layers[PATH].A, expected.layers[PATH].A)
    assert torch.equal(found.layers[PATH].B, expected.layers[PATH].B)
