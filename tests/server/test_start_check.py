"""What a site may give as the first adapter, and when two of them are the same."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from fedlora.adapters import Adapter, LoraLayer, pack
from fedlora.common.config import RunConfig
from fedlora.server.rounds.admission import Refusal
from fedlora.server.rounds.ending import default_deadline, shortened
from fedlora.server.rounds.start_check import are_alike, checked_start

PATHS = ("blocks.0.query", "blocks.0.value", "blocks.1.query")


def run(**lora: Any) -> RunConfig:
    settings = {"rank": 2, "alpha": 4.0, "target_modules": ["query", "value"], **lora}
    return RunConfig.model_validate({"data": {"labels": ["a", "b"]}, "lora": settings})


def said(config: RunConfig, **settings: object) -> dict[str, object]:
    """Return what PEFT makes of the run file at a site."""
    lora = config.lora
    return {
        "peft_type": "LORA", "r": lora.rank, "lora_alpha": lora.alpha, "rank_pattern": dict(lora.rank_pattern),
        "alpha_pattern": dict(lora.alpha_pattern), "target_modules": ["query", "value"], "modules_to_save": ["head"],
        "peft_version": "0.99", "corda_config": None, **settings,
    }  # fmt: skip


def start(config: RunConfig, *, seed: int = 0, **settings: object) -> Adapter:
    draw = torch.Generator().manual_seed(seed)
    layers = {
        path: LoraLayer(torch.randn(rank, 8, generator=draw), torch.zeros(6, rank), config.lora.alpha / rank)
        for path in PATHS
        for rank in [config.lora.rank_pattern.get("value", 2) if path.endswith("value") else 2]
    }
    return Adapter(layers, {"head.weight": torch.ones(2, 6)}, said(config, **settings))


def checked(adapter: Adapter, config: RunConfig) -> Adapter:
    found = checked_start(pack(adapter), config)
    assert isinstance(found, Adapter), found
    return found


def test_the_configuration_is_the_run_files_and_the_tensors_are_the_sites() -> None:
    config = run(rank_pattern={"value": 1})
    given = start(config)
    found = checked(given, config)
    assert all(torch.equal(found.layers[path].A, given.layers[path].A) for path in PATHS)
    assert {"peft_version", "corda_config"}.isdisjoint(found.config)
    assert found.config["target_modules"] == ["query", "value"]
    assert found.config["modules_to_save"] == ["head"]
    assert found.config["base_model_name_or_path"] == config.model.name
    assert [layer.rank for layer in found.layers.values()] == [2, 1, 2]


def test_where_sites_leave_layers_out_the_others_are_named_by_their_paths() -> None:
    config = run(target_modules="all-linear")
    found = checked(start(config, exclude_modules=r"blocks\.1\.value"), config)
    assert found.config["target_modules"] == sorted(PATHS)
    assert "exclude_modules" not in found.config
    expression = r"blocks\..*\.(query|value)"
    config = run(target_modules=expression)
    assert checked(start(config, target_modules=expression), config).config["target_modules"] == expression


def taken_out(adapter: Adapter) -> Adapter:
    """Return a start as of pissa: the pairs' product is taken out of the base weights."""
    layers = {path: replace(layer, B=torch.ones_like(layer.B)) for path, layer in adapter.layers.items()}
    change = {path: LoraLayer(layer.A, -layer.B * layer.scaling, 1.0) for path, layer in layers.items()}
    return replace(adapter, layers=layers, base_change=change)


def test_a_start_out_of_the_base_weights_brings_just_what_its_pairs_take_out() -> None:
    config = run(init="pissa")
    given = taken_out(start(config))
    assert checked(given, config).base_change.keys() == set(PATHS)
    for other in (
        replace(given, base_change={}),
        replace(given, base_change=dict(reversed(given.base_change.items()))),
    ):
        spoiled = {path: replace(change, B=change.B * 1.01) for path, change in other.base_change.items()}
        assert isinstance(checked_start(pack(replace(other, base_change=spoiled)), config), Refusal)
    assert isinstance(checked_start(pack(given), run()), Refusal)


def test_a_start_is_alike_up_to_rounding_and_out_of_the_base_weights_by_its_product() -> None:
    config = run()
    one = start(config)
    layers = {path: replace(layer, A=layer.A * (1 + 1e-6)) for path, layer in one.layers.items()}
    assert are_alike(one, replace(one, layers=layers))
    assert not are_alike(one, start(config, seed=1))
    pair = taken_out(one)
    turned = {path: replace(layer, A=-layer.A, B=-layer.B) for path, layer in pair.layers.items()}
    assert are_alike(pair, replace(pair, layers=turned))
    assert not are_alike(
        pair, replace(pair, layers={path: replace(layer, A=-layer.A) for path, layer in turned.items()})
    )


@pytest.mark.parametrize(
    ("needed", "num_missed", "seconds"),
    [([], 0, float("inf")), ([10.0], 0, 3600.0), ([10.0, 1000.0, 900.0], 0, 18_000.0), ([10.0], 1, 900.0),
     ([100.0], 2, 2000.0)],
)  # fmt: skip
def test_an_update_is_waited_for_by_what_is_usual(needed: list[float], num_missed: int, seconds: float) -> None:
    assert default_deadline(needed, num_missed=num_missed) == seconds


def test_who_leaves_requests_without_an_answer_has_less_time_for_the_next_and_never_none() -> None:
    assert [shortened(1024.0, missed) for missed in (0, 1, 2, 5, 100)] == [1024.0, 256.0, 64.0, 1.0, 1.0]
