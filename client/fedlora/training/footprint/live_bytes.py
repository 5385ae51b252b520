"""How many bytes of tensors are alive at every operation, by what they are for, and the most of them at one time."""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedlora.training.footprint.flops import flops_of

ACTIVATIONS = "activations"


class LiveBytes(TorchDispatchMode):
    """While it is entered, follows every tensor that an operation returns until its storage is freed.

    Tensors may be fake: what counts is the size and the life of their storages. What an operation takes and gives
    back within itself is not seen.

    Attributes:
        peak: bytes by part, at the moment when their sum was the largest.
        flops: floating-point operations of the products of matrices so far.
    """

    def __init__(self, *, block_bytes: int = 1) -> None:
        """`block_bytes`: what the device's allocator rounds each storage up to."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._block_bytes = block_bytes
        self._alive: dict[int, tuple[weakref.ref[UntypedStorage], str, int]] = {}
        self._now: Counter[str] = Counter()
        self._total = self._most = self.flops = 0
        self.peak: Mapping[str, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # Half of all that is asked for: torch's own way to it takes long.
        result = func(*args, **(kwargs or {}))
        for leaf in (result,) if isinstance(result, Tensor) else tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in self._alive:
                self.count([leaf], ACTIVATIONS)
        self.flops += flops_of(func, args, kwargs or {}, result)
        return result

    def count(self, tensors: Iterable[Tensor], part: str) -> None:
        """Count tensors to a part from here on, whether they are followed already or not."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self._alive:
                _, before, size = self._alive[key]
                self._now[before] -= size
                self._total -= size
            size = -(-storage.nbytes() // self._block_bytes) * self._block_bytes
            self._alive[key] = (weakref.ref(storage, self._forget(key)), part, size)
            self._now[part] += size
            self._total += size
        if self._total > self._most:
            self._most, self.peak = self._total, dict(self._now)

    def restart(self) -> None:
        """Begin to look for the largest sum anew."""
        self._most, self.peak = self._total, dict(self._now)

    def _forget(self, key: int) -> Callable[[object], None]:
        def forget(reference: object) -> None:
            if key in self._alive and self._alive[key][0] is reference:
                _, part, size = self._alive.pop(key)
                self._now[part] -= size
                self._total -= size

        return forget
