"""Whom a round asks, drawn by (seed, round) among who is there. Pure."""

import math
from collections.abc import Collection, Sequence

from fedlora.common.random_streams import stream
from fedlora.server.record.draw import Draw


def first_draw(
    available: Sequence[str], *, size: int | None, fraction: float, oversample: float, seed: int, round: int
) -> Draw:
    """Return whom a round asks of the clients that are there.

    Args:
        size: so many updates are wanted; None for `fraction` of the clients.
        oversample: so many times as many clients are asked.
    """
    num_wanted = min(size or share(fraction, len(available)), len(available))
    num_asked = min(len(available), math.ceil(num_wanted * oversample - 1e-9))
    return Draw(cohort(available, size=num_asked, seed=seed, round=round), num_wanted)


def drawn_again(
    draw: Draw, *, kept: Collection[str], available: Sequence[str], seed: int, round: int, repetition: int
) -> Draw:
    """Return whom to ask in a round that had too few updates.

    The clients whose update counts stay. The others are asked again where all of them are there; otherwise as many are
    drawn anew among those that are.

    Args:
        kept: the clients whose update counts.
        available: the others that are there.
        repetition: from 1.
    """
    missing = [client for client in draw.cohort if client not in kept]
    drawn = missing if set(missing) <= set(available) else list(available)
    size = max(1, len(draw.cohort) - len(kept))
    purpose = f"cohort, repetition {repetition}"
    again = cohort(drawn or missing, size=size, seed=seed, round=round, purpose=purpose)
    return Draw(tuple(sorted({*kept, *again})), draw.num_wanted)


def share(fraction: float, num_clients: int) -> int:
    """Return how many clients a share of them is: at least one."""
    return max(1, math.floor(fraction * num_clients + 0.5))


def cohort(clients: Sequence[str], *, size: int, seed: int, round: int, purpose: str = "cohort") -> tuple[str, ...]:
    """Return the sorted names of `size` clients, drawn by (seed, round, purpose) among the sorted names."""
    names = sorted(clients)
    if size >= len(names):
        return tuple(names)
    chosen = stream(seed, round=round, purpose=purpose).choice(len(names), size=size, replace=False)
    return tuple(names[index] for index in sorted(chosen))
