"""The norm of a product, from the Gram matrices of its factors: the product is not formed."""

from torch import Tensor

# Columns of a Gram matrix at a time: wide enough for fast products, and all of them need not be in memory squared.
_BLOCK = 64


def product_square(left: Tensor, right: Tensor) -> float:
    """Return |left @ right|^2, the sum over (left^T left) * (right right^T), of which the upper half is computed.

    Args:
        left: (out_features, n).
        right: (n, in_features).
    """
    total = 0.0
    for start in range(0, left.shape[1], _BLOCK):
        block = slice(start, start + _BLOCK)
        product = (left[:, block].T @ left[:, start:]).double() * (right[block] @ right[start:].T).double()
        total += float(2 * product.sum() - product[:, :_BLOCK].sum())
    return total
