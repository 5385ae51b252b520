"""What a run cannot have whose server sees sums alone, each refused in a line that says why."""

import pytest
from pydantic import ValidationError

from fedlora.common.config import RunConfig, idle_settings

SECURE = {"secure_sums": True}


@pytest.mark.parametrize(
    ("sections", "why"),
    [
        ({"aggregation": {"method": "flora"}}, "aggregation.method = flora, which takes every client's pair"),
        ({"aggregation": {"method": "fedex_lora"}}, "aggregation.method = fedex_lora"),
        ({"aggregation": {"method": "lora_fair_cosine"}}, "aggregation.method = lora_fair_cosine"),
        ({"aggregation": {"method": "flex_lora"}}, "aggregation.method = flex_lora"),
        ({"lora": {"client_ranks": {"a": 2}}}, "lora.client_ranks"),
        ({"federation": {"late": "next_round"}}, 'federation.late = "next_round"'),
        ({"federation": {"max_share": 0.5}}, "federation.max_share"),
        ({"robust": {"regauge": True}}, "robust.regauge"),
        ({"robust": {"clip": 2.0}}, "robust.clip"),
        ({"robust": {"select": "multi_krum", "attackers": 1}}, 'robust.select = "multi_krum"'),
        ({"robust": {"weighting": "geometric_median"}}, 'robust.weighting = "geometric_median"'),
        ({"train": {"optimizer_state": "shared"}}, 'train.optimizer_state = "shared"'),
    ],
)
def test_what_takes_single_updates_is_refused_by_name(sections: dict[str, dict[str, object]], why: str) -> None:
    RunConfig.model_validate(sections)
    with pytest.raises(ValidationError) as raised:
        RunConfig.model_validate({**sections, "privacy": SECURE})
    assert f"privacy.secure_sums does not go with {why}" in str(raised.value)


@pytest.mark.parametrize(
    "method",
    [
        {"method": "fedit"},
        {"method": "lora_fair"},
        {"method": "lora_fair_two_sided"},
        {"method": "ffa_lora"},
        {"method": "rolora"},
        {"method": "flex_lora", "power_iterations": 1},
    ],
)
def test_methods_made_of_sums_go_with_it(method: dict[str, object]) -> None:
    config = RunConfig.model_validate({"aggregation": method, "privacy": SECURE})
    assert config.wire_precision == "float32"


def test_what_does_nothing_beside_it_is_said() -> None:
    config = RunConfig.model_validate(
        {"privacy": SECURE, "exchange": {"precision": "int8"}, "federation": {"norm_limit": 5.0}}
    )
    (line,) = idle_settings(config)
    assert line.startswith("exchange.precision")
