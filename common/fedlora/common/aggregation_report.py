"""What an aggregation says of itself: plain numbers, for readers without torch too."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class LayerReport:
    """One layer's distance from the ideal update M, in Frobenius norms.

    A ratio is 0 where both norms are 0, and infinite where only the norm below is.

    Attributes:
        update_norm: |M|, with the layer's scaling.
        error_before: |E| / |M|, of averaging A and B separately.
        error_after: |R| / |M|, of the method's result.
        floor: the least error that any pair of the result's rank has.
        reach_B, reach_A, reach_both: the share of `error_before` that the best B for the mean of A would remove, the
            best A for the mean of B, and the best pair.
        moved_B, moved_A: |dB| / |mean_B| and |dA| / |mean_A|, how far the method moved each from its mean.
        cosine_B, cosine_A: the cosine between the method's factor and its mean; 1 where neither moved.
        effective_rank: of M: the exponential of the entropy of its singular values over their sum (Roy and Vetterli,
            2007); 0 where M is zero.
        note: what else is to be known of this layer.
    """

    update_norm: float
    error_before: float
    error_after: float
    floor: float
    reach_B: float
    reach_A: float
    reach_both: float
    moved_B: float
    moved_A: float
    cosine_B: float
    cosine_A: float
    effective_rank: float
    note: str = ""


@dataclass(frozen=True)
class ServerStep:
    """What the server's optimiser made of the method's result.

    Attributes:
        optimizer: "momentum", "adam" or "yogi".
        acts_on: "factors" or "product".
        reach: |X' - X_0| / |X - X_0| over all layers' products, X_0 being the round's start, X the method's result and
            X' where the optimiser stepped to; 0 where the method changed nothing.
    """

    optimizer: str
    acts_on: str
    reach: float


@dataclass(frozen=True)
class AggregationReport:
    """One round's distance from the ideal update.

    The overall ratios are those of the layers' norms taken together: the root of the sum of squares
    above, over the same below (errors with each layer's scaling, the movements of A and B as they are).

    Attributes:
        method: the method's name.
        error_before: |E| / |M|, of averaging A and B separately.
        error_after: |R| / |M|, of the method's result.
        floor: the least error of any adapter of this rank.
        reach_B, reach_A, reach_both: shares of `error_before`, as in a layer's report.
        moved_B, moved_A: |dB| / |mean_B| and |dA| / |mean_A|.
        layers: the same by layer path. Empty, and all of the above 0, where nothing was measured.
        notes: what was done to the updates before they were combined, client by client.
        server_step: what the server's optimiser made of the result; None without one. What is
            measured is the method's own result.
    """

    method: str
    error_before: float = 0.0
    error_after: float = 0.0
    floor: float = 0.0
    reach_B: float = 0.0
    reach_A: float = 0.0
    reach_both: float = 0.0
    moved_B: float = 0.0
    moved_A: float = 0.0
    layers: Mapping[str, LayerReport] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    server_step: ServerStep | None = None
