"""How the GPUs of a machine are doing, by NVIDIA's management library; it needs no CUDA context and no torch."""

import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Gpu:
    """One GPU: its number on this machine, memory in use and in all, and the share of the time that it was busy."""

    number: int
    used_bytes: int
    size_bytes: int
    busy_share: float


def gpu_reader() -> Callable[[], list[Gpu]]:
    """Return what says how the GPUs are doing; where none can be asked, it says nothing of any."""
    try:
        library = importlib.import_module("pynvml")
    except ImportError:
        if _DRIVER.exists():
            logger.warning("metrics say nothing of the GPUs here; to have them: pip install 'fedlora[gpu]'")
        return list
    try:
        library.nvmlInit()
    except library.NVMLError:
        return list  # The library is there and no driver.

    def read() -> list[Gpu]:
        found = []
        for number in range(library.nvmlDeviceGetCount()):
            try:
                found.append(_gpu(library, number))
            except library.NVMLError:
                continue  # One that has fallen off the bus, or is cut into parts.
        return found

    return read


def _gpu(library: Any, number: int) -> Gpu:
    handle = library.nvmlDeviceGetHandleByIndex(number)
    memory = library.nvmlDeviceGetMemoryInfo(handle)
    return Gpu(number, memory.used, memory.total, library.nvmlDeviceGetUtilizationRates(handle).gpu / 100)
