"""A change of a base weight as one matrix: what is stored and sent where two factors would take more than the weight.

In memory it is a pair like any other, of which one factor, on the smaller side of the weight, is the identity, so that
all that takes pairs takes it. `packed` and its readers leave the identity out.
"""

import torch
from torch import Tensor

from fedlora.adapters.adapter import LoraLayer


def dense_pair(change: Tensor, *, is_embedding: bool) -> LoraLayer:
    """Return a change of a weight (out_features, in_features) as a pair of scaling 1 that has the identity in it."""
    out_features, in_features = change.shape
    identity = torch.eye(min(change.shape), dtype=change.dtype, device=change.device)
    A, B = (identity, change) if in_features <= out_features else (change, identity)
    return LoraLayer(A, B, 1.0, is_embedding=is_embedding)


def dense_of(layer: LoraLayer) -> Tensor | None:
    """Return the change (out_features, in_features) of a pair that `dense_pair` made, without its scaling; else None.

    It is the other factor itself: neither is multiplied.
    """
    out_features, in_features = layer.B.shape[0], layer.A.shape[1]
    if layer.rank != min(out_features, in_features):
        return None
    own, other = (layer.A, layer.B) if in_features <= out_features else (layer.B, layer.A)
    is_identity = bool((own.diagonal() == 1).all()) and int(own.count_nonzero()) == len(own)
    return other if is_identity else None
