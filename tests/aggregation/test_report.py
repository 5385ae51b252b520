"""The report's norms against dense ones, and what an aggregation may hold in memory."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedlora.adapters import Adapter, LoraLayer
from fedlora.aggregation import FedIT, LoraFair, aggregate

few = settings(derandomize=True, database=None, deadline=None, max_examples=20)


@dataclass(frozen=True)
class BothMoved:
    """A method that moves A too, to which the report must be just as fair."""

    name: ClassVar[str] = "both_moved"

    def combine(self, update):
        return 0.7 * update.mean_A + 0.1, 1.3 * update.mean_B - 0.2


@few
@given(
    st.integers(0, 1000),
    st.integers(2, 30),
    st.sampled_from([FedIT(), LoraFair(), LoraFair(ridge=0), BothMoved()]),
)
def test_the_norms_of_a_layer_are_the_dense_ones(make_updates, dense_mean, uneven_p, seed, num_clients, method):
    updates = make_updates(seed, num_clients)
    M, mean_A, mean_B = dense_mean(updates, uneven_p(updates))
    result = aggregate(updates, weights=uneven_p(updates), method=method)
    layer, found = result.adapter.layers["q_proj"], result.report.layers["q_proj"]
    assert found.update_norm == pytest.approx(2.0 * float(M.norm()), rel=1e-10)
    assert found.error_before == pytest.approx(float((M - mean_B @ mean_A).norm() / M.norm()), rel=1e-10)
    assert found.error_after == pytest.approx(float((M - layer.B @ layer.A).norm() / M.norm()), rel=1e-10)
    assert found.correction == pytest.approx(float((layer.B - mean_B).norm() / mean_B.norm()), rel=1e-10, abs=1e-15)


@pytest.mark.parametrize("method", [FedIT(), LoraFair(), BothMoved()])
@pytest.mark.parametrize("spread", [1.0, 1e-2, 1e-4])
def test_float32_norms_keep_six_digits_however_close_the_clients(make_updates, spread, method):
    updates = make_updates(num_clients=10, out_features=96, in_features=128, rank=8, spread=spread, dtype=torch.float32)
    wide = {
        name: Adapter({path: LoraLayer(pair.A.double(), pair.B.double(), 2.0) for path, pair in update.layers.items()})
        for name, update in updates.items()
    }
    found, expected = aggregate(updates, method=method).report, aggregate(wide, method=method).report
    assert found.error_before == pytest.approx(expected.error_before, rel=1e-6)
    assert found.error_after == pytest.approx(expected.error_after, rel=1e-6)
    assert found.layers["q_proj"].update_norm == pytest.approx(expected.layers["q_proj"].update_norm, rel=1e-6)


def test_fedit_leaves_the_error_of_averaging_as_it_is(make_updates):
    report = aggregate(make_updates(), method=FedIT()).report
    assert report.error_after == report.error_before > 0
    assert report.correction == 0


def test_the_overall_ratios_are_those_of_all_layers_taken_together(make_updates, dense_mean):
    parts = [make_updates(seed, spread=spread) for seed, spread in ((1, 1.0), (2, 0.3))]
    updates = {
        name: Adapter(
            {
                "one": replace(parts[0][name].layers["q_proj"], scaling=0.5),
                "two": replace(parts[1][name].layers["q_proj"], scaling=3.0),
            }
        )
        for name in parts[0]
    }
    result = aggregate(updates)
    squares = {"update": 0.0, "before": 0.0, "after": 0.0, "correction": 0.0, "mean_B": 0.0}
    for part, path, scaling in zip(parts, ("one", "two"), (0.5, 3.0), strict=True):
        M, mean_A, mean_B = dense_mean(part)
        layer = result.adapter.layers[path]
        squares["update"] += float((scaling * M).square().sum())
        squares["before"] += float((scaling * (M - mean_B @ mean_A)).square().sum())
        squares["after"] += float((scaling * (M - layer.B @ layer.A)).square().sum())
        squares["correction"] += float((layer.B - mean_B).square().sum())
        squares["mean_B"] += float(mean_B.square().sum())
    assert result.report.error_before == pytest.approx(math.sqrt(squares["before"] / squares["update"]), rel=1e-10)
    assert result.report.error_after == pytest.approx(math.sqrt(squares["after"] / squares["update"]), rel=1e-10)
    assert result.report.correction == pytest.approx(math.sqrt(squares["correction"] / squares["mean_B"]), rel=1e-10)


def test_an_update_of_zero_has_no_error_and_no_correction(make_updates):
    updates = {
        name: Adapter({"q_proj": replace(update.layers["q_proj"], B=torch.zeros(12, 3))})
        for name, update in make_updates().items()
    }
    report = aggregate(updates).report
    assert report.layers["q_proj"].update_norm == 0
    assert report.error_before == report.error_after == report.correction == 0


def test_an_error_on_top_of_an_update_of_zero_is_infinite():
    pairs = {"a": (2.0, 1.0), "b": (-1.0, 2.0)}  # B A is 2 and -2; the means' product is 0.75
    updates = {
        name: Adapter({"q_proj": LoraLayer(torch.tensor([[A]]), torch.tensor([[B]]), 1.0)})
        for name, (B, A) in pairs.items()
    }
    report = aggregate(updates, method=FedIT()).report
    assert report.layers["q_proj"].update_norm == 0
    assert report.error_before == math.inf


class LargestTensor(TorchDispatchMode):
    """Records the size of the largest tensor that any operation returns."""

    def __init__(self):
        super().__init__()
        self.num_values = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.num_values = max(self.num_values, *sizes, 0)
        return result


@pytest.mark.parametrize("method", [FedIT(), LoraFair(), LoraFair(ridge=0)])
def test_no_tensor_is_larger_than_the_stacked_updates(make_updates, method):
    num_clients, rank, in_features, out_features = 3, 2, 700, 900
    updates = make_updates(num_clients=num_clients, rank=rank, in_features=in_features, out_features=out_features)
    with LargestTensor() as largest:
        aggregate(updates, method=method)
    assert 0 < largest.num_values <= num_clients * rank * max(in_features, out_features)
