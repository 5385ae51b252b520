"""A private round is the method's own but for clip and noise, and one client moves it by no more than the clip."""

import math

import pytest
import torch

from fedlora.adapters import Adapter, LoraLayer
from fedlora.aggregation import aggregate
from fedlora.methods import METHODS, Method
from fedlora.server.rounds.private_round import PrivateRound, private_round, sums_of

CLIENTS = ("east", "north", "south", "west")
OF_SUMS = [METHODS[name]() for name in ("fedit", "lora_fair", "lora_fair_two_sided", "ffa_lora", "rolora")]
# So little that it is lost in the rounding of float32.
HARDLY_ANY = 1e-13


def adapter(seed: int, *, near: Adapter | None = None, trains: tuple[str, ...] = ("A", "B")) -> Adapter:
    """Return an adapter of two layers with a head and a counter; `near` another one, as after training."""
    random = torch.Generator().manual_seed(seed)

    def drawn(shape: torch.Size | tuple[int, ...], like: torch.Tensor | None, *, moves: bool = True) -> torch.Tensor:
        if like is None:
            return torch.randn(shape, generator=random) * 0.3
        return like + torch.randn(shape, generator=random) * 0.05 if moves else like

    def layer(path: str, width: int) -> LoraLayer:
        old = near.layers[path] if near else None
        return LoraLayer(
            drawn((4, width), old.A if old else None, moves="A" in trains),
            drawn((10, 4), old.B if old else None, moves="B" in trains),
            2.0,
        )

    layers = {path: layer(path, width) for path, width in (("query", 12), ("value", 16))}
    head = drawn((3, 10), near.dense["head"] if near else None)
    return Adapter(layers, {"head": head, "seen": torch.tensor(40 + (seed if near else 0))})


def updates_of(start: Adapter, method: Method) -> dict[str, Adapter]:
    trains = method.plan(1).trains
    return {name: adapter(number, near=start, trains=trains) for number, name in enumerate(CLIENTS, start=1)}


def made(
    updates: dict[str, Adapter],
    start: Adapter,
    method: Method,
    *,
    clip: float = 1e6,
    noise: float = HARDLY_ANY,
    num_asked: int = len(CLIENTS),
) -> PrivateRound:
    return private_round(
        updates,
        start=start,
        method=method,
        trains=method.plan(1).trains,
        num_asked=num_asked,
        clips=[clip] * sums_of(method),
        noise_multiplier=noise,
    )


def parts(result: Adapter, start: Adapter) -> torch.Tensor:
    """Return how an adapter differs from the round's start, in one vector."""
    moved = [result.layers[path].A - start.layers[path].A for path in sorted(start.layers)]
    moved += [result.layers[path].B - start.layers[path].B for path in sorted(start.layers)]
    return torch.cat([part.reshape(-1) for part in (*moved, result.dense["head"] - start.dense["head"])])


@pytest.mark.parametrize("method", OF_SUMS, ids=str)
def test_without_a_clip_that_cuts_and_noise_that_counts_it_is_the_methods_own_round(method: Method) -> None:
    start = adapter(0)
    updates = updates_of(start, method)
    found = made(updates, start, method)
    expected = aggregate(updates, method=method, reference=start, measure=False).adapter
    torch.testing.assert_close(parts(found.adapter, start), parts(expected, start), atol=3e-6, rtol=0)
    assert found.num_clipped == (0,) * sums_of(method)


@pytest.mark.parametrize("clip", [1e-3, 0.2, 50.0])
def test_one_client_moves_the_sum_by_no_more_than_the_clip(clip: float) -> None:
    start, method = adapter(0), METHODS["fedit"]()
    updates = updates_of(start, method)
    loud = adapter(9, near=start)
    layers = {path: LoraLayer(1e5 * layer.A, 1e5 * layer.B, 2.0) for path, layer in loud.layers.items()}
    updates["south"] = Adapter(layers, loud.dense)
    without = {name: update for name, update in updates.items() if name != "south"}
    both = [parts(made(each, start, method, clip=clip, noise=1e-9).adapter, start) for each in (updates, without)]
    distance = float((both[0] - both[1]).double().norm()) * len(CLIENTS)
    assert distance == pytest.approx(clip, rel=1e-3)


def test_the_noise_is_as_large_as_is_accounted_for() -> None:
    start, method, clip, noise = adapter(0), METHODS["fedit"](), 0.5, 3.0
    found = [parts(made({}, start, method, clip=clip, noise=noise).adapter, start) for _ in range(40)]
    numbers = torch.cat(found).double() * len(CLIENTS) / (noise * clip)
    assert abs(float(numbers.square().mean()) - 1) < 6 * math.sqrt(2 / numbers.numel())
    assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize(("name", "frozen"), [("ffa_lora", "A"), ("rolora", "A")])
def test_what_nobody_trains_gets_no_noise(name: str, frozen: str) -> None:
    start, method = adapter(0), METHODS[name]()
    found = made(updates_of(start, method), start, method, clip=1.0, noise=5.0).adapter
    for path, layer in found.layers.items():
        assert torch.equal(getattr(layer, frozen), getattr(start.layers[path], frozen))
        assert not torch.equal(layer.B, start.layers[path].B)
    assert found.dense["seen"] == start.dense["seen"] == 40


def test_a_client_that_was_asked_and_did_not_answer_counts_in_the_number_that_is_divided_by() -> None:
    start, method = adapter(0), METHODS["fedit"]()
    updates = updates_of(start, method)
    whole = parts(made(updates, start, method).adapter, start)
    more = parts(made(updates, start, method, num_asked=8).adapter, start)
    torch.testing.assert_close(more, whole / 2, atol=1e-6, rtol=0)


def test_how_many_were_clipped_is_counted_by_sum() -> None:
    start, method = adapter(0), METHODS["lora_fair"]()
    updates = updates_of(start, method)
    found = private_round(
        updates,
        start=start,
        method=method,
        trains=("A", "B"),
        num_asked=4,
        clips=(1e-3, 1e3),
        noise_multiplier=1e-9,
    )
    assert found.num_clipped == (4, 0)


def test_a_term_that_is_not_finite_adds_nothing() -> None:
    start, method = adapter(0), METHODS["fedit"]()
    updates = updates_of(start, method)
    updates["west"].layers["query"].A[0, 0] = math.inf
    without = {name: update for name, update in updates.items() if name != "west"}
    found, expected = (made(each, start, method) for each in (updates, without))
    torch.testing.assert_close(parts(found.adapter, start), parts(expected.adapter, start), atol=1e-6, rtol=0)
    assert found.num_clipped == (1,)


@pytest.mark.parametrize("clips", [(1.0,), (1.0, 1.0, 1.0)])
def test_as_many_clips_as_sums_are_asked_for(clips: tuple[float, ...]) -> None:
    start, method = adapter(0), METHODS["lora_fair"]()
    with pytest.raises(ValueError, match="as many as lora_fair takes sums"):
        private_round(
            updates_of(start, method),
            start=start,
            method=method,
            trains=("A", "B"),
            num_asked=4,
            clips=clips,
            noise_multiplier=1.0,
        )
