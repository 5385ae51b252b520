"""Every method in a whole run: three rounds on the small real model, on pictures of five domains."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from fedlora.adapters import load_adapter, with_base_change_inside
from fedlora.aggregation import METHODS, Combined, FedIT, Layer
from fedlora.common.config import RunConfig
from fedlora.common.errors import ConfigError
from fedlora.finished.trained import load_trained
from fedlora.simulation import SimulationResult, preset, simulate
from fedlora.training.data import load_federated_data

MakeRun = Callable[..., RunConfig]

NUM_DOMAINS = 5


def small_run(method: str, *overrides: str) -> RunConfig:
    """Return the embedded run, cut to a few pictures and steps."""
    return preset(
        "digits",
        "task.image_size=28",
        "federation.rounds=3",
        "train.steps=2",
        "train.batch_size=4",
        "data.test=0.01",
        "evaluation.round_examples=10",
        "evaluation.client_examples=4",
        f"aggregation.method={method}",
        *overrides,
    )


def tiny_run(vision_run: MakeRun, method: str, **sections: dict[str, object]) -> RunConfig:
    federation = {"rounds": 3} | sections.pop("federation", {})
    return vision_run(federation=federation, aggregation={"method": method}, **sections)


def run(method: str, out: Path, *overrides: str) -> SimulationResult:
    return simulate(small_run(method, *overrides), out=out, num_workers=2)


# A tiny model is enough for one that trains a factor at a time, and for one that changes the base weights.
@pytest.mark.parametrize("method", ["rolora", "flora"])
def test_methods_of_other_kinds_train_for_three_rounds(vision_run: MakeRun, method: str, tmp_path: Path) -> None:
    config = tiny_run(vision_run, method, lora={"client_ranks": {"chalk": 2}})
    assert_it_trained(simulate(config, out=tmp_path / "run", num_workers=2), method, num_clients=3, rank=4)


@pytest.mark.parametrize(
    "method",
    [pytest.param(name, marks=() if name == "lora_fair" else pytest.mark.slow) for name in METHODS],
)
def test_each_method_trains_for_three_rounds_on_the_small_real_model(method: str, tmp_path: Path) -> None:
    ranks = [] if method == "fedex_lora" else ["lora.client_ranks={mnist=2,serif=4}"]
    assert_it_trained(run(method, tmp_path / "run", *ranks), method, num_clients=NUM_DOMAINS, rank=8)


def assert_it_trained(result: SimulationResult, method: str, *, num_clients: int, rank: int) -> None:
    """Assert that three rounds have moved the model, with the error of the average that the method promises."""
    first, *rounds = result.reports
    assert [len(report.clients) for report in rounds] == [num_clients] * 3
    assert first.held_out is not None
    assert rounds[-1].held_out is not None
    assert rounds[-1].held_out.overall.loss != first.held_out.overall.loss
    aggregations = [report.aggregation for report in rounds if report.aggregation is not None]
    assert [aggregation.method for aggregation in aggregations] == [method] * 3
    for aggregation in aggregations:
        assert aggregation.floor <= aggregation.error_before
        if method in ("flora", "fedex_lora"):
            assert aggregation.error_after < 1e-6 < aggregation.error_before
        elif method == "flex_lora":
            assert aggregation.error_after == pytest.approx(aggregation.floor, rel=1e-4)
        elif method in ("ffa_lora", "rolora"):
            assert aggregation.error_before < 1e-6
        elif method == "fedit":
            assert aggregation.error_after == aggregation.error_before
        elif method == "lora_fair_cosine":
            assert aggregation.error_after > 0
        else:
            assert aggregation.floor * (1 - 1e-6) <= aggregation.error_after < aggregation.error_before

    assert {layer.rank for layer in result.adapter.layers.values()} == {rank}
    assert bool(result.adapter.base_change) == (method in ("flora", "fedex_lora"))
    published, whole = load_adapter(result.folder / "adapter"), with_base_change_inside(result.adapter)
    assert all(torch.equal(published.layers[path].B, layer.B) for path, layer in whole.layers.items())


def test_a_loaded_model_has_the_change_of_the_base_weights(vision_run: MakeRun, tmp_path: Path) -> None:
    assert_it_judges_as_in_the_run(tiny_run(vision_run, "flora", federation={"fraction": 0.6}), tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["flora", "fedex_lora"])
def test_the_small_real_model_is_loaded_with_the_change_of_its_base_weights(method: str, tmp_path: Path) -> None:
    assert_it_judges_as_in_the_run(small_run(method, "federation.fraction=0.6"), tmp_path / "run")


def assert_it_judges_as_in_the_run(config: RunConfig, out: Path) -> None:
    """Assert that the model which is loaded from a run predicts what the run's last evaluation did."""
    simulate(config, out=out, num_workers=2)
    predictions = json.loads((out / "rounds" / "0003" / "predictions.json").read_text())
    data = load_federated_data(config)
    found = load_trained(out).predict(list(data.test.inputs))
    assert found == [data.labels[predictions[str(place)]] for place in range(len(found))]


class HalfStep(FedIT):
    """The mean of A, and half the mean of B."""

    name: ClassVar[str] = "half_step"

    def combine(self, layer: Layer) -> Combined:
        return Combined(layer.mean_A, layer.mean_B / 2)


def test_a_method_of_ones_own_is_one_small_class(vision_run: MakeRun, tmp_path: Path) -> None:
    config = vision_run(federation={"rounds": 1})
    result = simulate(config, out=tmp_path / "run", num_workers=2, method=HalfStep())
    aggregation = result.reports[-1].aggregation
    assert aggregation is not None
    assert aggregation.method == "half_step"
    assert aggregation.moved_B == pytest.approx(0.5)


def test_robust_settings_take_part_in_a_run(vision_run: MakeRun, tmp_path: Path) -> None:
    robust = {"regauge": True, "clip": 1.0, "weighting": "geometric_median"}
    result = simulate(vision_run(federation={"rounds": 2}, robust=robust), out=tmp_path / "run", num_workers=2)
    aggregation = result.reports[-1].aggregation
    assert aggregation is not None
    assert aggregation.notes


def test_ranks_of_clients_that_the_run_does_not_have_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no client is named 'mnits'; the run has mnist, mono"):
        run("lora_fair", tmp_path / "run", "lora.client_ranks={mnits=2}")
    assert not (tmp_path / "run").exists()
