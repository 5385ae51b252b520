"""privacy.unit = "example" in a run file: what it needs, and what does not go with it."""

import pytest

from fedlora.common.errors import ConfigError
from fedlora.common.run_file import parse_run

PACKED = ["train.packing=true"]
UNIT, CLIP = 'privacy.unit="example"', "privacy.clip=1.0"
PRIVATE = [UNIT, CLIP, "privacy.epsilon=2.0"]


@pytest.mark.parametrize("budget", [["epsilon=2.0"], ["noise_multiplier=1.0"], ["epsilon=2.0", "noise_multiplier=1.0"]])
def test_noise_or_a_budget_is_enough(budget: list[str]) -> None:
    found = parse_run({}, [UNIT, CLIP, *(f"privacy.{setting}" for setting in budget)])
    assert found.privacy.unit == "example"


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            ["task.kind=causal_lm", "model.name=some/model", "data.path=chats.jsonl", "partition.by=iid", *PACKED],
            "train.packing does not go with",
        ),
        (["train.compile=true"], "train.compile does not go with"),
        (["train.precision=float16"], "train.precision = float16 does not go with"),
        (["model.dtype=float16"], "model.dtype = float16 does not go with"),
        (["evaluation.early_stopping=2"], "evaluation.early_stopping goes by scores"),
        (["exchange.publish_margin=0.1"], "exchange.publish_margin goes by scores"),
    ],
)
def test_what_does_not_go_with_it_is_named(settings: list[str], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_run({}, [*PRIVATE, *settings])
    (found,) = str(caught.value).splitlines()
    assert line in found


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ([UNIT, CLIP], "needs epsilon, the budget, or noise_multiplier, or both"),
        ([UNIT, "privacy.epsilon=2.0"], "needs clip"),
        ([UNIT, "privacy.epsilon=2.0", "privacy.clip=[1.0, 2.0]"], "privacy.clip has 2 numbers; expected one"),
        ([CLIP], "clip is for a run with noise"),
        (["privacy.epsilon=2.0"], "epsilon is for a run with noise"),
    ],
)
def test_what_is_missing_is_named(settings: list[str], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_run({}, settings)
    (found,) = str(caught.value).splitlines()
    assert line in found


def test_tokens_weigh_nothing_where_their_number_is_not_told() -> None:
    chats = {"model": {"name": "some/model"}, "task": {"kind": "causal_lm"}, "data": {"path": "chats.jsonl"}}
    with pytest.raises(ConfigError, match="does not go with privacy"):
        parse_run({**chats, "partition": {"by": "iid"}}, [*PRIVATE, "federation.weighting=tokens"])


@pytest.mark.parametrize("setting", ["delta=0.0", "delta=1.0", "epsilon=0.0", "clip=0.0", "noise_multiplier=-1.0"])
def test_numbers_that_protect_nothing_are_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match=f"privacy.{setting.partition('=')[0]} is"):
        parse_run({}, [*PRIVATE, f"privacy.{setting}"])
