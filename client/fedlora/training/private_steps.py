"""What makes the steps of a round private to each example: batches that nobody can foretell, and noise (DP-SGD).

A step's batch has each example with the same probability, whatever the others do (Poisson sampling), so that its size
varies: it can be none. Batches and noise come from the operating system's secure source and not from the run's seed,
which the server knows.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedlora.common.config import PrivacySection, TrainSection
from fedlora.privacy.noise import with_noise
from fedlora.privacy.sampled_steps import multiplier_for_steps
from fedlora.training.peft_bridge import ResidentModel

_NUM_VALUES = 2**64


@dataclass(frozen=True)
class StepPrivacy:
    """How much noise a step has.

    Attributes:
        noise_multiplier: the noise's standard deviation, as a multiple of `clip`.
        clip: the largest norm of an example's gradient, over all that is trained.
    """

    noise_multiplier: float
    clip: float


def expected_in(settings: TrainSection, num_examples: int) -> int:
    """Return how many examples a step has on average, by which its sum is divided: public, whatever was drawn."""
    return min(settings.batch_size, num_examples)


def multiplier_of(privacy: PrivacySection, *, num_steps: int, num_drawn: int, num_examples: int) -> float:
    """Return the noise multiplier: the run's own, or the least with which a run's steps are within its epsilon.

    Args:
        num_steps: of all its rounds.
        num_drawn, num_examples: examples of a step on average, and in all.

    Raises:
        ConfigError: no noise is enough, or dp-accounting is not installed.
    """
    if privacy.noise_multiplier is not None:
        return privacy.noise_multiplier
    return multiplier_for_steps(
        num_steps, num_drawn=num_drawn, num_examples=num_examples, epsilon=privacy.epsilon or 0.0, delta=privacy.delta
    )


def poisson_batches(num_examples: int, num_expected: int, num_steps: int) -> list[np.ndarray]:
    """Return for each step the places of its examples, each drawn with probability num_expected / num_examples at most.

    Exactly: with that rounded down to a multiple of 2**-64. Where all are expected, all are in.
    """
    if num_expected >= num_examples:
        return [np.arange(num_examples)] * num_steps
    below = num_expected * _NUM_VALUES // num_examples
    return [np.flatnonzero(_uniform(num_examples) < np.uint64(below)) for _ in range(num_steps)]


@torch.no_grad()
def set_noisy(model: ResidentModel, total: Sequence[Tensor], privacy: StepPrivacy, *, num_expected: int) -> None:
    """Make the gradients of what is trained the sums of clipped ones with noise, over how many examples are expected.

    All of it has noise, whether an example has a gradient there or not: that none has says something. Beyond the rank
    of the loaded adapter there is nothing to hide.

    Args:
        total: of each trained tensor the sum, of its shape, in their order; it is changed.
    """
    deviation = privacy.noise_multiplier * privacy.clip
    for (name, parameter), gradient in zip(model.trained().items(), total, strict=True):
        part = model.part_of(name, gradient)
        part.copy_(with_noise(part, standard_deviation=deviation))
        parameter.grad = gradient / num_expected


def _uniform(num: int) -> np.ndarray:
    """Return uint64 (num,) from the secure source."""
    return np.frombuffer(os.urandom(8 * num), dtype=np.uint64)
