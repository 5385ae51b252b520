"""What a process keeps of what frozen layers gave for examples, as long as there is room."""

import logging
from functools import cache

import torch
from torch import Tensor

# Small pieces between a step's large tensors would leave holes that nothing else fits into, and the process would take
# several times what is kept.
_BLOCK_BYTES = 64 * 2**20
_ALIGNMENT = 64

logger = logging.getLogger(__name__)


class KeptOutputs:
    """What enters the first trained block, by model and example, as long as there is room; for all of a process."""

    def __init__(self) -> None:
        self._kept: dict[bytes, Tensor] = {}
        self._block = torch.empty(0, dtype=torch.uint8)
        self._num_used = 0
        self._num_bytes = 0
        self._has_told = False

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: bytes) -> Tensor | None:
        """Return what is kept under `key`, if anything is."""
        return self._kept.get(key)

    def keep(self, key: bytes, hidden: Tensor, *, max_bytes: int) -> bool:
        """Keep `hidden`, unless all that is kept would be more than `max_bytes`, which is said once; return whether."""
        size = hidden.nbytes
        if self._num_bytes + size <= max_bytes:
            self._kept[key] = self._copied(hidden)
            self._num_bytes += size
            return True
        if not self._has_told:
            self._has_told = True
            logger.warning(
                "train.frozen_cache_megabytes are used up after %d examples of about %.0f kB: the others are computed "
                "again each time",
                len(self._kept),
                size / 1000,
            )
        return False

    def _copied(self, hidden: Tensor) -> Tensor:
        """Return a copy of `hidden` in the block that is being filled, or in a new one."""
        size = hidden.nbytes
        if self._num_used + size > len(self._block):
            self._block, self._num_used = torch.empty(max(size, _BLOCK_BYTES), dtype=torch.uint8), 0
        place = self._block[self._num_used : self._num_used + size].view(hidden.dtype).view(hidden.shape)
        self._num_used += -(-size // _ALIGNMENT) * _ALIGNMENT
        return place.copy_(hidden)


@cache
def kept_by_process() -> KeptOutputs:
    """Return what this process keeps, also from one run to the next."""
    return KeptOutputs()
