"""What the updates of a round become: the next global adapter, and the report of its aggregation. Pure."""

from collections.abc import Mapping

from fedlora.adapters import Adapter
from fedlora.aggregation import Aggregate, Robust, aggregate
from fedlora.methods import Method, MethodState


def complete(
    updates: Mapping[str, Adapter],
    *,
    start: Adapter,
    sizes: Mapping[str, int],
    weighting: str,
    method: Method,
    state: MethodState | None = None,
    robust: Robust | None = None,
    ages: Mapping[str, int] | None = None,
) -> Aggregate:
    """Return the next global adapter and the report of its aggregation, from the accepted updates by client name.

    Args:
        start: the adapter that the round started from.
        sizes: by client, the examples or tokens by which it weighs, unless weighting is "uniform".
        state: what the method wanted to know after the round before.
        ages: of late updates, by how many rounds they are late; each halves the weight.
    """
    weights = None if weighting == "uniform" else {name: float(sizes[name]) for name in updates}
    if ages and any(ages.values()):
        weights = {name: (weights[name] if weights else 1.0) * 0.5 ** ages.get(name, 0) for name in updates}
    return aggregate(updates, weights=weights, method=method, reference=start, state=state, robust=robust)
