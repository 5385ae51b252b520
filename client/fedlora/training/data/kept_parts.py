"""What run files name as data, read once by a process that does many runs over it."""

from fedlora.common.config import RunConfig
from fedlora.training.data.picture_reading import Wanted
from fedlora.training.data.run_source import Parts, read_parts


class KeptParts:
    """Reads data as `read_parts` does, and keeps what it read last for runs that differ in other things alone."""

    def __init__(self) -> None:
        self._last: tuple[object, Parts] | None = None

    def __call__(self, config: RunConfig, *, wanted: Wanted, deals_by_label: bool = False) -> Parts:
        """Return what `read_parts` does, also where the files have changed since."""
        asked = config.data, config.task, wanted, deals_by_label
        if self._last is None or self._last[0] != asked:
            self._last = None  # Two of them may be more than the memory holds.
            self._last = asked, read_parts(config, wanted=wanted, deals_by_label=deals_by_label)
        return self._last[1]
