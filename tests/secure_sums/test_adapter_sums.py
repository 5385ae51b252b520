"""A round by secure sums ends in the adapter that it would end in in the open, but for the rounding of fixed point."""

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parent))

from sums import introduced, members_of

from fedlora.adapters import Adapter, LoraLayer
from fedlora.aggregation import aggregate
from fedlora.common.errors import AdapterError, ConfigError
from fedlora.methods import METHODS, Method
from fedlora.methods.flex_lora import FlexLora
from fedlora.secure_sums.adapter_sums import AdapterSums, num_sums
from fedlora.secure_sums.keys import SumPlan
from fedlora.secure_sums.ring import FixedPoint

SITES = ("east", "north", "south", "west")
EXAMPLES = {"east": 100, "north": 900, "south": 400, "west": 250}
MOST_EXAMPLES = 1000
CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["query", "value"]}


def adapter(seed: int, *, near: Adapter | None = None) -> Adapter:
    """Return an adapter of two layers with a head, a magnitude and a counter; `near` another one, as after training."""
    random = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random) * (0.05 if near else 0.3)

    def moved(path: str, width: int) -> LoraLayer:
        layer = LoraLayer(drawn(4, width), drawn(10, 4), 2.0, magnitude=drawn(10).abs())
        if near is None:
            return layer
        old = near.layers[path]
        assert old.magnitude is not None
        assert layer.magnitude is not None
        return LoraLayer(old.A + layer.A, old.B + layer.B, 2.0, magnitude=old.magnitude + layer.magnitude)

    layers = {"blocks.0.query": moved("blocks.0.query", 12), "blocks.0.value": moved("blocks.0.value", 16)}
    head = drawn(3, 10) + (near.dense["head.weight"] if near else 0)
    return Adapter(layers, {"head.weight": head, "seen": torch.tensor(40 + seed)}, CONFIG)


def secure(method: Method, start: Adapter, updates: Mapping[str, Adapter], leaves_second: str = "") -> Adapter:
    """Return what the sites' updates become by secure sums; one may leave after the first."""
    plan = SumPlan("run", 1, 0, SITES, 3, num_sums(method, start))
    members = members_of(plan)
    gathering = introduced(plan, members)
    fixed = FixedPoint(32, 64.0, len(SITES))
    # Each site, and the server, goes through the method by itself.
    own = {name: AdapterSums(method, start) for name in SITES}
    servers = AdapterSums(method, start)
    for index in range(plan.num_sums):
        there = [name for name in SITES if index == 0 or name != leaves_second]
        for name in there:
            weight = EXAMPLES[name] / MOST_EXAMPLES / len(SITES)
            numbers = own[name].term(updates[name]).numpy()
            term, num_clipped = fixed.written(numbers, weight=weight)
            assert num_clipped == 0
            gathering.add_masked(index, name, members[name].masked(index, term))
        listed = gathering.there(index)
        consents = {name: members[name].consented(index, listed) for name in there}
        vouchers = {name: members[name].voucher(index) for name in there}
        for name in there:
            gathering.add_revealed(index, name, members[name].revealed(index, consents, vouchers))
        total = torch.from_numpy(fixed.read(gathering.total(index)))
        for sums in (servers, *own.values()):
            sums.take(total)
    assert servers.is_over
    return servers.result()


def differences(first: Adapter, second: Adapter) -> float:
    """Return the largest difference of any two numbers of two adapters."""
    pairs = [
        (getattr(first.layers[path], name), getattr(second.layers[path], name))
        for path in first.layers
        for name in ("A", "B", "magnitude")
    ] + [(first.dense[path], second.dense[path]) for path in first.dense]
    assert first.layers.keys() == second.layers.keys()
    assert first.dense.keys() == second.dense.keys()
    return max(float((one - other).abs().max()) for one, other in pairs)


METHODS_OF_SUMS = [METHODS[name]() for name in ("fedit", "lora_fair", "lora_fair_two_sided", "ffa_lora", "rolora")] + [
    METHODS["lora_fair"](corrects="A"),
    FlexLora(power_iterations=0),
    FlexLora(power_iterations=2),
]


@pytest.mark.parametrize("method", METHODS_OF_SUMS, ids=str)
def test_a_round_is_that_in_the_open(method: Method) -> None:
    start = adapter(0)
    updates = {name: adapter(number, near=start) for number, name in enumerate(SITES, start=1)}
    opened = aggregate(updates, weights=EXAMPLES, method=method, reference=start, measure=False).adapter
    # A unit of fixed point is 3e-8, and the weights' sum is 0.4; the rest is float32's own rounding.
    assert differences(secure(method, start, updates), opened) < 3e-6


@pytest.mark.parametrize(("name", "count"), [("fedit", 1), ("lora_fair", 2), ("lora_fair_two_sided", 5)])
def test_how_many_sums_a_round_takes(name: str, count: int) -> None:
    assert num_sums(METHODS[name](), adapter(0)) == count


def test_a_site_that_leaves_after_the_means_counts_in_them_and_corrects_nothing() -> None:
    start, method = adapter(0), METHODS["lora_fair"]()
    updates = {name: adapter(number, near=start) for number, name in enumerate(SITES, start=1)}
    found = secure(method, start, updates, leaves_second="west")
    means = aggregate(updates, weights=EXAMPLES, method=METHODS["fedit"](), reference=start, measure=False).adapter
    whole = aggregate(updates, weights=EXAMPLES, method=method, reference=start, measure=False).adapter
    for path in start.layers:
        torch.testing.assert_close(found.layers[path].A, means.layers[path].A, atol=1e-6, rtol=0)
        corrected = [(each.layers[path].B - means.layers[path].B).norm() for each in (found, whole)]
        assert corrected[0] > 0
        assert not torch.allclose(found.layers[path].B, whole.layers[path].B, atol=1e-6)


@pytest.mark.parametrize("name", ["flex_lora", "flora", "fedex_lora", "lora_fair_cosine"])
def test_what_needs_single_updates_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} .*secure sums do not show; choose one of .*lora_fair"):
        AdapterSums(METHODS[name](), adapter(0))


def test_an_update_of_other_tensors_is_refused() -> None:
    start = adapter(0)
    other = Adapter({"blocks.0.query": start.layers["blocks.0.query"]}, start.dense, CONFIG)
    with pytest.raises(AdapterError, match="other tensors"):
        AdapterSums(METHODS["fedit"](), start).term(other)


def test_a_total_of_another_length_is_refused() -> None:
    sums = AdapterSums(METHODS["fedit"](), adapter(0))
    with pytest.raises(ValueError, match="expected"):
        sums.take(torch.zeros(3))


def test_the_order_in_which_tensors_come_has_no_effect() -> None:
    start = adapter(0)
    turned = Adapter(dict(reversed(start.layers.items())), dict(reversed(start.dense.items())), CONFIG)
    update = adapter(1, near=start)
    one, other = (AdapterSums(METHODS["fedit"](), each).term(update) for each in (start, turned))
    np.testing.assert_array_equal(one.numpy(), other.numpy())
