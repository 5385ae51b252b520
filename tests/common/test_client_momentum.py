"""Client momentum in a run file: with every method that has a last change, and a clear line about the others."""

import pytest

from fedlora.aggregation import METHODS
from fedlora.common.errors import ConfigError
from fedlora.common.run_file import parse_run
from fedlora.methods import Method, RoundPlan

HALF = "train.client_momentum=0.5"
WITHOUT = {
    "flora": "whose pairs start afresh in every round",
    "rolora": "which trains another factor in each round",
}


@pytest.mark.parametrize("name", METHODS)
def test_it_goes_with_every_method_that_has_a_last_change_and_is_refused_in_a_line_by_the_others(name: str) -> None:
    method = f"aggregation.method={name}"
    parse_run({}, [method, "train.client_momentum=0.0"])
    if name not in WITHOUT:
        assert parse_run({}, [method, HALF]).train.client_momentum == 0.5
        return
    with pytest.raises(ConfigError) as caught:
        parse_run({}, [method, HALF])
    (line,) = str(caught.value).splitlines()
    assert f"train.client_momentum = 0.5 has no last change to go on with under aggregation.method = {name}, " in line
    assert WITHOUT[name] in line


def test_a_method_of_ones_own_is_judged_by_its_rounds() -> None:
    class Fresh(Method):
        name = "fresh"

        def plan(self, _round: int, /) -> RoundPlan:
            return RoundPlan(starts_fresh=True)

    with pytest.raises(ValueError, match=r"has no last change to go on with under aggregation\.method = fresh"):
        parse_run({}, [HALF]).require_fit(Fresh())


@pytest.mark.parametrize(
    "setting", ["train.client_momentum=1.0", "train.client_momentum=-0.1", "train.b_learning_rate_ratio=0"]
)
def test_what_is_no_share_or_no_ratio_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match=setting.partition("=")[0].replace(".", r"\.")):
        parse_run({}, [setting])
