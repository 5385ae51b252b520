"""A method that is a sequence of sums needs nothing of a client but what the client can compute by itself.

Here each client, and the server, runs the method's phases on its own. A client knows its pair, the means and the sums
before; what leaves it is its part of the next sum. The sums are taken in float64 outside.
"""

from dataclasses import replace

import pytest
import torch

from fedlora.adapters import LoraLayer
from fedlora.aggregation import METHODS, FedExLora, FlexLora, LoraFair, aggregate
from fedlora.aggregation.base_change import accumulated
from fedlora.methods import ClientPair, Combined, Layer, Product

IN, OUT, SCALING = 40, 50, 2.0
SUMS = {name: make() for name, make in METHODS.items() if not make().needs_every_pair} | {
    "lora_fair, A": LoraFair(corrects="A"),
    "flex_lora, sketched": FlexLora(power_iterations=2),
    "fedex_lora, sketched": FedExLora(residual_rank=4, power_iterations=2),
    "fedex_lora, summed": FedExLora(residual_rank=30, power_iterations=0),
}


def phases_of(method, layer):
    """Yield what `combine` yields; of one that asks for nothing, nothing."""
    combined = method.combine(layer)
    return combined if isinstance(combined, Combined) else (yield from combined)


class Client:
    """Knows its own pair and what is sent to it."""

    def __init__(self, A, B):
        self.A, self.B = A, B

    def mean_parts(self, rank):
        """Return A and B below zeros, and which rows are its own."""
        A, B = torch.zeros(rank, IN, dtype=torch.float64), torch.zeros(OUT, rank, dtype=torch.float64)
        A[: len(self.A)], B[:, : len(self.A)] = self.A, self.B
        return A, B, (torch.arange(rank) < len(self.A)).double()

    def start(self, method, layer):
        self.phases = phases_of(method, layer)
        self.pair = ClientPair(self.A, self.B, layer.mean_A, layer.owned_B)

    def part(self, total):
        """Return what it adds to the next sum, given the sum before; None after the last."""
        try:
            part = self.phases.send(total)(self.pair)
        except StopIteration:
            return None
        return part.left.double() @ part.right.double() if isinstance(part, Product) else part.double()


def combined_apart(method, pairs, p, start, base_change):
    """Return what the server combines from the clients' sums alone."""
    clients = [Client(*pair) for pair in pairs]
    rank = len(start.A)

    def summed(parts):
        return sum((weight * part for weight, part in zip(p, parts, strict=True)), torch.zeros(()))

    A, B, mass = map(summed, zip(*(client.mean_parts(rank) for client in clients), strict=True))
    layer = Layer(
        torch.where(mass[:, None] > 0, A / mass[:, None], start.A).float(),
        B.float(),
        torch.where(mass > 0, B / mass, start.B).float(),
        start.A,
        start.B,
        (base_change.B / SCALING, base_change.A),
    )
    for client in clients:
        client.start(method, replace(layer))
    server, total, num_sums = phases_of(method, layer), None, 0
    while True:
        parts = [client.part(total) for client in clients]
        try:
            server.send(total)
        except StopIteration as ended:
            assert all(part is None for part in parts)
            return ended.value, num_sums
        total, num_sums = summed(parts).float(), num_sums + 1


@pytest.mark.parametrize("ranks", [[3] * 5, [3, 1, 2, 3, 1], [2, 1]], ids=["one rank", "mixed", "below the start"])
@pytest.mark.parametrize("method", SUMS.values(), ids=SUMS)
def test_clients_that_know_only_themselves_and_the_sums_give_what_the_driver_gives(make_updates, method, ranks):
    shapes = {"out_features": OUT, "in_features": IN, "dtype": torch.float32}
    updates = make_updates(1, ranks=ranks, spread=0.3, **shapes)
    (start,) = make_updates(2, num_clients=1, rank=3, **shapes).values()
    change = LoraLayer(torch.randn(4, IN), torch.randn(OUT, 4), 1.0)
    if method.changes_base:
        start = replace(start, base_change={"q_proj": change})
    p = torch.arange(1.0, len(ranks) + 1).double()
    expected = aggregate(
        updates, weights=dict(zip(updates, p.tolist(), strict=True)), method=method, reference=start
    ).adapter
    pairs = [(update.layers["q_proj"].A, update.layers["q_proj"].B) for update in updates.values()]
    found, num_sums = combined_apart(method, pairs, (p / p.sum()).tolist(), start.layers["q_proj"], change)
    assert relative(found.B.double() @ found.A.double(), product(expected.layers["q_proj"]) / SCALING) < 2e-6
    assert relative(found.A, expected.layers["q_proj"].A) < 1e-4
    assert relative(found.B, expected.layers["q_proj"].B) < 1e-4
    assert (num_sums > 0) == (method.name not in {"fedit", "ffa_lora", "rolora"})
    if method.changes_base:
        added = LoraLayer(found.base_change[1], SCALING * found.base_change[0], 1.0)
        whole = accumulated(change, added, rank=method.base_change_rank)
        assert relative(product(whole), product(expected.base_change["q_proj"])) < 1e-5


def product(layer):
    return layer.scaling * layer.B.double() @ layer.A.double()


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


def test_a_method_that_sums_is_given_no_other_pair(make_updates):
    class Peeking(LoraFair):
        name = "peeking"

        def combine(self, layer):
            layer.every_pair()

    with pytest.raises(TypeError, match=r"needs_every_pair.*sums alone"):
        aggregate(make_updates(), method=Peeking())


def test_a_pair_alone_takes_memory_of_its_own_for_its_deviations():
    A, B, mean_A, mean_B = torch.ones(2, 5), torch.ones(4, 2), torch.rand(3, 5), torch.rand(4, 3)
    pair = ClientPair(A, B, mean_A, mean_B)
    assert torch.equal(pair.dA, A - mean_A[:2])
    assert torch.equal(pair.dB, B - mean_B[:, :2])
    assert pair.dA is pair.dA
    space = torch.empty(3, 5), torch.empty(4, 3)
    shared = ClientPair(A, B, mean_A, mean_B, space=space)
    assert torch.equal(shared.dA, pair.dA)
    assert torch.equal(shared.dB, pair.dB)
    assert (shared.dA.data_ptr(), shared.dB.data_ptr()) == (space[0].data_ptr(), space[1].data_ptr())
