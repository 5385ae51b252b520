"""Fixed point, masks, shares and neighbours, each by itself."""

from itertools import combinations

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from hypothesis import given
from hypothesis import strategies as st

from fedlora.secure_sums import neighbours
from fedlora.secure_sums.masks import add_mask
from fedlora.secure_sums.ring import Bits, FixedPoint
from fedlora.secure_sums.shares import joined, shared

SECRET = bytes(range(32))


@pytest.mark.parametrize("bits", [16, 32])
@given(clip=st.floats(1e-3, 1e3), num_terms=st.integers(1, 50), seed=st.integers(0, 1000))
def test_a_sum_in_fixed_point_is_the_sum_but_for_half_a_unit_a_term(
    bits: Bits, clip: float, num_terms: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    weights = random.dirichlet(np.ones(num_terms))
    # At the clip too, where the sum is as large as it may be.
    terms = np.clip(random.normal(size=(num_terms, 40)) * clip, -clip, clip).astype(np.float32)
    terms[:, 0], terms[:, 1] = np.float32(clip), np.float32(-clip)
    fixed = FixedPoint(bits, float(np.float32(clip)), num_terms)
    written = [fixed.written(term, weight=weight)[0] for term, weight in zip(terms, weights, strict=True)]
    total = fixed.read(np.sum(written, axis=0, dtype=fixed.kind))
    exact = weights @ terms.astype(np.float64)
    assert np.abs(total - exact).max() <= fixed.largest_error + 1e-6 * clip


def test_what_is_beyond_the_clip_is_counted() -> None:
    fixed = FixedPoint(32, 1.0, 1)
    written, num_clipped = fixed.written(np.array([0.5, -3.0, 2.0, 1.0], np.float32), weight=1.0)
    assert num_clipped == 2
    np.testing.assert_allclose(fixed.read(written), [0.5, -1.0, 1.0, 1.0], atol=1e-6)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_not_written(number: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        FixedPoint(32, 1.0, 1).written(np.array([0.0, number], np.float32), weight=1.0)


def test_the_error_at_a_clip_of_a_half_in_16_bits() -> None:
    assert FixedPoint(16, 0.5, 1).largest_error == pytest.approx(7.6e-6, rel=0.01)


@pytest.mark.parametrize("kind", [np.uint16, np.uint32])
@pytest.mark.parametrize("size", [1, 1000, 65536, 200_001])
def test_a_mask_is_the_ciphers_stream_and_is_taken_away_again(kind: type, size: int) -> None:
    vector = np.arange(size).astype(kind)
    hidden = vector.copy()
    add_mask(hidden, SECRET)
    stream = Cipher(algorithms.ChaCha20(SECRET, bytes(16)), None).encryptor().update(bytes(vector.nbytes))
    np.testing.assert_array_equal(hidden, vector + np.frombuffer(stream, kind))
    add_mask(hidden, SECRET, subtracts=True)
    np.testing.assert_array_equal(hidden, vector)


def test_any_of_so_many_holders_have_the_secret_and_one_fewer_have_another() -> None:
    shares = shared(SECRET, threshold=3, holders=[1, 2, 5, 9, 70_000])
    for chosen in combinations(shares, 3):
        assert joined({holder: shares[holder] for holder in chosen}, threshold=3) == SECRET
    assert joined({1: shares[1], 2: shares[2]}, threshold=2) != SECRET
    with pytest.raises(ValueError, match="it takes 3"):
        joined({1: shares[1], 2: shares[2]}, threshold=3)


def test_the_same_secret_has_other_shares_each_time() -> None:
    first, second = (shared(SECRET, threshold=2, holders=[1, 2]) for _ in range(2))
    assert first[1] != second[1]


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32])
def test_every_secret_can_be_shared(secret: bytes) -> None:
    assert joined(shared(secret, threshold=2, holders=[1, 2, 3]), threshold=2) == secret


@pytest.mark.parametrize(
    ("secret", "threshold", "holders"),
    [(bytes(31), 1, [1]), (SECRET, 3, [1, 2]), (SECRET, 1, [0, 1]), (SECRET, 1, [1, 1]), (SECRET, 0, [1])],
)
def test_what_cannot_be_shared_is_refused(secret: bytes, threshold: int, holders: list[int]) -> None:
    with pytest.raises(ValueError, match=r"expected|threshold"):
        shared(secret, threshold=threshold, holders=holders)


@pytest.mark.parametrize("size", [2, 3, 49, 50, 51, 200, 500])
def test_who_is_ones_neighbour_has_one_for_a_neighbour(size: int) -> None:
    order = neighbours.ring_order([f"n{number}" for number in range(size)], b"seed")
    near = {name: set(neighbours.neighbours(order, name)) for name in order}
    assert all(name in near[other] and other != name for name in order for other in near[name])
    assert {len(others) for others in near.values()} == {neighbours.degree(size)}


def test_small_sums_are_complete_and_large_ones_sparse() -> None:
    assert neighbours.degree(49) == 48
    assert neighbours.holders_needed(49, threshold=30) == 30
    assert [neighbours.degree(size) for size in (50, 100, 500)] == [22, 42, 156]
    # More than half of a member's neighbours, so that no two sets of them have its secrets apart from each other.
    assert [neighbours.holders_needed(size, threshold=0) for size in (50, 100, 500)] == [12, 22, 79]


def test_the_order_is_another_for_another_seed() -> None:
    names = [f"n{number}" for number in range(20)]
    first, second = (neighbours.ring_order(names, seed) for seed in (b"a", b"b"))
    assert sorted(first) == sorted(second) == sorted(names)
    assert first != second
