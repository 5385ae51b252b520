"""What a process holds, as Linux counts it: memory, descriptors, threads; and memory over time."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SAMPLE_SECONDS = 0.05


def memory_bytes(pid: int, field: str = "RssAnon") -> int:
    """Return a field of /proc/PID/status: RssAnon, what was allocated; VmHWM, the most that was ever resident."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def num_descriptors(pid: int) -> int:
    """Return how many descriptors are open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def num_threads(pid: int) -> int:
    """Return how many threads there are."""
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def disk_bytes(folder: Path, *, without: tuple[str, ...] = ()) -> int:
    """Return what the files below a folder take on the disk, without some of its entries; links count once."""
    files: dict[tuple[int, int], int] = {}
    for path in folder.rglob("*"):
        if path.relative_to(folder).parts[0] in without:
            continue
        try:
            status = path.stat()
        except FileNotFoundError:  # A temporary file's.
            continue
        files[status.st_dev, status.st_ino] = 512 * status.st_blocks
    return sum(files.values())


class MemoryWatch:
    """RssAnon of a process, sampled twenty times a second for as long as the context lasts."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._samples: list[tuple[float, int]] = []

    def between(self, begin: float, end: float) -> list[int]:
        """Return the samples from a time of the monotonic clock to another, in bytes."""
        return [size for at, size in self._samples if begin <= at <= end]

    @contextmanager
    def watching(self) -> Iterator["MemoryWatch"]:
        """Sample while the context lasts, or the process."""
        is_over = threading.Event()
        thread = threading.Thread(target=self._sample, args=(is_over,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            is_over.set()
            thread.join()

    def _sample(self, is_over: threading.Event) -> None:
        while not is_over.wait(_SAMPLE_SECONDS):
            try:
                size = memory_bytes(self._pid)
            except (OSError, StopIteration):  # It has ended.
                return
            self._samples.append((time.monotonic(), size))
