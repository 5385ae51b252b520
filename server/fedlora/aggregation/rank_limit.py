"""An adapter cut to a rank: every pair becomes the best product of that rank, and what that loses is measured. Pure."""

import math
from dataclasses import dataclass, replace

import torch

from fedlora.adapters import Adapter, LoraLayer
from fedlora.adapters.settings import fitted_config
from fedlora.algebra.dead_directions import brought_to_life
from fedlora.algebra.gram import product_square
from fedlora.algebra.low_rank import best_product


@dataclass(frozen=True)
class RankLimit:
    """What a limit of the rank has done.

    Attributes:
        rank: the limit.
        rank_before: the largest rank before.
        num_layers: how many layers had a larger rank than the limit.
        lost: |X - X'| / |X|, Frobenius norms over all layers, X = scaling * B A before and X' after.
    """

    rank: int
    rank_before: int
    num_layers: int
    lost: float


@torch.no_grad()
def limit_rank(adapter: Adapter, rank: int) -> tuple[Adapter, RankLimit]:
    """Return the adapter with no layer of a larger rank than `rank`, and what was lost.

    A pair of larger rank becomes the truncated singular value decomposition of its product, balanced, found from the
    factors alone; every layer keeps its scaling. Where the product has a smaller rank still, rows of A stay beside
    zeros in B, so that the pair can be trained on. DoRA's magnitudes stay as they are, and do not count in the loss.

    Raises:
        ValueError: a change of the base weights is beside the adapter; `with_base_change_inside` brings it inside.
    """
    if adapter.base_change:
        raise ValueError("the adapter changes base weights; give what with_base_change_inside returns")
    layers = {path: _limited(layer, rank) for path, layer in adapter.layers.items()}
    square = math.fsum(_square(layer) for layer in adapter.layers.values())
    cut = [path for path, layer in adapter.layers.items() if layer.rank > rank]
    lost_square = math.fsum(_square(_difference(adapter.layers[path], layers[path])) for path in cut)
    limit = RankLimit(
        rank=rank,
        rank_before=max((layer.rank for layer in adapter.layers.values()), default=0),
        num_layers=len(cut),
        lost=math.sqrt(lost_square / square) if square > 0 else 0.0,
    )
    return replace(adapter, layers=layers, config=fitted_config(adapter.config, layers)), limit


def _limited(layer: LoraLayer, rank: int) -> LoraLayer:
    if layer.rank <= rank:
        return layer
    # In float64 large factors whose product is past float32's range can be decomposed too.
    precision = torch.finfo(torch.float64 if layer.A.dtype == torch.float64 else torch.float32).eps
    found = best_product(layer.B.double(), layer.A.double(), rank, precision=precision)
    A, B = brought_to_life(*found, like=(layer.A[:rank], layer.B[:, :rank]), spare=layer.A)
    return replace(layer, A=A.to(layer.A.dtype), B=B.to(layer.B.dtype))


def _difference(one: LoraLayer, other: LoraLayer) -> LoraLayer:
    A = torch.cat([one.A.double(), other.A.double()])
    return replace(one, A=A, B=torch.cat([one.B.double(), -other.B.double()], 1))


def _square(layer: LoraLayer) -> float:
    """Return |scaling * B A|^2, at least 0: rounding may leave the difference of two equal products a little below."""
    return max(0.0, layer.scaling**2 * product_square(layer.B.double(), layer.A.double()))
