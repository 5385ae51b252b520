"""What can be averaged of the clients' metrics, without a round."""

import math

from flwr.app import MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords

from fedlora.flower.metrics import averageable


def reply(weight: int, **metrics: float | list[float]) -> RecordDict:
    return RecordDict({"metrics": MetricRecord({"num-examples": weight, **metrics})})


def test_finite_metrics_go_to_flowers_average_as_they_are() -> None:
    contents = [(5, reply(1, loss=2.0, per_class=[1.0, 0.0])), (7, reply(3, loss=4.0, per_class=[0.0, 1.0]))]
    found = averageable(contents, weighted_by="num-examples")
    assert list(found.contents) == [content for _, content in contents]
    assert (found.means, found.left_out) == ({}, [])


def test_a_metric_that_is_not_finite_somewhere_has_the_mean_of_the_others() -> None:
    contents = [
        (5, reply(1, loss=math.nan, accuracy=0.5, per_class=[1.0, math.inf])),
        (7, reply(3, loss=4.0, accuracy=0.7, per_class=[0.0, 1.0])),
        (9, reply(1, loss=8.0, accuracy=0.9, per_class=[4.0, 5.0])),
    ]
    found = averageable(contents, weighted_by="num-examples")
    assert found.means == {"loss": 5.0, "per_class": [1.0, 2.0]}
    assert list(found.left_out) == [
        "loss of node 5 is nan, and is left out of the mean",
        "per_class of node 5 is [1.0, inf], and is left out of the mean",
    ]
    assert math.isclose(aggregate_metricrecords(list(found.contents), "num-examples")["accuracy"], 0.7)  # type: ignore[arg-type]


def test_what_no_node_has_finite_or_not_all_have_is_left_out_and_said() -> None:
    contents = [(1, reply(1, loss=math.nan, extra=1.0)), (2, reply(1, loss=-math.inf))]
    found = averageable(contents, weighted_by="num-examples")
    assert found.means == {}
    assert [set(next(iter(content.metric_records.values()))) for content in found.contents] == [{"num-examples"}] * 2
    assert found.left_out[0] == "extra has no mean: not all nodes have it, in one shape"
    assert len(found.left_out) == 3
