"""What [privacy] lacks, and what does not go together with it, is said in one line."""

import pytest

from fedlora.common.errors import ConfigError
from fedlora.common.run_file import parse_run, to_toml
from fedlora.methods import METHODS

PRIVATE = {"unit": "client", "noise_multiplier": 1.0, "clip": 1.0}


def parsed(privacy: dict[str, object], method: str = "fedit", **sections: dict[str, object]) -> object:
    federation = {"weighting": "uniform", **sections.pop("federation", {})}
    given = {"privacy": privacy, "federation": federation, "aggregation": {"method": method}, **sections}
    return parse_run(given, origin="run.toml")


@pytest.mark.parametrize(
    ("privacy", "said"),
    [
        ({"epsilon": 3.0}, 'epsilon is for a run with noise; set unit = "client" or "example", or remove it'),
        ({"clip": 3.0}, "clip is for a run with noise"),
        ({"unit": "client", "epsilon": 3.0}, "needs clip, the norm that bounds what one client adds"),
        ({"unit": "client", "clip": 1.0}, "needs epsilon, the budget, or noise_multiplier, or both"),
        (PRIVATE | {"secure_sums": True}, "under secure_sums = true it does not; use one of them, or unit"),
        (PRIVATE | {"clip": []}, "privacy.clip"),
        (PRIVATE | {"clip": 0.0}, "privacy.clip"),
        (PRIVATE | {"delta": 1.0}, "privacy.delta"),
        (PRIVATE | {"noise_multiplier": 0.0}, "privacy.noise_multiplier"),
    ],
)
def test_what_is_missing_is_named(privacy: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parsed(privacy)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"federation": {"weighting": "examples"}}, 'federation.weighting = "examples", which weighs a client by how'),
        ({"federation": {"max_share": 0.5}}, "federation.max_share, which is for weights, and all weigh alike"),
        ({"federation": {"late": "next_round"}}, 'federation.late = "next_round", which lets a client have two'),
        ({"federation": {"oversample": 1.5}}, "federation.oversample = 1.5, which lets one client's update keep out"),
        ({"federation": {"server_optimizer": "adam"}}, 'federation.server_optimizer = "adam", which steps'),
        ({"robust": {"clip": 2.0}}, "[robust], which compares updates with each other; remove the section"),
        ({"lora": {"client_ranks": {"a": 4}}}, "lora.client_ranks, which tells which ranks took part; remove it"),
        ({"train": {"optimizer_state": "shared"}}, 'train.optimizer_state = "shared", which sends'),
        ({"exchange": {"publish_margin": 0.1}}, "exchange.publish_margin, which holds adapters back by scores"),
        ({"evaluation": {"early_stopping": 2}}, "evaluation.early_stopping, which ends the run by scores"),
    ],
)
def test_what_does_not_go_with_it_is_named(sections: dict[str, dict[str, object]], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parsed(PRIVATE, **sections)
    assert f'privacy.unit = "client" does not go with {said}' in str(refused.value)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_method_that_is_not_made_of_sums_is_named(method: str) -> None:
    if method in ("fedit", "ffa_lora", "rolora", "lora_fair", "lora_fair_two_sided"):
        parsed(PRIVATE, method)
        return
    with pytest.raises(ConfigError, match=f"adds noise to sums, and aggregation.method = {method} .*take .*fedit"):
        parsed(PRIVATE, method)


def test_one_clip_and_several_are_written_as_they_were() -> None:
    for clip in (0.5, [0.5, 0.05]):
        config = parse_run(
            {"privacy": PRIVATE | {"clip": clip}, "federation": {"weighting": "uniform"}}, origin="run.toml"
        )
        assert config.privacy.clips == (tuple(clip) if isinstance(clip, list) else (clip,))
        assert f"clip = {clip}" in to_toml(config)
