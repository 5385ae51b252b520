"""Who hides vectors with whom: everybody with everybody in small sums, a sparse graph in large ones.

Bell, Bonawitz, Gascon, Lepoint, Raykova: "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead", CCS 2020
(SecAgg+): members stand on a ring in random order, and each has the nearest on both sides for neighbours. So few of
them are enough that, but for a chance of 2^-80, no member's secrets are with members who would tell, and every
member's secrets can be had back when some leave.
"""

import hashlib
import math
from collections.abc import Sequence
from functools import cache

COMPLETE_BELOW = 50
# Of the members, these shares may tell the server all they know, and may leave in the middle.
MAY_TELL = 0.2
MAY_LEAVE = 0.2
_CHANCE = 2.0**-80


def degree(num_members: int) -> int:
    """Return how many neighbours each member has."""
    return num_members - 1 if num_members < COMPLETE_BELOW else _sparse(num_members)[0]


def holders_needed(num_members: int, *, threshold: int) -> int:
    """Return how many holders of a member's secrets have them together.

    Args:
        num_members: of the sum.
        threshold: how many members must be there to the end, where everybody is everybody's neighbour.
    """
    return threshold if num_members < COMPLETE_BELOW else _sparse(num_members)[1]


def ring_order(members: Sequence[str], seed: bytes) -> tuple[str, ...]:
    """Return the members in an order that the seed gives, in which nobody can choose a place by a name."""
    return tuple(sorted(members, key=lambda name: hashlib.sha256(seed + name.encode()).digest()))


def neighbours(order: Sequence[str], name: str) -> tuple[str, ...]:
    """Return a member's neighbours in that order, sorted by name."""
    size, half = len(order), degree(len(order)) // 2
    if degree(size) == size - 1:
        return tuple(sorted(other for other in order if other != name))
    place = order.index(name)
    return tuple(sorted(order[(place + step) % size] for step in range(-half, half + 1) if step))


@cache
def _sparse(size: int) -> tuple[int, int]:
    """Return the least even number of neighbours, and of how many holders of a secret it takes.

    Over all members together: that so many neighbours tell as have a secret, or that more than half of the neighbours
    leave so that too few are left, has at most the chance `_CHANCE`.
    """
    telling, leaving = math.floor(MAY_TELL * size), math.floor(MAY_LEAVE * size)
    for num_neighbours in range(4, size - 1, 2):
        # A member is one of its own secrets' holders: what it tells is up to it.
        for needed in range(num_neighbours // 2 + 1, num_neighbours):
            told = _tail(size - 1, telling, num_neighbours, needed)
            lost = _tail(size - 1, leaving, num_neighbours, num_neighbours - needed + 1)
            if size * (told + lost) <= _CHANCE:
                return num_neighbours, needed
    return size - 1, size // 2 + 1


def _tail(population: int, marked: int, drawn: int, at_least: int) -> float:
    """Return the chance that of so many drawn at least so many are marked (hypergeometric)."""
    counts = range(at_least, min(marked, drawn) + 1)
    ways = sum(math.comb(marked, count) * math.comb(population - marked, drawn - count) for count in counts)
    return ways / math.comb(population, drawn)
