"""Which runs of a comparison are said to be alike, and which may be."""

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from made_comparisons import run

from fedlora.common.config import RunConfig
from fedlora.comparison.federates import alike
from fedlora.comparison.gathered import gathered
from fedlora.comparison.grid import Grid
from fedlora.comparison.results import RunResult, Variant
from fedlora.comparison.work import begin, work

VARIANTS = (Variant("ffa_lora", "ffa_lora"), Variant("rolora", "rolora"))


def made(name: str, losses: tuple[float, float], *, error: float, average: str = "one") -> RunResult:
    """Return a run whose first average had an error, and what its clients' losses were in round 2."""
    errors = {"error_before": (math.nan, error, error)}
    return run(name, 0, 0.5, course=errors, first_average=average, second_losses=dict(zip("ab", losses, strict=True)))


@pytest.mark.parametrize(
    ("losses", "error", "average", "said"),
    [
        ((0.3, 0.4), 1e-7, "one", ""),
        ((0.3, 0.4), 0.1, "one", "round 1 ends in the same adapter"),
        ((0.1, 0.2), 1e-7, "one", "round 1 ends in the same adapter"),
        ((0.1, 0.2), 0.1, "other", "all clients have the same losses in round 2"),
        ((0.3, 0.4), 0.1, "other", ""),
    ],
)
def test_methods_may_agree_in_a_round_whose_average_is_exact_and_nowhere_else(
    losses: tuple[float, float], error: float, average: str, said: str
) -> None:
    runs = [
        made("ffa_lora", (0.1, 0.2), error=error),
        made("rolora", losses, error=error, average=average),
    ]
    found = alike(VARIANTS, runs)
    assert {place for place, _ in found} == ({"ffa_lora", "rolora"} if said else set())
    assert all(words.startswith(said) for words in found.values())


def test_methods_that_part_after_an_exact_round_are_not_alike_whatever_the_losses_of_the_next() -> None:
    runs = [made(name, (0.1, 0.2), error=1e-7) for name in ("ffa_lora", "rolora")]
    assert alike(VARIANTS, runs)
    other = replace(runs[1], course=replace(runs[1].course, loss=(2.0, 1.5, 0.9)))
    assert alike(VARIANTS, [runs[0], other]) == {}


def test_real_methods_are_not_alike_with_a_single_local_step(
    vision_run: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """B is zero in round 1, and so A has no gradient whether it is trained or not."""
    base = vision_run(federation={"rounds": 3}, train={"steps": 1}, evaluation={"client_examples": 4})
    begin(tmp_path, base, Grid(("fedit", "ffa_lora", "rolora", "lora_fair"), num_draws=1))
    work(tmp_path)
    runs = {run.variant: run for run in gathered(tmp_path, command="").runs}
    assert len({run.first_average for run in runs.values()}) < len(runs), "the round is exact, or nothing is tested"
    assert {name: run.fault for name, run in runs.items()} == dict.fromkeys(runs, "")
