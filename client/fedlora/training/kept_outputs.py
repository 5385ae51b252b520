"""What a process keeps of what frozen layers gave for examples, as long as there is room."""

import logging
from functools import cache

from torch import Tensor

logger = logging.getLogger(__name__)


class KeptOutputs:
    """What enters the first trained block, by model and example, as long as there is room; for all of a process."""

    def __init__(self) -> None:
        self._kept: dict[bytes, Tensor] = {}
        self._num_bytes = 0
        self._is_full = False

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: bytes) -> Tensor | None:
        """Return what is kept under `key`, if anything is."""
        return self._kept.get(key)

    def keep(self, key: bytes, hidden: Tensor, *, max_bytes: int) -> None:
        """Keep `hidden`, unless all that is kept would be more than `max_bytes`, which is said once."""
        size = hidden.numel() * hidden.element_size()
        if self._num_bytes + size <= max_bytes:
            self._kept[key] = hidden
            self._num_bytes += size
        elif not self._is_full:
            self._is_full = True
            logger.warning(
                "train.frozen_cache_megabytes are used up after %d examples of about %.0f kB: the others are computed "
                "again each time",
                len(self._kept),
                size / 1000,
            )


@cache
def kept_by_process() -> KeptOutputs:
    """Return what this process keeps, also from one run to the next."""
    return KeptOutputs()
