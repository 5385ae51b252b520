"""The change of the base weights since the run's start: factored, cumulative, and bounded in rank."""

from dataclasses import replace

import torch

from fedlora.adapters import LoraLayer
from fedlora.aggregation.low_rank import recompressed


def accumulated(before: LoraLayer | None, added: LoraLayer) -> LoraLayer:
    """Return the sum of two changes of one layer's weight, both with scaling 1.

    The factors are set side by side, without any error, until they take more memory than the weight itself: from
    rank in_features * out_features / (in_features + out_features) on, they are written anew with their numerical
    rank, which is at most the smaller side of the weight. Without that, the rank would grow with every round.
    """
    if before is not None:
        added = replace(
            added, A=torch.cat([before.A.to(added.A), added.A]), B=torch.cat([before.B.to(added.B), added.B], 1)
        )
    in_features, out_features = added.A.shape[1], added.B.shape[0]
    if added.rank * (in_features + out_features) <= in_features * out_features:
        return added
    B, A = recompressed(added.B, added.A)
    return replace(added, A=A, B=B)
