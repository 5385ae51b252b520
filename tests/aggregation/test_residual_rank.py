"""FedEx-LoRA's change of the base weights: bounded by `residual_rank`, exact where it fits, dense where smaller."""

import pytest
import torch
from safetensors.torch import load as read_tensors

from fedlora.adapters import Adapter, LoraLayer, pack, unpack, with_base_change_inside
from fedlora.adapters.dense_change import dense_of
from fedlora.aggregation import FedExLora, FedIT, Flora, aggregate

OUT, IN, RANK, CLIENTS, ROUNDS = 60, 50, 2, 3, 16
CONFIG = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK}


def updates_of(number, *, dimensions=IN, is_embedding=False, clients=CLIENTS):
    """Return a round's updates whose rows of A all lie in the first so many of a fixed set of dimensions."""
    generator = torch.Generator().manual_seed(number)
    basis = torch.linalg.qr(torch.randn(IN, IN, generator=torch.Generator().manual_seed(99))).Q[:dimensions]
    updates = {}
    for client in range(clients):
        A = torch.randn(RANK, dimensions, generator=generator) @ basis
        B = torch.randn(OUT, RANK, generator=generator)
        updates[f"client-{client}"] = Adapter({"q": LoraLayer(A, B, 2.0, is_embedding=is_embedding)}, {}, CONFIG)
    return updates


def product(layer):
    return layer.scaling * layer.B.double() @ layer.A.double()


def error_of(updates):
    """Return what the means do not hold of the mean of the products (OUT, IN), in float64."""
    pairs = [update.layers["q"] for update in updates.values()]
    mean_A, mean_B = (sum(getattr(pair, side).double() for pair in pairs) / len(pairs) for side in "AB")
    return sum(product(pair) for pair in pairs) / len(pairs) - 2.0 * mean_B @ mean_A


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


def rounds_of(method, number=ROUNDS, **options):
    """Yield by round the updates and the result, each round from the one before."""
    reference = None
    for index in range(number):
        updates = updates_of(index, **options)
        result = aggregate(updates, method=method, reference=reference)
        reference = result.adapter
        yield updates, result


def test_over_many_rounds_a_bounded_change_is_exact_where_it_fits():
    expected = torch.zeros(OUT, IN, dtype=torch.float64)
    for updates, result in rounds_of(FedExLora(residual_rank=6), 20, dimensions=5):
        expected += error_of(updates)
        change = result.adapter.base_change["q"]
        assert change.rank <= 6
        assert relative(product(change), expected) < 2e-6
        assert result.report.error_after < 1e-6
    assert "rank 6" in result.report.layers["q"].note


def test_a_change_that_does_not_fit_is_the_best_of_its_rank_and_the_report_says_what_is_missing():
    rank, before = 8, torch.zeros(OUT, IN, dtype=torch.float64)
    sizes = []
    for updates, result in rounds_of(FedExLora(residual_rank=rank)):
        total = before + error_of(updates)
        U, S, Vh = torch.linalg.svd(total, full_matrices=False)
        change = result.adapter.base_change["q"]
        assert change.rank == min(rank, len(sizes) * 4 + 4)
        assert relative(product(change), U[:, :rank] * S[:rank] @ Vh[:rank]) < 1e-5
        ideal = sum(product(update.layers["q"]) for update in updates.values()) / CLIENTS
        missing = (total - product(change)).norm() / ideal.norm()
        assert result.report.error_after == pytest.approx(float(missing), rel=1e-4, abs=1e-6)
        before = product(change)
        sizes.append(len(pack(result.adapter)))
    assert max(sizes) == sizes[-1] == sizes[2]
    mean = aggregate(updates, method=FedIT()).adapter.layers["q"]
    assert torch.equal(result.adapter.layers["q"].A, mean.A)


def test_a_change_of_the_same_rank_moves_as_little_as_it_can_from_round_to_round():
    (*_, (_, last)) = rounds_of(FedExLora(residual_rank=8))
    before = last.adapter.base_change["q"]
    quiet = {
        name: Adapter({"q": LoraLayer(update.layers["q"].A, 1e-4 * update.layers["q"].B, 2.0)}, {}, CONFIG)
        for name, update in updates_of(99).items()
    }
    after = aggregate(quiet, method=FedExLora(residual_rank=8), reference=last.adapter).adapter.base_change["q"]
    assert relative(after.A, before.A) < 1e-3
    assert relative(after.B, before.B) < 1e-3


@pytest.mark.parametrize("method", [FedExLora(), FedExLora(residual_rank=28), Flora()], ids=str)
@pytest.mark.parametrize("is_embedding", [False, True])
def test_over_many_rounds_no_change_takes_more_than_the_weight_and_all_stay_exact(method, is_embedding):
    expected = torch.zeros(OUT, IN, dtype=torch.float64)
    for updates, result in rounds_of(method, is_embedding=is_embedding):
        ideal = sum(product(update.layers["q"]) for update in updates.values()) / CLIENTS
        expected += ideal if method == Flora() else error_of(updates)
        change = result.adapter.base_change["q"]
        assert relative(product(change), expected) < 2e-6
        assert result.report.error_after < 1e-6
        assert len(pack(result.adapter)) <= 4 * (OUT * IN + RANK * (OUT + IN)) + 800
    assert torch.equal(dense_of(change), change.B)
    assert change.is_embedding == is_embedding
    prefix = "embedding_" if is_embedding else ""
    changed = [key for key in read_tensors(pack(result.adapter)) if key.startswith("base_change")]
    assert changed == [f"base_change.q.{prefix}dense"]


@pytest.mark.parametrize(
    "method", [FedExLora(), FedExLora(residual_rank=8), FedExLora(residual_rank=8, power_iterations=1)], ids=str
)
def test_a_run_that_goes_on_from_its_journal_has_the_same_bits(method):
    straight = [result.adapter for _, result in rounds_of(method)]
    resumed = unpack(pack(straight[10]))
    for number in range(11, ROUNDS):
        resumed = unpack(pack(aggregate(updates_of(number), method=method, reference=resumed).adapter))
    assert pack(resumed) == pack(straight[-1])
    for side in "AB":
        assert torch.equal(getattr(resumed.base_change["q"], side), getattr(straight[-1].base_change["q"], side))


def test_a_wide_weight_is_dense_on_its_other_side():
    wide = {
        f"client-{seed}": Adapter(
            {"q": LoraLayer(torch.randn(4, 9, generator=generator), torch.randn(5, 4, generator=generator), 0.5)}
        )
        for seed in range(3)
        for generator in [torch.Generator().manual_seed(seed)]
    }
    change = aggregate(wide, method=Flora()).adapter.base_change["q"]
    assert torch.equal(change.B, torch.eye(5))
    assert torch.equal(dense_of(change), change.A)
    ideal = sum(product(update.layers["q"]) for update in wide.values()) / 3
    assert relative(product(change), ideal) < 1e-6


def test_a_dense_change_written_into_the_adapter_acts_the_same():
    (*_, (_, last)) = rounds_of(FedExLora())
    inside = with_base_change_inside(last.adapter)
    assert not inside.base_change
    whole = product(last.adapter.layers["q"]) + product(last.adapter.base_change["q"])
    assert relative(product(inside.layers["q"]), whole) < 1e-6


@pytest.mark.parametrize("method", [FedExLora(), Flora(), FedExLora(residual_rank=4, power_iterations=1)], ids=str)
def test_a_change_of_nothing_does_not_travel(method):
    untrained = {
        name: Adapter({"q": LoraLayer(update.layers["q"].A, torch.zeros(OUT, RANK), 2.0)}, {}, CONFIG)
        for name, update in updates_of(0, clients=40).items()
    }
    result = aggregate(untrained, method=method)
    assert not result.adapter.base_change
    assert result.adapter.layers["q"].rank == RANK
    (*_, (_, last)) = rounds_of(method, 2)
    after = aggregate(untrained, method=method, reference=last.adapter).adapter.base_change["q"]
    assert relative(product(after), product(last.adapter.base_change["q"])) < 1e-6


@pytest.mark.parametrize("rank", [0, -1, 1.5, True, "4"])
def test_a_residual_rank_that_is_none_is_refused(rank):
    with pytest.raises(ValueError, match=r"residual_rank\n *Input should be"):
        FedExLora(residual_rank=rank)


def apart(found, expected):
    """Return how far two changes of the base weights are from each other, relative to the second."""
    return relative(*(product(result.adapter.base_change["q"]) for result in (found, expected)))


@pytest.mark.parametrize(
    ("clients", "iterations", "excess", "difference"),
    [
        # Above the error of the exact cut, relative to the ideal update; then between the changes themselves. Random
        # clients, whose products have nothing in common, are the hard case: no singular value stands out.
        (10, 0, 0.12, 1.5),
        (10, 2, 0.02, 0.7),
        (10, 8, 1e-3, 0.2),
        (10, 40, 1e-5, 1e-2),
        # Of less rank than the sketch has.
        (5, 0, 1e-6, 1e-5),
    ],
)
def test_sums_over_the_clients_cut_the_change_as_exactly_as_they_say(clients, iterations, excess, difference):
    for (_, exact), (_, found) in zip(
        rounds_of(FedExLora(residual_rank=6), 6, clients=clients),
        rounds_of(FedExLora(residual_rank=6, power_iterations=iterations), 6, clients=clients),
        strict=True,
    ):
        assert found.report.error_after <= exact.report.error_after + excess
        assert apart(found, exact) < difference
        assert found.adapter.base_change["q"].rank == exact.adapter.base_change["q"].rank
        assert torch.equal(found.adapter.layers["q"].A, exact.adapter.layers["q"].A)
        assert torch.equal(found.adapter.layers["q"].B, exact.adapter.layers["q"].B)


def fading_updates(number, clients=12):
    """Return clients that move in common directions, each a third as far as the one before, as training does."""
    generator = torch.Generator().manual_seed(number)
    sizes = 3.0 ** -torch.arange(10)
    rows, columns = (torch.linalg.qr(torch.randn(size, 10, generator=torch.Generator())).Q for size in (IN, OUT))
    updates = {}
    for client in range(clients):
        A = torch.randn(RANK, 10, generator=generator) * sizes @ rows.T
        B = columns * sizes @ torch.randn(10, RANK, generator=generator)
        updates[f"client-{client:02}"] = Adapter({"q": LoraLayer(A, B, 2.0)}, {}, CONFIG)
    return updates


def test_where_singular_values_fall_two_iterations_are_within_float32s_rounding_over_many_rounds():
    exact, found = None, None
    for number in range(ROUNDS):
        exact, found = (
            aggregate(fading_updates(number), method=method, reference=None if before is None else before.adapter)
            for method, before in (
                (FedExLora(residual_rank=4), exact),
                (FedExLora(residual_rank=4, power_iterations=2), found),
            )
        )
        assert apart(found, exact) < 5e-6
        assert found.report.error_after == pytest.approx(exact.report.error_after, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("is_embedding", [False, True])
def test_a_sketch_as_wide_as_the_weight_is_no_sketch(is_embedding):
    method = FedExLora(residual_rank=28, power_iterations=0)
    for (_, exact), (_, found) in zip(
        rounds_of(FedExLora(residual_rank=28), is_embedding=is_embedding),
        rounds_of(method, is_embedding=is_embedding),
        strict=True,
    ):
        assert apart(found, exact) < 2e-6
        assert found.report.error_after < 1e-6
    assert dense_of(found.adapter.base_change["q"]) is not None


def test_a_change_from_before_is_held_whole_beside_clients_that_have_nothing_of_it():
    (*_, (_, last)) = rounds_of(FedExLora(residual_rank=6), 3)
    before = last.adapter.base_change["q"]
    quiet = {
        name: Adapter({"q": LoraLayer(update.layers["q"].A, 1e-4 * update.layers["q"].B, 2.0)}, {}, CONFIG)
        for name, update in updates_of(99, clients=12).items()
    }
    found = aggregate(quiet, method=FedExLora(residual_rank=6, power_iterations=0), reference=last.adapter)
    assert relative(product(found.adapter.base_change["q"]), product(before)) < 1e-3


def test_the_iterations_are_for_a_residual_rank_alone():
    assert FedExLora(power_iterations=2).idle() == {"power_iterations": "it is for aggregation.residual_rank"}
    assert not FedExLora(residual_rank=4, power_iterations=2).idle()
    assert FedExLora(power_iterations=2).needs_every_pair
    assert not FedExLora(residual_rank=4, power_iterations=2).needs_every_pair
    unbound = aggregate(updates_of(0), method=FedExLora(power_iterations=2)).adapter.base_change["q"]
    assert torch.equal(unbound.A, aggregate(updates_of(0), method=FedExLora()).adapter.base_change["q"].A)
