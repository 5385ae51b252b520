"""What a client's trainings have gone into secure sums, for ever: no update is summed up twice.

A training is known by what it comes from: the adapter, the round and the seed. The same one, asked for again for other
sums, is done by other draws; else the two sums would differ by who is in the one and not in the other.
"""

from dataclasses import dataclass, field
from pathlib import Path

from fedlora.common.codec import Codec
from fedlora.common.errors import StoreError
from fedlora.common.files import client_file_name, write_file


@dataclass(frozen=True)
class _Summed:
    """Attributes: by training, how often it has gone into sums; and the runs of which it was."""

    times: dict[str, int] = field(default_factory=dict)
    runs: tuple[str, ...] = ()


_SUMMED = Codec(_Summed)


class SummedTrainings:
    """The record of each client here."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def times(self, client: str, training: str) -> int:
        """Return how often a training has gone into sums.

        Raises:
            StoreError: the record is damaged.
        """
        return self._read(client).times.get(training, 0)

    def has_run(self, client: str, run: str) -> bool:
        """Return whether any training of a run has gone into sums.

        Raises:
            StoreError: the record is damaged.
        """
        return run in self._read(client).runs

    def add(self, client: str, training: str, *, run: str) -> None:
        """Record a training, before anything of it is told."""
        known = self._read(client)
        times = {**known.times, training: known.times.get(training, 0) + 1}
        runs = known.runs if run in known.runs else (*known.runs, run)
        write_file(self._file(client), _SUMMED.dump(_Summed(times, runs)))

    def _read(self, client: str) -> _Summed:
        path = self._file(client)
        try:
            return _SUMMED.load(path.read_bytes())
        except FileNotFoundError:
            return _Summed()
        except (OSError, ValueError) as error:
            raise StoreError(f"{path} cannot be read, and says what has gone into secure sums; restore it") from error

    def _file(self, client: str) -> Path:
        return self._folder / f"summed-{client_file_name(client)}.json"
