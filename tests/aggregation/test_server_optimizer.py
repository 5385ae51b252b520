"""The server's optimiser against loops by hand: on the factors, on heads, and on products against dense ones."""

from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from fedlora.adapters import Adapter, LoraLayer
from fedlora.aggregation import FedIT, FfaLora, FlexLora, RoLora, ServerOptimizer, aggregate
from fedlora.aggregation.product_step import Step, product_step
from fedlora.common.errors import AdapterError
from fedlora.methods import METHODS, Combined, Layer
from fedlora.server.disk.method_state import pack_state, unpack_state

LAYER, HEAD = "q_proj", "head.weight"
KINDS = ("momentum", "adam", "yogi")
RATES = {"learning_rate": 0.7, "momentum": 0.6, "beta_1": 0.8, "beta_2": 0.95, "tau": 0.03}
STEPPING = [name for name, kind in METHODS.items() if kind().takes_server_optimizer()]


@pytest.fixture
def start(make_updates) -> Adapter:
    return with_head(next(iter(make_updates(seed=9, num_clients=1).values())), torch.arange(6.0).double().view(2, 3))


def with_head(adapter: Adapter, head: Tensor) -> Adapter:
    return replace(adapter, dense={HEAD: head})


def trained(start: Adapter, seed: int, *, trains: tuple[str, ...] = ("A", "B")) -> dict[str, Adapter]:
    """Return what three clients make of a start in a round."""
    generator = torch.Generator().manual_seed(seed)

    def moved(tensor: Tensor) -> Tensor:
        return tensor + 0.1 * torch.randn(tensor.shape, dtype=torch.float64, generator=generator)

    layer = start.layers[LAYER]
    updates = {}
    for client in ("a", "b", "c"):
        factors = {factor: moved(getattr(layer, factor)) for factor in trains}
        updates[client] = with_head(replace(start, layers={LAYER: replace(layer, **factors)}), moved(start.dense[HEAD]))
    return updates


def three_rounds(start: Adapter, **how) -> Iterator[tuple[Adapter, Adapter, Adapter, dict]]:
    """Yield of each of three rounds its start, what the method makes of it alone, where it goes, and what is kept."""
    state, method = {}, how.get("method")
    for seed in range(3):
        updates = trained(start, seed)
        plain = aggregate(updates, method=method, reference=start).adapter
        result = aggregate(updates, reference=start, state=state, **how)
        state = unpack_state(pack_state(result.state))
        yield start, plain, result.adapter, result.report
        start = result.adapter


class ByHand:
    """The formulas of the papers, with their corrections, for one tensor."""

    def __init__(self, kind: str) -> None:
        self.kind, self.t, self.m, self.v = kind, 0, 0.0, 0.0

    def step(self, change: Tensor) -> Tensor:
        rate, b1, b2, tau = (RATES[name] for name in ("learning_rate", "beta_1", "beta_2", "tau"))
        self.t += 1
        if self.kind == "momentum":
            self.m = RATES["momentum"] * self.m + change
            return rate * self.m
        self.m = b1 * self.m + (1 - b1) * change
        m = self.m / (1 - b1**self.t)
        if self.kind == "adam":
            self.v = b2 * self.v + (1 - b2) * change**2
            return rate * m / ((self.v / (1 - b2**self.t)) ** 0.5 + tau)
        self.v = change**2 if self.t == 1 else self.v - (1 - b2) * change**2 * torch.sign(self.v - change**2)
        return rate * m / (self.v**0.5 + tau)


@pytest.mark.parametrize("acts_on", ["factors", "product"])
@pytest.mark.parametrize("kind", KINDS)
def test_factors_and_heads_step_as_the_papers_formulas_say(start, kind, acts_on):
    parts = {
        "head": lambda adapter: adapter.dense[HEAD],
        "A": lambda adapter: adapter.layers[LAYER].A,
        "B": lambda adapter: adapter.layers[LAYER].B,
    }
    if acts_on == "product":
        parts = {"head": parts["head"]}
    by_hand = {name: ByHand(kind) for name in parts}
    optimizer = ServerOptimizer(kind, acts_on, **RATES)
    for before, plain, found, report in three_rounds(start, server_optimizer=optimizer):
        for name, part in parts.items():
            expected = part(before) + by_hand[name].step(part(plain) - part(before))
            torch.testing.assert_close(part(found), expected, rtol=1e-12, atol=1e-12)
        assert (report.server_step.optimizer, report.server_step.acts_on) == (kind, acts_on)


@pytest.mark.parametrize("kind", KINDS)
def test_products_step_as_dense_ones_whose_parts_beyond_the_rank_are_cut(start, kind):
    rate, b1, b2, tau = (RATES[name] for name in ("learning_rate", "beta_1", "beta_2", "tau"))
    kept, fresh = (RATES["momentum"], 1.0) if kind == "momentum" else (b1, 1 - b1)
    m, v = torch.zeros(12, 9, dtype=torch.float64), 0.0
    optimizer = ServerOptimizer(kind, "product", **RATES)
    for t, (before, plain, found, report) in enumerate(three_rounds(start, server_optimizer=optimizer), 1):
        change = weight_of(plain) - weight_of(before)
        m, square = kept * m + fresh * change, float(change.square().mean())
        gain = rate
        if kind == "adam":
            v = b2 * v + (1 - b2) * square
            gain = rate / (1 - b1**t) / ((v / (1 - b2**t)) ** 0.5 + tau)
        elif kind == "yogi":
            v = square if t == 1 else v + (1 - b2) * square * (1 if square > v else -1)
            gain = rate / (1 - b1**t) / (v**0.5 + tau)
        expected = cut(weight_of(before) + gain * m, 3)
        torch.testing.assert_close(weight_of(found), expected, rtol=1e-9, atol=1e-9)
        reach = (expected - weight_of(before)).norm() / change.norm()
        assert report.server_step.reach == pytest.approx(float(reach), rel=1e-6)
        m = cut(m, 6)


def weight_of(adapter: Adapter) -> Tensor:
    layer = adapter.layers[LAYER]
    return layer.scaling * layer.B @ layer.A


def cut(matrix: Tensor, rank: int) -> Tensor:
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    return U[:, :rank] * S[:rank] @ Vh[:rank]


@pytest.mark.parametrize("acts_on", ["factors", "product"])
@pytest.mark.parametrize("name", STEPPING)
def test_a_learning_rate_of_one_without_momentum_changes_no_bit(start, name, acts_on):
    optimizer = ServerOptimizer("momentum", acts_on, learning_rate=1.0, momentum=0.0)
    for _, plain, found, report in three_rounds(start, method=METHODS[name](), server_optimizer=optimizer):
        assert torch.equal(found.layers[LAYER].A, plain.layers[LAYER].A)
        assert torch.equal(found.layers[LAYER].B, plain.layers[LAYER].B)
        assert torch.equal(found.dense[HEAD], plain.dense[HEAD])
        assert report.server_step.reach == pytest.approx(1.0)


def test_momentum_steps_up_to_twice_as_far_where_rounds_agree():
    start = Adapter({LAYER: LoraLayer(torch.zeros(1, 2), torch.zeros(3, 1), 1.0)})
    state, steps = {}, []
    for _ in range(20):
        layer = start.layers[LAYER]
        update = Adapter({LAYER: replace(layer, A=layer.A + 1)})
        result = aggregate({"a": update}, reference=start, state=state, server_optimizer=ServerOptimizer(momentum=0.5))
        steps.append(float((result.adapter.layers[LAYER].A - layer.A).mean()))
        start, state = result.adapter, result.state
    assert steps[:3] == [1.0, 1.5, 1.75]
    assert steps[-1] == pytest.approx(2.0, abs=1e-4)


def test_the_errors_of_the_report_are_the_methods_own(start):
    optimizer = ServerOptimizer("momentum", learning_rate=3.0)
    updates = trained(start, 0)
    alone, report = (aggregate(updates, reference=start, **how).report for how in ({}, {"server_optimizer": optimizer}))
    assert replace(report, server_step=None) == alone
    assert report.server_step.reach > 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_factor_that_nobody_trains_stays_to_the_last_bit_and_its_moments_wait(start, kind):
    optimizer, method, state = ServerOptimizer(kind), RoLora(), {}
    moved = {"A": ByHand(kind), "B": ByHand(kind)}
    optimizer = ServerOptimizer(kind, **RATES)
    for number in range(1, 5):
        (factor,) = method.plan(number).trains
        other = "A" if factor == "B" else "B"
        updates = trained(start, number, trains=(factor,))
        plain = aggregate(updates, method=method, reference=start).adapter.layers[LAYER]
        result = aggregate(updates, method=method, reference=start, state=state, server_optimizer=optimizer)
        before, found = start.layers[LAYER], result.adapter.layers[LAYER]
        assert torch.equal(getattr(found, other), getattr(before, other))
        expected = getattr(before, factor) + moved[factor].step(getattr(plain, factor) - getattr(before, factor))
        torch.testing.assert_close(getattr(found, factor), expected, rtol=1e-12, atol=1e-12)
        start, state = result.adapter, result.state


def test_a_frozen_A_is_the_same_in_every_round(start):
    A = start.layers[LAYER].A
    for number, kind in enumerate(KINDS):
        updates = trained(start, number, trains=("B",))
        result = aggregate(updates, method=FfaLora(), reference=start, server_optimizer=ServerOptimizer(kind))
        assert torch.equal(result.adapter.layers[LAYER].A, A)
        start = result.adapter


def test_a_layer_whose_clients_sat_the_round_out_stays_with_what_is_known_of_it(start):
    layer = start.layers[LAYER]
    start = replace(start, layers={LAYER: layer, "other": layer})
    everybody = {"a": replace(start, layers={LAYER: layer, "other": replace(layer, A=layer.A + 1)})}
    optimizer = ServerOptimizer()
    first = aggregate(everybody, reference=start, server_optimizer=optimizer)
    absent = {"a": replace(first.adapter, layers={LAYER: first.adapter.layers[LAYER]})}
    second = aggregate(absent, reference=first.adapter, state=first.state, server_optimizer=optimizer)
    assert torch.equal(second.adapter.layers["other"].A, first.adapter.layers["other"].A)
    (key,) = (key for key in first.state if key.endswith("other"))
    assert torch.equal(second.state[key]["A_first"], first.state[key]["A_first"])


def test_the_product_steps_the_same_in_any_gauge(start, whole_change):
    turn = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5))

    def turned(adapter: Adapter) -> Adapter:
        layer = adapter.layers[LAYER]
        pair = replace(layer, A=turn @ layer.A, B=layer.B @ torch.linalg.inv(turn))
        return replace(adapter, layers={LAYER: pair})

    update = trained(start, 0)["a"]
    later = trained(update, 1)["a"]
    found = []
    for gauge in (lambda adapter: adapter, turned):
        optimizer = ServerOptimizer("momentum", "product", momentum=0.6)
        first = aggregate({"a": gauge(update)}, reference=start, method=FedIT(), server_optimizer=optimizer)
        second = aggregate(
            {"a": gauge(later)}, reference=first.adapter, method=FedIT(), state=first.state, server_optimizer=optimizer
        )
        found.append(whole_change(second))
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-6)


def test_the_products_pair_stays_close_to_the_methods_and_no_direction_of_it_is_dead(start):
    layer = start.layers[LAYER]
    start = replace(start, layers={LAYER: replace(layer, B=torch.zeros_like(layer.B))})
    optimizer = ServerOptimizer("momentum", "product", momentum=0.6)
    for _, plain, found, _ in three_rounds(start, server_optimizer=optimizer):
        A, new_A = plain.layers[LAYER].A, found.layers[LAYER].A
        assert (new_A - A).norm() < 0.3 * A.norm()
        assert torch.linalg.svdvals(new_A).min() > 0.1 * A.norm() / 3**0.5 - 1e-9


def test_a_direction_that_only_earlier_rounds_moved_in_is_no_weaker_than_a_tenth_of_the_others():
    identity = torch.eye(6, dtype=torch.float64)
    pair = identity[:2], identity[:, :2] * torch.tensor([10.0, 0.01])
    moment = identity[2:3], 5 * identity[:, 2:3]
    (A, B), _ = product_step(pair, pair, moment, Step(kept=1.0, fresh=1.0, gain=1.0))
    torch.testing.assert_close(B @ A, torch.diag(torch.tensor([10.0, 0, 5, 0, 0, 0]).double()), rtol=1e-9, atol=1e-9)
    assert torch.linalg.svdvals(A) == pytest.approx([1.0, 0.1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_product_that_has_not_changed_stays_as_its_pair_is(start, kind):
    result = aggregate({"a": start}, reference=start, server_optimizer=ServerOptimizer(kind, "product"))
    assert torch.equal(result.adapter.layers[LAYER].A, start.layers[LAYER].A)
    assert torch.equal(result.adapter.layers[LAYER].B, start.layers[LAYER].B)
    assert (result.state, result.report.server_step.reach) == ({}, 0.0)


def test_a_product_of_smaller_rank_than_its_pair_leaves_directions_to_learn_in(start):
    layer = start.layers[LAYER]
    B = torch.zeros_like(layer.B)
    empty = replace(start, layers={LAYER: replace(layer, B=B)})
    one = B.clone()
    one[0, 0] = 1.0
    update = {"a": replace(start, layers={LAYER: replace(layer, B=one)})}
    optimizer = ServerOptimizer("momentum", "product", learning_rate=0.5)
    found = aggregate(update, reference=empty, method=FedIT(), server_optimizer=optimizer).adapter.layers[LAYER]
    torch.testing.assert_close(found.B @ found.A, 0.5 * one @ layer.A, rtol=1e-6, atol=1e-6)
    assert torch.linalg.matrix_rank(found.A) == 3


def test_vectors_of_a_layer_step_and_what_is_counted_does_not(start):
    layer = replace(start.layers[LAYER], bias=torch.ones(12), magnitude=torch.ones(12))
    dense = {
        "norm.weight": torch.ones(3),
        "norm.running_var": torch.ones(3),
        "norm.running_mean": torch.ones(3),
        "norm.num_batches_tracked": torch.tensor(4),
    }
    start = replace(start, layers={LAYER: layer}, dense=dense)
    moved = replace(layer, bias=torch.zeros(12), magnitude=torch.zeros(12))
    update = replace(start, layers={LAYER: moved}, dense={path: 0 * tensor for path, tensor in dense.items()})
    optimizer = ServerOptimizer("momentum", learning_rate=1.5)
    found = aggregate({"a": update}, reference=start, server_optimizer=optimizer).adapter
    for tensor in (found.layers[LAYER].bias, found.layers[LAYER].magnitude, found.dense["norm.weight"]):
        torch.testing.assert_close(tensor, torch.full_like(tensor, -0.5))
    assert all(torch.equal(found.dense[path], update.dense[path]) for path in dense if path != "norm.weight")


def test_clients_of_smaller_ranks_and_methods_with_a_state_of_their_own_go_with_it(make_updates):
    class Counting(FlexLora):
        name: ClassVar[str] = "counting"

        def combine(self, layer: Layer) -> Combined:
            combined = super().combine(layer)
            assert isinstance(combined, Combined)
            return replace(combined, state={"rounds": layer.state.get("rounds", torch.tensor(0)) + 1})

    updates = make_updates(ranks=[3, 2, 1])
    start = make_updates(seed=3, num_clients=1)["client-00"]
    for acts_on in ("factors", "product"):
        state = {}
        for number in (1, 2):
            result = aggregate(
                updates,
                method=Counting(),
                reference=start,
                state=state,
                server_optimizer=ServerOptimizer(acts_on=acts_on),
            )
            state = result.state
            assert (int(state[LAYER]["rounds"]), len(state)) == (number, 2)
        assert result.adapter.layers[LAYER].rank == 3


def test_what_it_cannot_step_is_refused(start, make_updates):
    updates, optimizer = make_updates(), ServerOptimizer()
    with pytest.raises(ValueError, match="needs `reference`"):
        aggregate(updates, server_optimizer=optimizer)
    for name in set(METHODS) - set(STEPPING):
        with pytest.raises(ValueError, match=f"does not go with {name}"):
            aggregate(updates, method=METHODS[name](), reference=start, server_optimizer=optimizer)
    huge = {"a": replace(start, layers={}, dense={HEAD: start.dense[HEAD].float() + 1e25})}
    with pytest.raises(AdapterError, match=r"head\.weight: changes so large that the server's optimiser overflows"):
        aggregate(huge, reference=start, server_optimizer=ServerOptimizer("adam"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "sgd"},
        {"acts_on": "A"},
        {"learning_rate": 0.0},
        {"tau": float("nan")},
        {"momentum": 1.0},
        {"beta_2": -1},
    ],
)
def test_a_setting_out_of_its_range_is_refused_by_its_name(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"^{name} is .*; expected "):
        ServerOptimizer(**wrong)
