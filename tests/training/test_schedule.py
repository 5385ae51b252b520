"""The learning rate's course over a run."""

import math

import pytest

from fedlora.training.schedule import learning_rate_factor


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_the_rate_rises_from_zero_to_its_peak_in_the_warmup(schedule: str) -> None:
    factors = [learning_rate_factor(progress, schedule=schedule, warmup=0.2) for progress in (0.0, 0.05, 0.1, 0.2)]
    assert factors == pytest.approx([0.0, 0.25, 0.5, 1.0])


def test_without_warmup_the_rate_begins_at_its_peak() -> None:
    assert learning_rate_factor(0.0, schedule="cosine", warmup=0.0) == 1.0


@pytest.mark.parametrize(
    ("schedule", "half_way", "end"), [("constant", 1.0, 1.0), ("linear", 0.5, 0.0), ("cosine", 0.5, 0.0)]
)
def test_after_the_warmup_the_rate_falls_to_its_end(schedule: str, half_way: float, end: float) -> None:
    assert learning_rate_factor(0.6, schedule=schedule, warmup=0.2) == pytest.approx(half_way)
    assert learning_rate_factor(1.0, schedule=schedule, warmup=0.2) == pytest.approx(end)


def test_cosine_is_half_a_cosine() -> None:
    assert learning_rate_factor(0.25, schedule="cosine", warmup=0.0) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="'step'; expected constant, linear or cosine"):
        learning_rate_factor(0.5, schedule="step", warmup=0.0)
