"""The ledger of a client: what its trainings have told of its examples, run by run, on its own disk.

A training is entered before anything of it leaves the worker, and the file is whole before and after: what a crash
leaves without an entry has told nobody anything. A training that is done again, because the crash came after its entry,
is entered again: the two have different noise, and whether somebody has seen the first cannot be known.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedlora.common.codec import Codec
from fedlora.common.errors import StoreError
from fedlora.common.files import client_file_name, write_file
from fedlora.privacy.sampled_steps import SampledSteps

# In the folder of a run that is simulated, or of a site.
LEDGER_FOLDER = "privacy"


@dataclass(frozen=True)
class Spending:
    """What trainings of one kind have told in a run.

    Attributes:
        run: the run's id.
        delta: of the run.
        noise_multiplier, num_drawn, num_examples: of each step, as in `SampledSteps`.
        num_steps: in all.
        num_trainings: that they were done in; a round's, as a rule.
    """

    run: str
    delta: float
    noise_multiplier: float
    num_drawn: int
    num_examples: int
    num_steps: int = 0
    num_trainings: int = 0

    @property
    def steps(self) -> SampledSteps:
        """The steps, for their epsilon."""
        return SampledSteps(self.noise_multiplier, self.num_steps, self.num_drawn, self.num_examples)


@dataclass(frozen=True)
class _Kept:
    client: str
    spent: tuple[Spending, ...]


_CODEC = Codec(_Kept)


class Ledger:
    """The ledgers of the clients whose examples are here: of one at a site, of all in a simulation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of(self, client: str) -> tuple[Spending, ...]:
        """Return what a client's trainings have told, in all runs.

        Raises:
            StoreError: its ledger is damaged, or cannot be read.
        """
        path = self._file(client)
        return self._read(path).spent if path.exists() else ()

    def clients(self) -> list[str]:
        """Return the sorted names of the clients that have one.

        Raises:
            StoreError: one is damaged.
        """
        return sorted(self._read(path).client for path in self.folder.glob("*.json"))

    def of_all(self) -> tuple[Spending, ...]:
        """Return what all trainings here have told, whoever's they were.

        Raises:
            StoreError: a ledger is damaged, or cannot be read.
        """
        return tuple(entry for client in self.clients() for entry in self.of(client))

    def enter(self, client: str, kind: Spending, *, num_steps: int) -> None:
        """Enter a training of so many steps of a kind; it is on disk after that.

        Raises:
            StoreError: the ledger cannot be read or written; nothing of the training may be told.
        """
        spent = self.of(client)
        known = next((entry for entry in spent if replace(entry, num_steps=0, num_trainings=0) == kind), kind)
        entered = replace(known, num_steps=known.num_steps + num_steps, num_trainings=known.num_trainings + 1)
        others = tuple(entry for entry in spent if entry != known)
        write_file(self._file(client), _CODEC.dump(_Kept(client, (*others, entered))))

    def _read(self, path: Path) -> _Kept:
        try:
            return _CODEC.load(path.read_bytes())
        except (OSError, ValueError) as error:
            raise StoreError(
                f"{path} cannot be read, and without this ledger nobody knows what the examples here have been used "
                "for; restore it"
            ) from error

    def _file(self, client: str) -> Path:
        return self.folder / f"{client_file_name(client)}.json"


def of_run(spent: Sequence[Spending], run: str) -> list[Spending]:
    """Return what of it was told in one run."""
    return [entry for entry in spent if entry.run == run]
