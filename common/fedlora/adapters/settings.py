"""What a LoraConfig says of each layer, its rank and its scaling, and the other way round."""

import math
from collections import Counter
from collections.abc import Mapping
from typing import cast

import torch

from fedlora.adapters.adapter import LoraLayer
from fedlora.common.patterns import matches_end

# What PEFT takes of a file without them.
PEFT_RANK, PEFT_ALPHA = 8, 8

# The part of a configuration that `scaling_of` reads.
SCALING_KEYS = ("lora_alpha", "alpha_pattern", "use_rslora")

# The part that differs between adapters of different ranks.
SHAPE_KEYS = ("r", "rank_pattern", *SCALING_KEYS)


def scaling_of(path: str, rank: int, config: Mapping[str, object]) -> float:
    """Return the factor on B @ A of one layer: alpha / rank, or alpha / sqrt(rank) under rsLoRA.

    As in PEFT, a key of `alpha_pattern` is a regular expression for the end of the layer's path, and the first that
    matches counts.

    Raises:
        AdapterError: a key is no expression that is matched here.
    """
    alpha = cast(float, _of_pattern(path, config.get("alpha_pattern"), config.get("lora_alpha", rank)))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def rank_of(path: str, config: Mapping[str, object]) -> int:
    """Return the rank that a configuration gives to one layer."""
    return cast(int, _of_pattern(path, config.get("rank_pattern"), config.get("r", PEFT_RANK)))


def fitted_config(config: Mapping[str, object], layers: Mapping[str, LoraLayer]) -> dict[str, object]:
    """Return `config` with such ranks and alphas that PEFT gives every layer the rank and the scaling it has.

    It is returned as it is where it does so already. Else the commonest rank and alpha become the general ones, and
    `rank_pattern` and `alpha_pattern` name the other layers by their whole path.
    """
    found = dict(config)
    if not layers or all(_fits(path, layer, found) for path, layer in layers.items()):
        return found
    ranks = {path: layer.rank for path, layer in layers.items()}
    alphas = {
        path: layer.scaling * (math.sqrt(layer.rank) if found.get("use_rslora") else layer.rank)
        for path, layer in layers.items()
    }
    found["r"], found["rank_pattern"] = _with_pattern(ranks)
    found["lora_alpha"], found["alpha_pattern"] = _with_pattern(
        {path: round(alpha) if math.isclose(alpha, round(alpha)) else alpha for path, alpha in alphas.items()}
    )
    return found


def plain_config(config: Mapping[str, object]) -> dict[str, object]:
    """Return PEFT's configuration with JSON's types: enums as their value, sets as sorted lists."""
    return {key: _plain_value(value) for key, value in config.items() if not isinstance(value, torch.dtype)}


def _fits(path: str, layer: LoraLayer, config: Mapping[str, object]) -> bool:
    otherwise = config.get("r", PEFT_RANK if "peft_type" in config else layer.rank)
    rank = _of_pattern(path, config.get("rank_pattern"), otherwise)
    return rank == layer.rank and math.isclose(scaling_of(path, layer.rank, config), layer.scaling)


def _of_pattern(path: str, pattern: object, otherwise: object) -> object:
    for key, special in cast(dict[str, object], pattern or {}).items():
        if matches_end(key, path):
            return special
    return otherwise


def _with_pattern(values: Mapping[str, float]) -> tuple[float, dict[str, float]]:
    """Return the commonest value, and the others by a pattern that matches their path alone."""
    common = Counter(values.values()).most_common(1)[0][0]
    return common, {f"^{path}": value for path, value in values.items() if value != common}


def _plain_value(value: object) -> object:
    if isinstance(value, set | frozenset):
        return sorted(cast(set[str], value))
    if isinstance(value, Mapping):
        return {str(key): _plain_value(item) for key, item in value.items()}
    return getattr(value, "value", value)
