"""What a client has said and heard in the sums of a round, on disk, so that it keeps its word through every crash.

    FOLDER/RUN/CLIENT/
        ROUND-REPETITION/
            start, update      packed adapters: what the round started from, and what training made of it
            total-N            of a sum that is known
            part.json          keys, memory, receipt; once it is there, the update is the round's
    FOLDER/summed-CLIENT.json  what has gone into sums, for ever (summed)

All are of mode 0600. The secrets of a round are of no use after it, and go with the next round's training.
"""

import base64
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, TypeAdapter

from fedlora.common.errors import StoreError
from fedlora.common.files import client_file_name, write_private_file
from fedlora.common.messages import SumTerms, TrainReceipt
from fedlora.common.schema import from_proto, parse, serialised, to_proto
from fedlora.methods.method import Factor
from fedlora.secure_sums.keys import PublicKeys, RoundKeys
from fedlora.secure_sums.member import Memory

_KEPT_RUNS = 2


def _decoded(value: Any) -> Any:
    return base64.b64decode(value) if isinstance(value, str) else value


Bytes = Annotated[
    bytes, BeforeValidator(_decoded), PlainSerializer(lambda raw: base64.b64encode(raw).decode(), return_type=str)
]


@dataclass(frozen=True)
class _Keys:
    member: str
    sealing: Bytes
    masking: tuple[Bytes, ...]
    own_seeds: tuple[Bytes, ...]
    signature: Bytes


@dataclass(frozen=True)
class _Part:
    """The file's form: bytes as text."""

    terms: SumTerms
    basis: str
    training: str
    trains: tuple[Factor, ...]
    receipt: Bytes
    own: tuple[Bytes, tuple[Bytes, ...], tuple[Bytes, ...]] = field(repr=False)
    identities: dict[str, Bytes] = field(default_factory=dict)
    roster: tuple[_Keys, ...] = ()
    sealed: dict[str, Bytes] = field(default_factory=dict, repr=False)
    digests: dict[str, Bytes] = field(default_factory=dict)
    shares: dict[str, tuple[Bytes, ...]] = field(default_factory=dict, repr=False)
    sealers: tuple[str, ...] = ()
    masked: dict[int, tuple[Bytes, Bytes]] = field(default_factory=dict)
    there: dict[int, tuple[str, ...]] = field(default_factory=dict)


_PART = TypeAdapter(_Part)


@dataclass
class Part:
    """A client's part in the sums of a round.

    Attributes:
        terms: what all members were told.
        basis: the digest of all that the training comes from which the server has told.
        training: by what it is known in `summed`.
        trains: the factors that it has trained.
        receipt: of the training.
        keys: the client's secrets of this round.
        identities: by what it knows the others, by name.
        memory: what it has said and heard.
    """

    terms: SumTerms
    basis: str
    training: str
    trains: tuple[Factor, ...]
    receipt: TrainReceipt
    keys: RoundKeys = field(repr=False)
    identities: dict[str, bytes] = field(default_factory=dict)
    memory: Memory = field(default_factory=Memory)


class PartFolder:
    """Where the parts of all clients here are kept."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def newest(self, run: str, client: str, round: int) -> Path | None:
        """Return the folder of a round's newest repetition, None where the client has no part in the round."""
        found = [path for path in self._parts(run, client) if _round_of(path) == round]
        return max(found, key=_repetition_of, default=None)

    def begin(self, run: str, client: str, round: int, repetition: int) -> Path:
        """Return a new folder for a part, which counts once `write_part` has been there; then `forget_others`.

        Raises:
            StoreError: it cannot be made.
        """
        if not (self._folder / run).is_dir():
            self._forget_old_runs()
        folder = self._of(run, client) / f"{round:04d}-{repetition:04d}"
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        except OSError as error:
            raise StoreError(f"{folder}: cannot be used ({error.strerror})") from error
        return folder

    def forget_others(self, folder: Path) -> None:
        """Remove all parts of a run's client but one."""
        for other in folder.parent.iterdir():
            if other != folder:
                shutil.rmtree(other, ignore_errors=True)

    def _forget_old_runs(self) -> None:
        folders = [path for path in self._folder.iterdir() if path.is_dir()] if self._folder.is_dir() else []
        runs = sorted(folders, key=lambda path: path.stat().st_mtime_ns)
        for path in runs[: max(0, len(runs) - _KEPT_RUNS + 1)]:
            shutil.rmtree(path, ignore_errors=True)

    def _of(self, run: str, client: str) -> Path:
        return self._folder / run / client_file_name(client)

    def _parts(self, run: str, client: str) -> Iterator[Path]:
        return (path.parent for path in self._of(run, client).glob("*/part.json"))


def read_part(folder: Path) -> Part:
    """Return the part in a folder.

    Raises:
        StoreError: it is damaged.
    """
    path = folder / "part.json"
    try:
        kept = _PART.validate_json(path.read_bytes())
        receipt = from_proto(parse(kept.receipt, TrainReceipt.__name__), TrainReceipt, with_local=True)
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} is damaged; the round goes on without this client") from error
    roster = tuple(
        PublicKeys(each.member, each.sealing, each.masking, each.own_seeds, each.signature) for each in kept.roster
    )
    memory = Memory(roster, kept.sealed, kept.digests, kept.shares, kept.sealers, kept.masked, kept.there)
    return Part(
        kept.terms, kept.basis, kept.training, kept.trains, receipt, RoundKeys(*kept.own), dict(kept.identities), memory
    )


def write_part(folder: Path, part: Part) -> None:
    """Write a part, whole or not at all."""
    keys, memory = part.keys, part.memory
    kept = _Part(
        part.terms,
        part.basis,
        part.training,
        part.trains,
        serialised(to_proto(part.receipt, with_local=True)),
        (keys.sealing, keys.masking, keys.own_seeds),
        part.identities,
        tuple(_Keys(each.member, each.sealing, each.masking, each.own_seeds, each.signature) for each in memory.roster),
        memory.sealed,
        memory.digests,
        memory.shares,
        memory.sealers,
        memory.masked,
        memory.there,
    )
    write_private_file(folder / "part.json", _PART.dump_json(kept))


def write_beside(folder: Path, name: str, content: bytes) -> None:
    """Write a file beside a part, to be read by this user alone."""
    write_private_file(folder / name, content)


def _round_of(folder: Path) -> int:
    return int(folder.name.partition("-")[0])


def _repetition_of(folder: Path) -> int:
    return int(folder.name.partition("-")[2])
