"""What an aggregation says of itself: plain numbers, for readers without torch too."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class LayerReport:
    """One layer's distance from the ideal update M, in Frobenius norms.

    A ratio is 0 where both norms are 0, and infinite where only the norm below is.

    Attributes:
        update_norm: |M|, with the layer's scaling.
        error_before: |E| / |M|, of averaging A and B separately.
        error_after: |R| / |M|, of the method's pair before it is rounded to the adapter's dtype.
        correction: |dB| / |mean_B|, how far the method moved B from the plain mean.
    """

    update_norm: float
    error_before: float
    error_after: float
    correction: float


@dataclass(frozen=True)
class AggregationReport:
    """One round's distance from the ideal update.

    The overall ratios are those of the layers' norms taken together: the root of the sum of squares
    above, over the same below (errors with each layer's scaling, the correction on B as it is).

    Attributes:
        method: the method's name.
        error_before: |E| / |M|, of averaging A and B separately.
        error_after: |R| / |M|, of the method's result.
        correction: |dB| / |mean_B|.
        layers: the same by layer path.
    """

    method: str
    error_before: float
    error_after: float
    correction: float
    layers: Mapping[str, LayerReport]
