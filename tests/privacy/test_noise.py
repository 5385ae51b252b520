"""Noise is Gaussian, secret, on a grid and never twice the same.

The numbers differ at every run: bounds are six standard deviations of what is measured, which chance passes once in
500 million.
"""

import math

import pytest
import torch

from fedlora.privacy.noise import gaussians, with_noise

NUM = 200_001


def test_noise_is_a_standard_gaussians() -> None:
    noise = gaussians(NUM)
    assert noise.shape == (NUM,)
    assert noise.dtype == torch.float64
    assert abs(float(noise.mean())) < 6 / NUM**0.5
    assert abs(float(noise.square().mean()) - 1) < 6 * (2 / NUM) ** 0.5
    assert abs(float(noise.pow(4).mean()) - 3) < 6 * (96 / NUM) ** 0.5
    for bound in (-2.5, -1.0, 0.0, 0.5, 1.5, 3.0):
        share = math.erfc(-bound / math.sqrt(2)) / 2
        found = float((noise < bound).double().mean())
        assert abs(found - share) < 6 * (share * (1 - share) / NUM) ** 0.5, bound


def test_one_number_says_nothing_of_another() -> None:
    noise = gaussians(NUM - 1)
    first, second = noise.chunk(2)
    for product in (first * second, noise[1:] * noise[:-1], first.square() * second):
        assert abs(float(product.mean())) < 6 * float(product.std()) / product.numel() ** 0.5


def test_no_seed_gives_the_same_noise_again() -> None:
    drawn = []
    for _ in range(2):
        torch.manual_seed(1)
        drawn.append(gaussians(100))
    assert not (drawn[0] == drawn[1]).any()


@pytest.mark.parametrize("standard_deviation", [1e-6, 0.3, 1.0, 5e4])
def test_what_is_released_lies_on_a_grid_that_the_noise_alone_decides(standard_deviation: float) -> None:
    values = torch.linspace(-3, 3, 10_000, dtype=torch.float64).reshape(100, 100) * standard_deviation
    released = with_noise(values, standard_deviation=standard_deviation)
    assert released.shape == values.shape
    assert released.dtype == torch.float32
    grid = 2.0 ** (math.floor(math.log2(standard_deviation)) - 16)
    steps = released.double() / grid
    assert torch.equal(steps, steps.round())
    noise = (released.double() - values) / standard_deviation
    assert abs(float(noise.square().mean()) - 1) < 6 * (2 / 10_000) ** 0.5


def test_values_of_half_precision_and_none_are_released_too() -> None:
    assert with_noise(torch.ones(3, dtype=torch.bfloat16), standard_deviation=1e-3).sub(1).abs().max() < 0.02
    assert with_noise(torch.ones(0, 4), standard_deviation=1.0).shape == (0, 4)


@pytest.mark.parametrize("standard_deviation", [0.0, -1.0, math.inf, math.nan])
def test_no_noise_is_no_release(standard_deviation: float) -> None:
    with pytest.raises(ValueError, match="standard deviation"):
        with_noise(torch.ones(2), standard_deviation=standard_deviation)
