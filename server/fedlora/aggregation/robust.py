"""Robust aggregation: what is done to the clients' updates and weights before any method combines them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fedlora.adapters import Adapter


@dataclass(frozen=True)
class Robust:
    """What is done to the updates, in this order. By default nothing."""

    regauge: bool = False
    clip: float | None = None
    select: Literal["all", "multi_krum"] = "all"
    attackers: int = 0
    weighting: Literal["given", "geometric_median"] = "given"


def admitted(
    updates: Mapping[str, Adapter], p: Mapping[str, float], *, reference: Adapter, robust: Robust
) -> tuple[Mapping[str, Adapter], dict[str, float], tuple[str, ...]]:
    """Return the updates and weights that count."""
    return updates, dict(p), ()
