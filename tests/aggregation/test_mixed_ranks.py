"""Clients of different ranks and scalings, against the dense formulas: every row's mass is counted once."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlora.adapters import Adapter, LoraLayer
from fedlora.adapters.settings import scaling_of
from fedlora.aggregation import Combined, FedExLora, FedIT, FlexLora, Flora, LoraFair, aggregate
from fedlora.aggregation.updates import LayerUpdates, centre
from fedlora.common.errors import AdapterError
from fedlora.common.run_file import parse_run

few = settings(derandomize=True, database=None, deadline=None, max_examples=20)
seeds = st.integers(0, 10_000)
some_ranks = st.sampled_from([[1, 4], [4, 2, 3, 1], [2, 2, 5], [3, 1, 1, 1]])


def layer_of(result):
    return result.adapter.layers["q_proj"]


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


@few
@given(seeds, some_ranks)
def test_the_means_count_each_rows_mass_once_and_the_error_completes_them(
    make_updates, dense_mean, uneven_p, seed, ranks
):
    updates = make_updates(seed, ranks=ranks)
    M, mean_A, mean_B = dense_mean(updates, uneven_p(updates))
    layers = [update.layers["q_proj"] for update in updates.values()]
    start = torch.zeros(max(ranks), 9).double(), torch.zeros(12, max(ranks)).double()
    p = tuple(uneven_p(updates).values())
    update = centre(LayerUpdates(p, tuple(ranks), lambda index: (layers[index].A, layers[index].B), *start))
    P, Q = update.stacked_deviations()
    assert relative(update.mean_A, mean_A) < 1e-13
    assert relative(update.mean_B, mean_B) < 1e-13
    assert relative(update.mean_B @ update.mean_A + P @ Q, M) < 1e-13
    one_by_one = sum(p * dB @ dA for p, dA, dB in update.deviations())
    assert relative(one_by_one, P @ Q) < 1e-13


@few
@given(seeds, some_ranks)
def test_fedit_returns_these_means(make_updates, dense_mean, uneven_p, seed, ranks):
    updates = make_updates(seed, ranks=ranks)
    _, mean_A, mean_B = dense_mean(updates, uneven_p(updates))
    layer = layer_of(aggregate(updates, weights=uneven_p(updates), method=FedIT()))
    assert relative(layer.A, mean_A) < 1e-13
    assert relative(layer.B, mean_B) < 1e-13


@few
@given(seeds, some_ranks, st.sampled_from([1e-3, 0.03, 1.0]))
def test_lora_fair_is_the_dense_ridge_regression_on_these_means(make_updates, dense_mean, uneven_p, seed, ranks, ridge):
    updates = make_updates(seed, ranks=ranks)
    M, mean_A, mean_B = dense_mean(updates, uneven_p(updates))
    identity = ridge * torch.eye(max(ranks), dtype=torch.float64) / max(ranks)
    E = M - mean_B @ mean_A
    G, H = mean_A @ mean_A.T, mean_B.T @ mean_B
    expected_B = mean_B + E @ mean_A.T @ torch.linalg.inv(G + G.trace() * identity)
    expected_A = mean_A + torch.linalg.inv(H + H.trace() * identity) @ mean_B.T @ E
    p = uneven_p(updates)
    assert relative(layer_of(aggregate(updates, weights=p, method=LoraFair(ridge=ridge))).B, expected_B) < 1e-9
    corrected_A = layer_of(aggregate(updates, weights=p, method=LoraFair(ridge=ridge, corrects="A"))).A
    assert relative(corrected_A, expected_A) < 1e-9


def test_the_residual_is_smaller_than_with_both_factors_padded(make_updates, dense_mean, uneven_p):
    found, padded = 0.0, 0.0
    for seed in range(20):
        updates = make_updates(seed, ranks=[4, 2, 3, 1], spread=0.3)
        p = uneven_p(updates)
        M, _, mean_B = dense_mean(updates, p)
        layer = layer_of(aggregate(updates, weights=p, method=LoraFair(ridge=0.03)))
        found += float((M - layer.B @ layer.A).norm() / M.norm())
        padded_A = torch.zeros(4, 9, dtype=torch.float64)
        for client, update in updates.items():
            padded_A[: update.layers["q_proj"].rank] += p[client] * update.layers["q_proj"].A
        G = padded_A @ padded_A.T
        dB = (M - mean_B @ padded_A) @ padded_A.T
        dB = dB @ torch.linalg.inv(G + 0.03 / 4 * G.trace() * torch.eye(4, dtype=torch.float64))
        padded += float((M - (mean_B + dB) @ padded_A).norm() / M.norm())
    assert found < 0.9 * padded


def test_rows_that_no_client_has_keep_the_a_of_the_rounds_start_and_count_nothing(make_updates, dense_mean):
    (start,) = make_updates(9, num_clients=1, rank=5).values()
    updates = make_updates(ranks=[3, 2])
    M, mean_A, mean_B = dense_mean(updates)
    result = aggregate(updates, method=FedIT(), reference=start)
    layer = layer_of(result)
    assert relative(layer.A[:3], mean_A) < 1e-13
    assert relative(layer.B[:, :3], mean_B) < 1e-13
    assert torch.equal(layer.A[3:], start.layers["q_proj"].A[3:])
    assert not layer.B[:, 3:].any()
    # The ideal update is what the clients have, whatever the start had beyond.
    assert result.report.layers["q_proj"].update_norm == pytest.approx(2.0 * float(M.norm()))


def test_every_method_takes_clients_below_the_rounds_rank(make_updates, dense_mean, any_method, whole_change):
    (start,) = make_updates(9, num_clients=1, rank=5).values()
    updates = make_updates(ranks=[3, 2], spread=0.3)
    M, _, _ = dense_mean(updates)
    result = aggregate(updates, method=any_method, reference=start)
    assert layer_of(result).rank == 5
    error = relative(whole_change(result), 2.0 * M)
    assert error == pytest.approx(result.report.error_after, abs=1e-6)
    if isinstance(any_method, FlexLora | Flora | FedExLora):
        assert error < 1e-12  # Two clients of ranks 3 and 2 fit into rank 5.


@pytest.mark.parametrize("ranks", [[1, 4], [4, 2, 3, 1], [3, 1, 1, 1]])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_the_result_acts_as_the_formulas_in_effective_weights_say(
    make_updates, any_method, whole_change, ranks, use_rslora
):
    config = {"lora_alpha": 8, "use_rslora": use_rslora}
    scaled, effective = {}, {}
    for name, update in make_updates(ranks=ranks).items():
        layer = update.layers["q_proj"]
        scaling = scaling_of("q_proj", layer.rank, config)
        assert scaling == pytest.approx(8 / math.sqrt(layer.rank) if use_rslora else 8 / layer.rank)
        scaled[name] = Adapter({"q_proj": replace(layer, scaling=scaling)}, config={"r": layer.rank, **config})
        effective[name] = Adapter({"q_proj": LoraLayer(layer.A, scaling * layer.B, 1.0)})
    found, expected = aggregate(scaled, method=any_method), aggregate(effective, method=any_method)
    largest = scaling_of("q_proj", max(ranks), config)
    assert layer_of(found).scaling == pytest.approx(largest)
    # The penalties of the cosine, and FlexLoRA's turn towards A, depend on where the scaling is.
    if "cosine" not in any_method.name:
        assert relative(whole_change(found), whole_change(expected)) < 1e-9
    assert found.report.error_before == pytest.approx(expected.report.error_before, rel=1e-9)
    assert found.report.floor == pytest.approx(expected.report.floor, abs=1e-7)
    update_norm = expected.report.layers["q_proj"].update_norm
    assert found.report.layers["q_proj"].update_norm == pytest.approx(update_norm, rel=1e-9)


def test_the_result_has_a_configuration_that_gives_its_ranks_and_scalings(make_updates):
    updates = {}
    for (name, update), (other, alpha) in zip(
        make_updates(ranks=[2, 4]).items(), (((3, 9), 16), ((1, 9), 4)), strict=True
    ):
        layer = update.layers["q_proj"]
        further = LoraLayer(torch.ones(other, dtype=torch.float64), torch.ones(12, other[0]).double(), alpha / other[0])
        updates[name] = Adapter(
            {"q_proj": replace(layer, scaling=alpha / layer.rank), "v_proj": further},
            config={"peft_type": "LORA", "r": layer.rank, "lora_alpha": alpha},
        )
    adapter = aggregate(updates).adapter
    assert {path: layer.rank for path, layer in adapter.layers.items()} == {"q_proj": 4, "v_proj": 3}
    assert adapter.layers["q_proj"].scaling == 1.0
    assert adapter.layers["v_proj"].scaling == pytest.approx(16 / 3)
    for path, layer in adapter.layers.items():
        assert scaling_of(path, layer.rank, adapter.config) == pytest.approx(layer.scaling)


def test_with_a_reference_the_result_has_its_scaling(make_updates, whole_change, any_method):
    updates = make_updates()
    (start,) = make_updates(7, num_clients=1).values()
    start = Adapter({"q_proj": replace(start.layers["q_proj"], scaling=0.5)}, config={"of": "start"})
    result = aggregate(updates, method=any_method, reference=start)
    assert layer_of(result).scaling == 0.5
    assert result.adapter.config == {"of": "start"}
    if "cosine" not in any_method.name:
        assert relative(whole_change(result), whole_change(aggregate(updates, method=any_method))) < 1e-9


class Straight(FedIT):
    """A method that does not think of ranks, and says so."""

    name = "straight"
    allows_client_ranks = False

    def combine(self, layer):
        turned = yield lambda client: (client.A - layer.start_A) @ layer.start_A.T
        return Combined(layer.mean_A, layer.mean_B @ turned)


class Careful(Straight):
    """It has no pair for a client of a smaller rank, but sums any."""

    name = "careful"

    @classmethod
    def combines_mixed_ranks(cls):
        return True

    def combine(self, layer):
        return Combined(layer.mean_A, layer.mean_B)


@pytest.mark.parametrize("ranks", [[3, 1, 3], [2, 2, 2]], ids=["mixed", "below the start"])
def test_a_method_for_one_rank_refuses_others_with_the_layer_and_what_takes_them(make_updates, ranks):
    (start,) = make_updates(9, num_clients=1, rank=3).values()
    updates = make_updates(ranks=ranks)
    with pytest.raises(AdapterError, match=r"^q_proj: .* of client-0\d against A \(3, 9\).*; straight combines "):
        aggregate(updates, method=Straight(), reference=start)
    assert aggregate(updates, method=Careful(), reference=start).adapter.layers["q_proj"].rank == 3
    alike = aggregate(make_updates(rank=3), method=Straight(), reference=start)
    assert alike.adapter.layers["q_proj"].rank == 3


def test_a_run_refuses_smaller_ranks_of_both():
    config = parse_run({}, ["lora.client_ranks={hospital = 4}"])
    for method in (Straight(), Careful(), FedExLora()):
        with pytest.raises(ValueError, match=f"aggregation.method = {method.name} needs one rank for all clients"):
            config.require_fit(method)
