"""A run on disk: the journal that a run goes on from, and what people read.

    run.toml                  the run, resolved
    manifest.json             run id, versions, fingerprints of base model and data, seed, command
    sites.json                what each site says of itself, where sites come and go
    rounds.jsonl              one RoundReport a line, from round 0
    privacy.json              what is spent of a privacy budget, before the noise of a round is drawn
    processes.json            for how long each process has worked on the run (account)
    adapter/                  the newest global adapter, a PEFT folder
    best/                     the best round's, by the clients' validation loss, and best.json: which one that is
    optimizer/                each client's moments, in a simulation whose clients keep them
    sums/                     the clients' parts in secure sums, while a simulation that has them goes on
    report.html
    published/NAME-vNNNN/     finished adapters for who serves them (registry)
    quarantine/               refused updates, by the site that sent them, and why (quarantine)
    rounds/NNNN/
        plan.json             the round's clients
        updates/NAME-HASH.*   each accepted update (.safetensors) and its receipt (.json), until the round is over
        sums/                 of secure sums: what members have said, until the round is over (sum_journal)
        predictions.json      predicted labels of the held-out set, where the whole of it was judged
        answers.json          generated answers to some of it, of a simulated language model
        adapter.safetensors   the global adapter after the round, packed; kept for the last two rounds, or three
        report.json           its RoundReport. Once this file is there, the round is over.

Every file is written under a temporary name, synced and renamed, and the journal is the truth: after
a crash at any point `latest` and `accepted` say what is left to do, and doing it gives the same bytes.
"""

import dataclasses
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter

from fedlora.adapters import Adapter, pack, save_adapter, unpack
from fedlora.common.codec import Codec
from fedlora.common.errors import StoreError, one_line
from fedlora.common.files import append_to_file, client_file_name, link_file, write_file
from fedlora.common.messages import Failure, Score, SiteDescription, TrainReceipt
from fedlora.common.packed_file import PackedFile, wire_bytes
from fedlora.common.parsing import json_in
from fedlora.common.run_folder import (
    ADAPTER_FOLDER,
    BEST_FOLDER,
    BEST_RECORD,
    MANIFEST_FILE,
    PRIVACY_FILE,
    QUARANTINE_FOLDER,
    REPORT_FILE,
    ROUNDS_FILE,
    SITES_FILE,
)
from fedlora.methods import MethodState
from fedlora.server.disk.method_state import pack_state, unpack_state
from fedlora.server.disk.patience import WaitForSpace, give_up, patiently, wait_for_nothing
from fedlora.server.disk.quarantine import set_aside
from fedlora.server.disk.sum_journal import SumJournal
from fedlora.server.record import privacy_record
from fedlora.server.record.draw import Draw
from fedlora.server.record.privacy_record import PrivacyRecord
from fedlora.server.record.round_report import CODEC, RoundReport

logger = logging.getLogger(__name__)

_STATE_FILE = "state.safetensors"
_KEPT_ADAPTERS = 2

Content = TypeVar("Content")


_DRAW = Codec(Draw)
_RECEIPT = Codec(TrainReceipt)
_SITES = TypeAdapter(dict[str, SiteDescription])
_PREDICTIONS = TypeAdapter(dict[int, int])
_ANSWERS = TypeAdapter(dict[int, str])


@dataclass(frozen=True, eq=False)
class StoredAdapter:
    """The global adapter after a round, and the journal's file that holds it packed."""

    adapter: Adapter
    packed: PackedFile

    @property
    def sha256(self) -> str:
        """Of the file."""
        return self.packed.sha256


@dataclass(frozen=True)
class Checkpoint:
    """The newest round that is over: its number, the global adapter and the method's state after it, the reports."""

    round: int
    stored: StoredAdapter
    reports: tuple[RoundReport, ...]
    state: MethodState = field(default_factory=dict)

    @property
    def adapter(self) -> Adapter:
        """The global adapter."""
        return self.stored.adapter


class RunFolder:
    """The journal and the published files in one run's folder; `claim` says whose folder it is.

    Attributes:
        wait_for_space: called while there is no room on the disk for what is to be written; then it is tried again.
        go_on: called when it is written after all.
        keeps_former: whether a round goes on from the last two adapters, so that one more is kept.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.wait_for_space: WaitForSpace = give_up
        self.go_on: Callable[[], None] = wait_for_nothing
        self.keeps_former = False
        self._num_listed: int | None = None  # In rounds.jsonl, where this process has looked.

    def manifest(self) -> dict[str, object] | None:
        """Return the manifest, or None in a run whose clients were never met.

        Raises:
            StoreError: it is damaged.
        """
        path = self.path / MANIFEST_FILE
        if not path.is_file():
            return None
        try:
            content = json_in(path.read_bytes())
        except (ValueError, OSError) as error:
            raise StoreError(f"{path} is damaged ({one_line(error)}); restore it, or start a new run") from error
        if not isinstance(content, dict):
            raise StoreError(f"{path} is damaged (it is no JSON object); restore it, or start a new run")
        return content

    @patiently
    def write_manifest(self, content: Mapping[str, object]) -> None:
        """Write the manifest."""
        write_file(self.path / MANIFEST_FILE, json.dumps(content, indent=2) + "\n")

    @property
    def metric_name(self) -> str:
        """The name of the metric by which the run is judged, known as soon as it has met its clients."""
        return str((self.manifest() or {}).get("metric", "metric"))

    def write_report(self, html: str) -> Path:
        """Write report.html, and return where."""
        write_file(self.path / REPORT_FILE, html)
        return self.path / REPORT_FILE

    def latest(self) -> Checkpoint | None:
        """Return the newest round whose report and adapter are whole, or None in a new run.

        A damaged one is passed over for the one before; it will be done again.
        """
        reports: list[RoundReport] = []
        while (report := _read(self._report_file(len(reports)), CODEC.load)) is not None:
            reports.append(report)
        for number in range(len(reports) - 1, -1, -1):
            stored, state = self._adapter_of(reports[number]), self._read_state(reports[number])
            if stored is not None and state is not None:
                return Checkpoint(number, stored, tuple(reports[: number + 1]), state)
        if reports:
            raise StoreError(
                f"{self.path}: {len(reports) - 1} rounds are recorded, but none of the last adapters is whole; "
                "start a new run, from adapter/ with federation.start_from if that loads"
            )
        return None

    def before(self, checkpoint: Checkpoint) -> StoredAdapter | None:
        """Return the adapter after the round before a checkpoint's, None where that is the first.

        Raises:
            StoreError: it is missing or damaged.
        """
        number = checkpoint.round - 1
        stored = self._stored(number) if number >= 0 else None
        if stored is None and number >= 0:
            raise StoreError(
                f"{self._adapter_file(number)} is missing or damaged, and the next round goes on from it too "
                "(train.client_momentum); restore it, or start a new run, from adapter/ with federation.start_from"
            )
        return stored

    def sites(self) -> dict[str, SiteDescription]:
        """Return what the sites that have taken part said of themselves, by name; nothing before the first has.

        Raises:
            StoreError: it is damaged.
        """
        path = self.path / SITES_FILE
        try:
            return _SITES.validate_json(path.read_bytes())
        except FileNotFoundError:
            return {}
        except (ValueError, OSError) as error:
            raise StoreError(f"{path} is damaged ({one_line(error)}); restore it, or start a new run") from error

    @patiently
    def write_sites(self, sites: Mapping[str, SiteDescription]) -> None:
        """Record who takes part."""
        write_file(self.path / SITES_FILE, _SITES.dump_json(dict(sites), indent=1) + b"\n")

    def privacy(self) -> PrivacyRecord | None:
        """Return what is spent of the privacy budget, or None where that is not recorded, or damaged."""
        return _read(self.path / PRIVACY_FILE, privacy_record.CODEC.load)

    @patiently
    def write_privacy(self, record: PrivacyRecord) -> None:
        """Record what is spent of the privacy budget."""
        write_file(self.path / PRIVACY_FILE, privacy_record.CODEC.dump(record) + "\n")

    def draw(self, number: int) -> Draw | None:
        """Return whom a round asks, or None where nobody was drawn yet."""
        return _read(self._round(number) / "plan.json", _DRAW.load)

    @patiently
    def write_draw(self, number: int, draw: Draw) -> None:
        """Record who is asked in a round."""
        write_file(self._round(number) / "plan.json", _DRAW.dump(draw) + "\n")

    def accepted(self, number: int) -> dict[str, TrainReceipt]:
        """Return the receipts accepted so far in a round that is not over, by client name."""
        receipts: dict[str, TrainReceipt] = {}
        for path in sorted((self._round(number) / "updates").glob("*.json")):
            receipt = _read(path, _RECEIPT.load)
            tensors = path.with_suffix(".safetensors")
            if receipt is not None and tensors.is_file():
                receipts[receipt.client] = dataclasses.replace(receipt, adapter=PackedFile(tensors, receipt.wire_bytes))
        return receipts

    def forget_accepted_after(self, number: int) -> None:
        """Remove what was accepted in rounds after `number`, which is done again and need not end in the same bytes."""
        for folder in (self.path / "rounds").glob("*/updates"):
            if folder.parent.name.isdecimal() and int(folder.parent.name) > number:
                shutil.rmtree(folder, ignore_errors=True)

    @patiently
    def write_accepted(self, number: int, receipt: TrainReceipt) -> None:
        """Record an update accepted in a round: its tensors first, then the receipt that makes it count."""
        folder, name = self._round(number) / "updates", client_file_name(receipt.client)
        tensors, packed = folder / f"{name}.safetensors", receipt.adapter
        if isinstance(packed, bytes):
            write_file(tensors, packed)
        elif packed.path != tensors:
            link_file(packed.path, tensors)
        recorded = dataclasses.replace(receipt, wire_bytes=wire_bytes(packed))
        write_file(folder / f"{name}.json", _RECEIPT.dump(recorded, leave_out={"adapter"}))

    def sum_journal(self, number: int) -> SumJournal:
        """Return what is kept of a round's secure sums while they go on."""
        folder = self._round(number) / "sums"
        return SumJournal(folder, wait_for_space=self.wait_for_space, go_on=self.go_on)

    def quarantine(self, number: int, client: str, refused: TrainReceipt | Failure, reason: str) -> None:
        """Set aside what a client sent in a round and was refused, with the reason, for who wants to look."""
        claims: dict[str, object] = {}
        if isinstance(refused, TrainReceipt):
            claims = {name: getattr(refused, name) for name in ("client", "run", "round", "attempt")}
        folder = self.path / QUARANTINE_FOLDER
        set_aside(folder, site=client, round=number, reason=reason, packed=refused.adapter, claims=claims)

    def predictions(self, number: int) -> dict[int, int]:
        """Return the predicted labels by place in the held-out set, empty where not all of it was judged."""
        return _read(self._round(number) / "predictions.json", _PREDICTIONS.validate_json) or {}

    def answers(self, number: int) -> dict[int, str]:
        """Return the generated answers by place in the held-out set, empty where none were asked for."""
        return _read(self._round(number) / "answers.json", _ANSWERS.validate_json) or {}

    def adapter_after(self, number: int, sha256: str) -> StoredAdapter | None:
        """Return the global adapter after a round, known by its digest; None where it is not there, or damaged."""
        path = self._adapter_file(number)

        def load(packed: bytes) -> StoredAdapter:
            return StoredAdapter(unpack(_checked(packed, sha256)), PackedFile(path, len(packed), sha256))

        return _read(path, load)

    @patiently
    def write_adapter(self, number: int, adapter: Adapter) -> StoredAdapter:
        """Write the global adapter after a round."""
        path, packed = self._adapter_file(number), pack(adapter)
        write_file(path, packed)
        return StoredAdapter(adapter, PackedFile(path, len(packed), hashlib.sha256(packed).hexdigest()))

    @patiently
    def write_beside(
        self,
        number: int,
        state: MethodState | None = None,
        *,
        predictions: Mapping[int, int],
        answers: Mapping[int, str] | None = None,
    ) -> str:
        """Write the method's state after a round, and what was predicted and answered; return the state's digest.

        It is empty where the method keeps none.
        """
        packed_state = pack_state(state) if state else b""
        if state:
            write_file(self._round(number) / _STATE_FILE, packed_state)
        if predictions:
            write_file(self._round(number) / "predictions.json", json.dumps(dict(predictions)) + "\n")
        if answers:
            write_file(self._round(number) / "answers.json", json.dumps(dict(answers)) + "\n")
        return hashlib.sha256(packed_state).hexdigest() if state else ""

    @patiently
    def complete(self, report: RoundReport, stored: StoredAdapter) -> None:
        """Record that a round is over, after its adapter and what is beside it; then publish adapter and report."""
        line = CODEC.dump(report) + "\n"
        write_file(self._report_file(report.round), line)
        self.publish(stored, report.round)

    @patiently
    def publish(self, stored: StoredAdapter, number: int) -> None:
        """Write adapter/ and rounds.jsonl as of a round that is over, and remove what the journal needs no more.

        A resumed run repeats it, for a crash may have cut it off.
        """
        save_adapter(stored.adapter, self.path / ADAPTER_FOLDER, packed=stored.packed.path)
        self._list_reports(number)
        self._prune(number)

    @patiently
    def write_best(self, number: int, score: Score, known: Mapping[int, StoredAdapter]) -> None:
        """Record the best round so far, unless it is recorded, or its adapter is no longer kept.

        Args:
            known: adapters that need not be read again, by round.
        """
        note = {"round": number, "loss": score.loss, "metric": score.metric}
        record = self.path / BEST_RECORD
        if _read(record, json_in) == note:
            return
        stored = known.get(number) or self._stored(number)
        if stored is not None:
            save_adapter(stored.adapter, self.path / BEST_FOLDER, packed=stored.packed.path)
            write_file(record, json.dumps(note) + "\n")

    def _stored(self, number: int) -> StoredAdapter | None:
        report = _read(self._report_file(number), CODEC.load)
        return None if report is None else self._adapter_of(report)

    def _list_reports(self, number: int) -> None:
        """Have all reports up to a round in rounds.jsonl: the last one is appended, where the others are there."""
        path, reports = self.path / ROUNDS_FILE, range(number + 1)
        listed = path.stat().st_size if path.is_file() else 0
        if self._num_listed != number or not listed:
            # Of an earlier process, whose last line a crash may have cut short.
            known = path.read_bytes() if listed else b""
            everything = b"".join(self._report_file(index).read_bytes() for index in reports)
            if not everything.startswith(known) or not known:
                write_file(path, everything)
            elif len(known) < len(everything):
                append_to_file(path, everything[len(known) :])
        else:
            append_to_file(path, self._report_file(number).read_bytes())
        self._num_listed = number + 1

    def _prune(self, number: int) -> None:
        shutil.rmtree(self._round(number) / "updates", ignore_errors=True)
        self.sum_journal(number).clear()
        num_kept = _KEPT_ADAPTERS + self.keeps_former
        if number >= num_kept:
            for file in ("adapter.safetensors", _STATE_FILE):
                (self._round(number - num_kept) / file).unlink(missing_ok=True)

    def _adapter_of(self, report: RoundReport) -> StoredAdapter | None:
        return self.adapter_after(report.round, report.adapter_sha256)

    def _read_state(self, report: RoundReport) -> MethodState | None:
        if not report.state_sha256:
            return {}
        path = self._round(report.round) / _STATE_FILE
        return _read(path, lambda packed: unpack_state(_checked(packed, report.state_sha256)))

    def _adapter_file(self, number: int) -> Path:
        return self._round(number) / "adapter.safetensors"

    def _report_file(self, number: int) -> Path:
        return self._round(number) / "report.json"

    def _round(self, number: int) -> Path:
        return self.path / "rounds" / f"{number:04d}"


def _checked(packed: bytes, sha256: str) -> bytes:
    """Return the bytes, whose digest is recorded.

    Raises:
        ValueError: it is another.
    """
    if hashlib.sha256(packed).hexdigest() != sha256:
        raise ValueError("another sha256 than is recorded")
    return packed


def _read(path: Path, load: Callable[[bytes], Content]) -> Content | None:
    """Return what `load` makes of a file, or None where it is missing, or damaged: that is said, and is no more."""
    try:
        return load(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        logger.warning("%s is damaged, and what it held is done again (%s)", path, one_line(error))
        return None
