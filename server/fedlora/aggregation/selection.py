"""Which updates to believe, and how much, from the inner products of what they change."""

from collections.abc import Sequence
from statistics import median

from torch import Tensor

_MAX_STEPS = 10_000
_TOLERANCE = 1e-10
_SMOOTHING = 1e-9


def square_distances(gram: Tensor) -> Tensor:
    """Return |Delta_i - Delta_j|^2, (K, K), from the inner products, (K, K)."""
    squares = gram.diagonal()
    return (squares[:, None] + squares - 2 * gram).clamp_min(0)


def krum_scores(gram: Tensor, *, attackers: int) -> list[float]:
    """Return each client's Krum score, the sum of the K - attackers - 2 smallest squared distances to the others.

    Blanchard, El Mhamdi, Guerraoui, Stainer: "Machine Learning with Adversaries: Byzantine Tolerant Gradient
    Descent", NeurIPS 2017, arXiv 1703.02757.

    Args:
        gram: inner products <Delta_i, Delta_j>, (K, K), with K > 2 attackers + 2.
    """
    distances = square_distances(gram)
    # Among the sorted distances of a client, its own, zero, is the first.
    distances.fill_diagonal_(-1)
    ordered = distances.sort(dim=1).values[:, 1:]
    scores: list[float] = ordered[:, : gram.shape[0] - attackers - 2].sum(1).tolist()
    return scores


def geometric_median(gram: Tensor, p: Sequence[float]) -> list[float]:
    """Return the weights, with sum 1, whose mean of the updates is their geometric median.

    It minimises sum_i p_i |Delta_i - v| by Weiszfeld's steps, p_i' = p_i / |Delta_i - v|: each update pulls as hard
    as any other of its weight, however far away it is. Pillutla, Kakade, Harchaoui: "Robust Aggregation for
    Federated Learning", 2022, arXiv 1912.13445, stop after a few steps; here they go on until the weights stand
    still. The distances are smoothed, sqrt(|Delta_i - v|^2 + e^2), with e a billionth of the median distance from
    the most central update, or else a step could land on an update and divide by zero. Where the median lies on an
    update, what is returned ends about as far beside it.

    Args:
        gram: inner products <Delta_i, Delta_j>, (K, K).
        p: the given weights, with sum 1.
    """
    given = gram.new_tensor(p)
    distances = square_distances(gram).sqrt()
    central = int((distances @ given).argmin())
    apart = [distance for distance in distances[central].tolist() if distance > 0]
    if not apart:
        return list(p)
    smoothing = _SMOOTHING * median(apart)
    # Seen from there, what all updates have in common does not drown their differences.
    gram = gram - gram[central] - gram[:, central, None] + gram[central, central]
    weights = given
    for _ in range(_MAX_STEPS):
        to_mean = gram @ weights
        squares = gram.diagonal() - 2 * to_mean + weights @ to_mean
        pulls = given / (squares.clamp_min(0) + smoothing**2).sqrt()
        previous, weights = weights, pulls / pulls.sum()
        # Relative to each weight: the smallest belong to the updates that are farthest away.
        if bool(((weights - previous).abs() <= _TOLERANCE * weights).all()):
            break
    found: list[float] = weights.tolist()
    return found
