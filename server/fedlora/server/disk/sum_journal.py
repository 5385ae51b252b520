"""What is kept of a round's secure sums while they go on, so that a server that dies goes on with the very same.

    rounds/NNNN/sums/REPETITION/
        terms.json               what all members are told
        STEP-INDEX/NAME-HASH     each member's answer, from training on; hidden vectors are asked for again
        roster.json              whose keys were handed on, before any of them is
        sealers.json             who has sealed shares, before any of them is asked to hide numbers
        there-INDEX.json         who is in a sum, before any of them is told
        total-INDEX              of a sum that is known

Members sign one list of who is in a sum and answer each step in one way: a server that asked for something else after
a crash would have no sum.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter

from fedlora.common.codec import Codec
from fedlora.common.errors import RunError
from fedlora.common.files import client_file_name, write_file
from fedlora.common.messages import SumReceipt, SumTerms, TrainReceipt
from fedlora.common.schema import from_proto, parse, serialised, to_proto
from fedlora.server.disk.patience import WaitForSpace, give_up, patiently, wait_for_nothing

_TERMS = Codec(SumTerms)
_NAMES = TypeAdapter(tuple[str, ...])

Receipt = TypeVar("Receipt", TrainReceipt, SumReceipt)


class SumJournal:
    """The folder of a round's sums."""

    def __init__(
        self, folder: Path, *, wait_for_space: WaitForSpace = give_up, go_on: Callable[[], None] = wait_for_nothing
    ) -> None:
        """`wait_for_space` and `go_on` are those of the run's folder."""
        self._root = folder
        self.wait_for_space = wait_for_space
        self.go_on = go_on

    @property
    def _folder(self) -> Path:
        """The newest repetition's."""
        begun = [path for path in self._root.glob("*") if path.name.isdecimal() and (path / "terms.json").is_file()]
        return max(begun, key=lambda path: int(path.name), default=self._root / "none")

    def terms(self) -> SumTerms | None:
        """Return what members were told, None where nobody was asked yet."""
        try:
            return _TERMS.load((self._folder / "terms.json").read_bytes())
        except (OSError, ValueError):
            return None

    @patiently
    def begin(self, terms: SumTerms) -> None:
        """Begin the round's sums, in place of those that could not be had."""
        folder = self._root / f"{terms.repetition:04d}"
        shutil.rmtree(folder, ignore_errors=True)
        write_file(folder / "terms.json", _TERMS.dump(terms) + "\n")
        for other in self._root.iterdir():
            if other != folder:
                shutil.rmtree(other, ignore_errors=True)

    def answers(self, kind: type[Receipt], step: str, index: int = 0) -> dict[str, Receipt]:
        """Return the answers to a step that are there, by member; a damaged one is asked for again."""
        found: dict[str, Receipt] = {}
        for path in sorted((self._folder / f"{step}-{index}").glob("*")):
            try:
                receipt = from_proto(parse(path.read_bytes(), kind.__name__), kind, with_local=True)
            except (OSError, RunError):
                continue
            found[receipt.client] = receipt
        return found

    @patiently
    def write(self, step: str, index: int, receipt: TrainReceipt | SumReceipt) -> None:
        """Record a member's answer."""
        path = self._folder / f"{step}-{index}" / client_file_name(receipt.client)
        write_file(path, serialised(to_proto(receipt, with_local=True)))

    def roster(self) -> tuple[str, ...] | None:
        """Return whose keys were handed on, None where none were."""
        return self._names("roster")

    def write_roster(self, names: Sequence[str]) -> None:
        """Record whose keys are handed on."""
        self._write_names("roster", names)

    def sealers(self) -> tuple[str, ...] | None:
        """Return who has sealed shares, None where that was still open."""
        return self._names("sealers")

    def write_sealers(self, names: Sequence[str]) -> None:
        """Record who has sealed shares; nobody else is in the round's sums from here on."""
        self._write_names("sealers", names)

    def there(self, index: int) -> tuple[str, ...] | None:
        """Return who is in a sum, None where nobody was told."""
        return self._names(f"there-{index}")

    def write_there(self, index: int, names: Sequence[str]) -> None:
        """Record who is in a sum."""
        self._write_names(f"there-{index}", names)

    def total(self, index: int) -> bytes | None:
        """Return a sum's total, packed; None where it is not known."""
        try:
            return (self._folder / f"total-{index}").read_bytes()
        except OSError:
            return None

    @patiently
    def write_total(self, index: int, packed: bytes) -> None:
        """Record a sum's total."""
        write_file(self._folder / f"total-{index}", packed)

    def clear(self) -> None:
        """Remove all of it."""
        shutil.rmtree(self._root, ignore_errors=True)

    def _names(self, what: str) -> tuple[str, ...] | None:
        try:
            return _NAMES.validate_json((self._folder / f"{what}.json").read_bytes())
        except (OSError, ValueError):
            return None

    @patiently
    def _write_names(self, what: str, names: Sequence[str]) -> None:
        write_file(self._folder / f"{what}.json", _NAMES.dump_json(tuple(names)) + b"\n")
