"""Which runs of a comparison are said to be alike, and which may be."""

import math
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from made_comparisons import run

from fedlora.comparison.federates import alike
from fedlora.comparison.results import RunResult, Variant

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
