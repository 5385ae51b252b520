"""The report's norms against dense linear algebra."""

import dataclasses
import math
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlora.adapters import Adapter, LoraLayer
from fedlora.aggregation import (
    METHODS,
    AggregationReport,
    Combined,
    FedExLora,
    FedIT,
    Flora,
    LoraFair,
    LoraFairTwoSided,
    Method,
    aggregate,
)

few = settings(derandomize=True, database=None, deadline=None, max_examples=20)


class Everything(Method):
    """A method that moves A and B and the base weights, to which the report must be just as fair."""

    name: ClassVar[str] = "everything"
    changes_base: ClassVar[bool] = True

    def combine(self, layer):
        change = layer.mean_B[:, :2] + 0.3, layer.mean_A[-2:] * 0.2
        return Combined(0.7 * layer.mean_A + 0.1, 1.3 * layer.mean_B - 0.2, change, note="all of it moved")


def dense_report(M, mean_A, mean_B, adapter):
    """Return every number of a layer's report from full matrices, without its scaling."""
    layer, change = adapter.layers["q_proj"], adapter.base_change.get("q_proj")
    A, B, rank = layer.A.double(), layer.B.double(), layer.rank
    E, S = M - mean_B @ mean_A, torch.linalg.svdvals(M)
    R = M - B @ A - (change.B.double() @ change.A.double() / layer.scaling if change else 0)
    E_rows, E_columns = E - E @ torch.linalg.pinv(mean_A) @ mean_A, E - mean_B @ torch.linalg.pinv(mean_B) @ E
    floor, shares = S[rank:].norm(), S / S.sum()
    return {
        "update_norm": layer.scaling * M.norm(),
        "error_before": E.norm() / M.norm(),
        "error_after": R.norm() / M.norm(),
        "floor": floor / M.norm(),
        "reach_B": 1 - E_rows.norm() / E.norm(),
        "reach_A": 1 - E_columns.norm() / E.norm(),
        "reach_both": max(0.0, 1 - floor / E.norm()),
        "moved_B": (B - mean_B).norm() / mean_B.norm(),
        "moved_A": (A - mean_A).norm() / mean_A.norm(),
        "cosine_B": (B * mean_B).sum() / (B.norm() * mean_B.norm()) if B.any() else 0.0,
        "cosine_A": (A * mean_A).sum() / (A.norm() * mean_A.norm()),
        "effective_rank": torch.exp(-torch.special.xlogy(shares, shares).sum()),
    }


@pytest.mark.parametrize("size", [(12, 9), (9, 12), (40, 30)], ids=str)
@few
@given(
    st.integers(0, 1000),
    st.sampled_from([[3] * 2, [3] * 4, [3] * 12, [1, 3, 2], [2, 3] * 6]),
    st.sampled_from([0.1, 1.0]),
    st.sampled_from([*(make() for make in METHODS.values()), LoraFair(corrects="A"), Everything()]),
)
def test_every_number_of_a_layer_is_the_dense_one(
    make_updates, dense_mean, uneven_p, size, seed, ranks, spread, method
):
    # With few clients the Gram matrices of the factors are smaller than the layer's weight, with many it is.
    updates = make_updates(seed, ranks=ranks, out_features=size[0], in_features=size[1], spread=spread)
    result = aggregate(updates, weights=uneven_p(updates), method=method)
    expected = dense_report(*dense_mean(updates, uneven_p(updates)), result.adapter)
    found = dataclasses.asdict(result.report.layers["q_proj"])
    assert found.pop("note") == ("all of it moved" if isinstance(method, Everything) else "")
    assert set(found) == set(expected)
    # What is zero in exact arithmetic is the root of a rounding error in the Gram form.
    roots = {"floor": 1e-7, "error_after": 1e-7, "reach_both": 1e-6, "effective_rank": 1e-4, "moved_A": 1e-13}
    for name, value in found.items():
        assert value == pytest.approx(float(expected[name]), rel=1e-8, abs=roots.get(name, 1e-10)), name


def test_the_floor_is_below_every_methods_error_and_reach_says_who_could_come_near(make_updates):
    updates = make_updates(spread=0.5)
    one_side = {side: aggregate(updates, method=LoraFair(ridge=0, corrects=side)).report for side in "AB"}
    both = aggregate(updates, method=LoraFairTwoSided(ridge=0, sweeps=200)).report
    for report in (*one_side.values(), both):
        assert report.floor * (1 - 1e-12) <= report.error_after <= report.error_before
    for reach, report in (("reach_A", one_side["A"]), ("reach_B", one_side["B"]), ("reach_both", both)):
        gone = 1 - report.error_after / report.error_before
        assert getattr(report, reach) == pytest.approx(gone, rel=1e-6), reach
        assert 0 < getattr(report, reach) < 1


def test_the_dense_path_and_the_gram_path_agree(make_updates, any_method):
    # The same four clients, and each of them split into three of a third of its weight: one rank sum above 9, one not.
    updates = make_updates(num_clients=3)
    split = {f"{name}/{part}": update for name, update in updates.items() for part in range(3)}
    found, expected = aggregate(split, method=any_method).report, aggregate(updates, method=any_method).report
    for field in dataclasses.fields(AggregationReport):
        if isinstance(getattr(found, field.name), float):
            one, other = getattr(found, field.name), getattr(expected, field.name)
            assert one == pytest.approx(other, rel=1e-7, abs=1e-7), field.name


def test_methods_that_average_leave_the_error_of_averaging_as_it_is(make_updates):
    report = aggregate(make_updates(), method=FedIT()).report
    assert report.error_after == report.error_before > 0
    assert report.moved_A == report.moved_B == 0
    assert report.layers["q_proj"].cosine_A == report.layers["q_proj"].cosine_B == 1


def test_a_method_that_moves_all_into_the_base_weights_moves_all_of_b(make_updates):
    report = aggregate(make_updates(), method=Flora()).report
    assert report.moved_B == pytest.approx(1)
    assert report.layers["q_proj"].cosine_B == 0
    assert report.layers["q_proj"].cosine_A == 1


def test_the_change_of_earlier_rounds_does_not_count_in_this_rounds_error(make_updates):
    start = aggregate(make_updates(1), method=FedExLora()).adapter
    for reference in (None, start):
        assert aggregate(make_updates(2), method=FedExLora(), reference=reference).report.error_after < 1e-6


def test_the_overall_ratios_are_those_of_all_layers_taken_together(make_updates, dense_mean, any_method):
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
    report = aggregate(updates, method=any_method).report
    norms = {path: report.layers[path].update_norm for path in ("one", "two")}
    means = {path: dense_mean(part) for path, part in zip(("one", "two"), parts, strict=True)}

    def together(ratio, below):
        """Return the root of the sum of squares above, over the same below."""
        above = [getattr(report.layers[path], ratio) * below[path] for path in below]
        return math.hypot(*above) / math.hypot(*below.values())

    before = {path: report.layers[path].error_before * norms[path] for path in norms}
    for ratio in ("error_before", "error_after", "floor"):
        assert getattr(report, ratio) == pytest.approx(together(ratio, norms), rel=1e-9, abs=1e-7)
    for factor, index in (("A", 1), ("B", 2)):
        below = {path: float(mean[index].norm()) for path, mean in means.items()}
        assert getattr(report, f"moved_{factor}") == pytest.approx(together(f"moved_{factor}", below), rel=1e-9)
    for reach in ("reach_A", "reach_B", "reach_both"):
        left = [(1 - getattr(report.layers[path], reach)) * before[path] for path in before]
        assert getattr(report, reach) == pytest.approx(1 - math.hypot(*left) / math.hypot(*before.values()), rel=1e-9)


def test_nothing_is_measured_where_that_is_not_asked_for(make_updates, any_method):
    updates = make_updates()
    quick = aggregate(updates, method=any_method, measure=False)
    assert quick.report == AggregationReport(method=any_method.name)
    layer, expected = (result.adapter.layers["q_proj"] for result in (quick, aggregate(updates, method=any_method)))
    assert torch.equal(layer.A, expected.A)
    assert torch.equal(layer.B, expected.B)


def test_an_update_of_zero_has_no_error_and_no_correction(make_updates, any_method):
    updates = {
        name: Adapter({"q_proj": replace(update.layers["q_proj"], B=torch.zeros(12, 3))})
        for name, update in make_updates().items()
    }
    report = aggregate(updates, method=any_method).report
    assert report.layers["q_proj"].update_norm == report.layers["q_proj"].effective_rank == 0
    assert report.error_before == report.error_after == report.floor == report.moved_B == 0
    assert report.reach_A == report.reach_B == report.reach_both == 0


def test_an_error_on_top_of_an_update_of_zero_is_infinite():
    pairs = {"a": (2.0, 1.0), "b": (-1.0, 2.0)}  # B A is 2 and -2; the means' product is 0.75
    updates = {
        name: Adapter({"q_proj": LoraLayer(torch.tensor([[A]]), torch.tensor([[B]]), 1.0)})
        for name, (B, A) in pairs.items()
    }
    report = aggregate(updates, method=FedIT()).report
    assert report.layers["q_proj"].update_norm == 0
    assert report.error_before == math.inf
