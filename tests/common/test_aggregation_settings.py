"""Settings of the aggregation in a run file: what bounds FedEx-LoRA's change, and the limit of re-gauging."""

from dataclasses import fields

import pytest

from fedlora.aggregation import METHODS, FedExLora, Robust
from fedlora.common.errors import ConfigError
from fedlora.common.run_file import parse_run, to_toml


def test_every_setting_of_a_method_and_of_robust_can_be_set_in_a_run_file() -> None:
    for name, make in METHODS.items():
        settings = parse_run({}, [f"aggregation.method={name}"]).aggregation.model_dump()
        assert make(**{key: value for key, value in settings.items() if key != "method"}) == make()
        assert settings.keys() - {"method"} == make.model_fields.keys()
    assert Robust(**parse_run({}, []).robust.model_dump()) == Robust()
    assert parse_run({}, []).robust.model_dump().keys() == {field.name for field in fields(Robust)}


def test_the_gauge_limit_is_read_shown_and_checked() -> None:
    config = parse_run({}, ["robust.regauge=true", "robust.gauge_limit=0.5"])
    assert Robust(**config.robust.model_dump()) == Robust(regauge=True, gauge_limit=0.5)
    assert "gauge_limit = 0.5" in to_toml(config)
    for wrong in ("0", "1.5", "-0.1", "nan"):
        with pytest.raises(ConfigError, match=r"robust\.gauge_limit"):
            parse_run({}, [f"robust.gauge_limit={wrong}"])


def test_the_residual_rank_is_read_shown_and_checked() -> None:
    config = parse_run({}, ["aggregation.method=fedex_lora", "aggregation.residual_rank=8"])
    assert config.aggregation == FedExLora(residual_rank=8)
    assert "residual_rank = 8" in to_toml(config)
    assert "# residual_rank" in to_toml(parse_run({}, ["aggregation.method=fedex_lora"]))
    assert METHODS["fedex_lora"](residual_rank=8) == FedExLora(residual_rank=8)
    for wrong in ("0", "-1", "1.5", "many"):
        with pytest.raises(ConfigError, match=r"aggregation\.residual_rank"):
            parse_run({}, ["aggregation.method=fedex_lora", f"aggregation.residual_rank={wrong}"])
    with pytest.raises(ConfigError, match=r"aggregation\.residual_rank"):
        parse_run({}, ["aggregation.method=flora", "aggregation.residual_rank=8"])


def test_a_residual_rank_without_room_beside_what_the_first_pairs_take_is_refused() -> None:
    pissa = ["aggregation.method=fedex_lora", 'lora.init="pissa"', "lora.rank=4"]
    with pytest.raises(
        ConfigError,
        match=r"aggregation\.method = fedex_lora with a rank of 4 for their",
    ):
        parse_run({}, [*pissa, "aggregation.residual_rank=4"])
    parse_run({}, [*pissa, "aggregation.residual_rank=5"])
    parse_run({}, pissa)
