"""What end-to-end tests ask of runs that have ended, or are made to."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from fedlora.server.record.events import Event, RoundEnded


class Killed(Exception):  # noqa: N818 (no error: the tests' own)
    """The process ends here."""


def killed_after(number: int) -> Callable[[Event], None]:
    """Return a listener in which the process ends with a round."""

    def kill(event: Event) -> None:
        if isinstance(event, RoundEnded) and event.report.round == number:
            raise Killed

    return kill


def adapter_sha256(folder: Path) -> str:
    """Return the sha256 of the newest adapter's tensors in a run's folder."""
    return hashlib.sha256((folder / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()
