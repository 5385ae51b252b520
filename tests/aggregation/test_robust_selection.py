"""Multi-Krum and the geometric median against dense implementations and known optima; in float64."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedlora.aggregation.selection import geometric_median, krum_scores, square_distances

few = settings(derandomize=True, database=None, deadline=None, max_examples=30)


def points(seed, num_points, size=6, *, num_far=0, far=1000.0):
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn(num_points, size, dtype=torch.float64, generator=generator)
    found[:num_far] *= far
    return found


def inner_products(vectors):
    return vectors @ vectors.T


@few
@given(st.integers(0, 1000), st.integers(5, 12), st.integers(0, 1))
def test_distances_and_krum_scores_are_the_dense_ones(seed, num_points, attackers):
    vectors = points(seed, num_points)
    distances = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist").square()
    torch.testing.assert_close(square_distances(inner_products(vectors)), distances, rtol=1e-10, atol=1e-12)
    expected = []
    for index in range(num_points):
        others = sorted(float(distances[index, other]) for other in range(num_points) if other != index)
        expected.append(sum(others[: num_points - attackers - 2]))
    assert krum_scores(inner_products(vectors), attackers=attackers) == pytest.approx(expected, rel=1e-10)


def test_equal_updates_have_a_score_of_zero():
    gram = inner_products(points(0, 1).repeat(6, 1))
    assert krum_scores(gram, attackers=1) == pytest.approx([0] * 6, abs=1e-12)


def pull_left(vectors, p, weights):
    """Return the gradient of sum_i p_i |x_i - v| at the mean of `weights`, over the largest p_i.

    Where the median lies on an update there is no gradient: it stays there as long as the others together pull no
    harder than that update's own weight holds, and what they pull beyond it is returned.
    """
    differences = torch.tensor(weights, dtype=torch.float64) @ vectors - vectors
    distances = differences.norm(dim=1)
    given_p = torch.tensor(p, dtype=torch.float64)
    is_on_it = distances < 1e-4 * distances.median()
    pull = ((given_p / distances)[:, None] * differences)[~is_on_it].sum(0).norm()
    return max(0.0, float(pull - given_p[is_on_it].sum())) / max(p)


@few
@given(st.integers(0, 1000), st.integers(4, 12), st.sampled_from([0, 1]))
def test_nothing_pulls_at_the_geometric_median(seed, num_points, num_far):
    vectors = points(seed, num_points, num_far=num_far)
    p = [1 / num_points] * num_points
    weights = geometric_median(inner_products(vectors), p)
    assert math.fsum(weights) == pytest.approx(1, abs=1e-14)
    assert min(weights) > 0
    assert pull_left(vectors, p, weights) < 1e-6


def test_the_geometric_median_may_lie_on_an_update():
    vectors, p = points(880, 4, num_far=1), [0.25] * 4
    weights = geometric_median(inner_products(vectors), p)
    assert max(weights) > 0.999
    assert pull_left(vectors, p, weights) < 1e-6


@few
@given(st.integers(0, 1000))
@example(190)  # the median lies on an update
def test_it_is_the_minimum_that_weiszfelds_steps_find_on_the_vectors_themselves(seed):
    vectors, p = points(seed, 7), [0.1, 0.1, 0.1, 0.2, 0.2, 0.2, 0.1]
    given_p = torch.tensor(p, dtype=torch.float64)
    center = given_p @ vectors
    for _ in range(1000):
        pulls = given_p / (center - vectors).norm(dim=1)
        center = (pulls @ vectors) / pulls.sum()
    found = torch.tensor(geometric_median(inner_products(vectors), p), dtype=torch.float64) @ vectors
    torch.testing.assert_close(found, center, rtol=1e-8, atol=1e-8)


def test_on_a_line_it_is_the_weighted_median():
    vectors = torch.tensor([[0.0], [1.0], [2.0], [50.0], [1e6]], dtype=torch.float64)
    weights = geometric_median(inner_products(vectors), [0.2] * 5)
    assert float(torch.tensor(weights, dtype=torch.float64) @ vectors) == pytest.approx(2, abs=1e-3)
    weights = geometric_median(inner_products(vectors), [0.6, 0.1, 0.1, 0.1, 0.1])
    assert float(torch.tensor(weights, dtype=torch.float64) @ vectors) == pytest.approx(0, abs=1e-3)


def test_in_a_triangle_it_sees_all_sides_under_equal_angles():
    vectors = torch.tensor([[0.0, 0.0], [4.0, 0.0], [1.0, 3.0]], dtype=torch.float64)
    weights = geometric_median(inner_products(vectors), [1 / 3] * 3)
    directions = torch.nn.functional.normalize(vectors - torch.tensor(weights, dtype=torch.float64) @ vectors, dim=1)
    cosines = inner_products(directions)[[0, 0, 1], [1, 2, 2]]
    torch.testing.assert_close(cosines, torch.full((3,), -0.5, dtype=torch.float64), rtol=1e-9, atol=1e-9)


def test_where_all_are_equal_the_weights_stay():
    assert geometric_median(inner_products(points(0, 1).repeat(3, 1)), [0.5, 0.3, 0.2]) == pytest.approx(
        [0.5, 0.3, 0.2], abs=1e-6
    )
    assert geometric_median(torch.zeros(2, 2, dtype=torch.float64), [0.9, 0.1]) == [0.9, 0.1]
    assert geometric_median(torch.ones(1, 1, dtype=torch.float64), [1.0]) == [1.0]


def test_an_attacker_however_far_away_pulls_no_harder():
    near = points(3, 6)
    moved = []
    for far in (1e2, 1e4, 1e6):
        vectors = torch.cat([near, far * points(4, 1)])
        weights = geometric_median(inner_products(vectors), [1 / 7] * 7)
        moved.append(float((torch.tensor(weights, dtype=torch.float64) @ vectors - near.mean(0)).norm()))
    assert max(moved) < 1.5
    assert moved[2] == pytest.approx(moved[1], rel=1e-2)
