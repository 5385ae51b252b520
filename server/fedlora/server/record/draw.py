"""Whom a round asks, as it is recorded before anybody is asked."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Draw:
    """A round's clients, and how many updates it waits for: the first of them count where more are asked."""

    cohort: tuple[str, ...]
    num_wanted: int
