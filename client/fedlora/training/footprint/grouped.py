"""The products of a mixture's experts, each row with its own expert's matrix, where they have no numbers."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Not in every torch that we take; without it transformers has products of its own, which take any type.
GROUPED_PRODUCT = getattr(torch.ops.aten, "_grouped_mm", None)


class GroupedProducts(TorchDispatchMode):
    """While it is entered, tensors without numbers can be multiplied by groups in any type, as those with numbers can.

    Left to itself torch gives such a product a shape in bfloat16 alone.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if is_grouped(func) and args[0].dtype != torch.bfloat16 and (shape := grouped_shape(args, kwargs or {})):
            return args[0].new_empty(shape)
        return func(*args, **(kwargs or {}))


def is_grouped(func: Any) -> bool:
    """Return whether an operator's overload is the product by groups."""
    return GROUPED_PRODUCT is not None and func is GROUPED_PRODUCT.default


def grouped_shape(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, ...]:
    """Return the shape of a product by groups, () where it is of a kind that no mixture uses.

    Args:
        args: rows (num_rows, in) and matrices (num_groups, in, out); or, for the matrices' gradient, (in, num_rows) and
            (num_rows, out), with the groups' ends (num_groups,).
        kwargs: `offs`: the groups' ends, where they are not in `args`.
    """
    left, right = args[:2]
    if (left.dim(), right.dim()) == (2, 3):
        return left.shape[0], right.shape[2]
    ends: Tensor | None = args[2] if len(args) > 2 else kwargs.get("offs")
    if (left.dim(), right.dim()) == (2, 2) and ends is not None:
        return ends.shape[0], left.shape[0], right.shape[1]
    return ()
