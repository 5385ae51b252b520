"""What the updates of a round become: the next global adapter, and the report of its aggregation. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fedlora.adapters import Adapter
from fedlora.adapters.keys import to_state_dict
from fedlora.adapters.moments import Form, Moments
from fedlora.aggregation import Aggregate, Robust, ServerOptimizer, aggregate
from fedlora.aggregation.shared_moments import mean_moments, moments_in, with_moments
from fedlora.methods import Method, MethodState
from fedlora.server.record.fair_shares import capped
from fedlora.server.record.round_report import Share


@dataclass(frozen=True)
class Weights:
    """By how much the clients of a round weigh.

    Attributes:
        by_client: on any scale; None where all weigh alike.
        shares: by client, how much of the round's weight it has.
    """

    by_client: Mapping[str, float] | None = None
    shares: Mapping[str, Share] = field(default_factory=dict)


def weigh(
    sizes: Mapping[str, int], *, weighting: str, max_share: float | None = None, ages: Mapping[str, int] | None = None
) -> Weights:
    """Return the weights of the clients whose updates count.

    Args:
        sizes: by client, the examples or tokens by which it weighs, unless weighting is "uniform".
        max_share: the most that one of them weighs of the round; see `capped`.
        ages: of late updates, by how many rounds they are late; each halves the weight.
    """
    ages = ages or {}
    wanted = {
        name: (1.0 if weighting == "uniform" else float(size)) * 0.5 ** ages.get(name, 0)
        for name, size in sizes.items()
    }
    weights = capped(wanted, max_share=max_share)
    before, after = sum(wanted.values()), sum(weights.values())
    shares = {name: Share(wanted[name] / before, weight / after) for name, weight in weights.items() if weight}
    is_uniform = weighting == "uniform" and not any(ages.values())
    return Weights(None if is_uniform else weights, shares)


def complete(
    updates: Mapping[str, Adapter],
    *,
    start: Adapter,
    weights: Mapping[str, float] | None,
    method: Method,
    state: MethodState | None = None,
    robust: Robust | None = None,
    server_optimizer: ServerOptimizer | None = None,
    moments: Mapping[str, Moments] | None = None,
    form: Form | None = None,
) -> Aggregate:
    """Return the next global adapter and the report of its aggregation, from the accepted updates by client name.

    Args:
        start: the adapter that the round started from.
        weights: by client; None where all weigh alike.
        state: what the method and the server's optimiser wanted to know after the round before, and shared moments.
        server_optimizer: how the server steps from the start to what the method makes of the updates; all the way if
            None.
        moments: of the clients' optimisers, by client name, where the run shares what `form` says of them.
    """
    result = aggregate(
        updates,
        weights=weights,
        method=method,
        reference=start,
        state=state,
        robust=robust,
        server_optimizer=server_optimizer,
    )
    if not form:
        return result
    former, like = moments_in(state or {}), to_state_dict(replace(result.adapter, base_change={}))
    shared = mean_moments(moments or {}, p=result.p, former=former, like=like, form=form)
    return replace(result, state=with_moments(result.state, shared))
