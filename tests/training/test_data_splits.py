"""Held-out sets and fixed samples."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlora.training.data import equal_parts
from fedlora.training.data.splits import held_out_rows, held_out_values

few_examples = settings(derandomize=True, max_examples=30, deadline=None)
strata_lists = st.lists(st.sampled_from(["en", "de", "fr"]), min_size=1, max_size=60)
fractions = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9])


def generator_of(stratum: str) -> np.random.Generator:
    return np.random.default_rng(len(stratum))


@given(strata=strata_lists, fraction=fractions)
@few_examples
def test_each_stratum_gives_its_fraction_rounded_half_up_but_never_all(strata: list[str], fraction: float) -> None:
    held_out = held_out_rows(np.array(strata), fraction=fraction, generator_of=generator_of)

    for stratum in set(strata):
        size = strata.count(stratum)
        count = sum(held_out[row] for row, name in enumerate(strata) if name == stratum)
        assert count == min(math.floor(fraction * size + 0.5), size - 1)


def test_a_stratum_draws_the_same_whatever_other_strata_there_are() -> None:
    alone = held_out_rows(np.array(["de"] * 20), fraction=0.3, generator_of=generator_of)
    beside = held_out_rows(np.array(["de"] * 20 + ["fr"] * 7), fraction=0.3, generator_of=generator_of)

    assert np.array_equal(alone, beside[:20])


@given(strata=strata_lists, num_values=st.integers(1, 20), fraction=fractions, seed=st.integers(0, 9))
@few_examples
def test_a_value_is_on_one_side_and_no_stratum_gives_much_more_than_its_fraction(
    strata: list[str], num_values: int, fraction: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    values = random.integers(0, num_values, len(strata)).astype(np.str_)

    held_out = held_out_values(np.array(strata), values, fraction=fraction, random=random)

    assert not set(values[held_out]) & set(values[~held_out])
    for stratum in set(strata):
        of_stratum = np.array(strata) == stratum
        largest = np.unique(values[of_stratum], return_counts=True)[1].max()
        assert held_out[of_stratum].sum() <= fraction * of_stratum.sum() + largest / 2
        assert not held_out[of_stratum].all()


def test_values_of_one_row_in_each_stratum_are_held_out_by_the_exact_fraction() -> None:
    strata = np.repeat(["de", "en", "fr"], 100)
    values = np.tile(np.arange(100).astype(np.str_), 3)

    held_out = held_out_values(strata, values, fraction=0.2, random=np.random.default_rng(0))

    assert [int(held_out[strata == stratum].sum()) for stratum in ("de", "en", "fr")] == [20, 20, 20]


@given(groups=strata_lists, num_examples=st.integers(0, 80))
@few_examples
def test_equal_parts_are_as_equal_as_the_groups_allow(groups: list[str], num_examples: int) -> None:
    chosen = equal_parts(np.array(groups), num_examples)

    assert len(chosen) == min(num_examples, len(groups))
    assert np.all(np.diff(chosen) > 0)
    counts = {name: sum(groups[row] == name for row in chosen) for name in set(groups)}
    for name, count in counts.items():
        assert count == groups.count(name) or count >= max(counts.values()) - 1


def test_a_sample_is_spread_evenly_over_its_group() -> None:
    assert equal_parts(np.array(["a"] * 100), 4).tolist() == [12, 37, 62, 87]


@pytest.mark.parametrize("num_examples", [0, 5])
def test_a_sample_of_an_empty_set_is_empty(num_examples: int) -> None:
    chosen = equal_parts(np.empty(0, np.str_), num_examples)

    assert chosen.dtype == np.int64
    assert chosen.tolist() == []
