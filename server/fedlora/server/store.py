"""A run on disk: the journal that a run goes on from, and what people read.

    run.toml                  the run, resolved
    manifest.json             run id, versions, fingerprints of base model and data, seed, command
    rounds.jsonl              one RoundReport a line, from round 0
    adapter/                  the newest global adapter, a PEFT folder
    report.html
    rounds/NNNN/
        plan.json             the round's clients
        updates/NAME-HASH.*   each accepted update (.safetensors) and its receipt (.json), until the round is over
        predictions.json      predicted labels of the held-out set, where the whole of it was judged
        adapter.safetensors   the global adapter after the round, packed; kept for the last two rounds
        report.json           its RoundReport. Once this file is there, the round is over.

Every file is written under a temporary name, synced and renamed, and the journal is the truth: after
a crash at any point `latest` and `accepted` say what is left to do, and doing it gives the same bytes.
"""

import dataclasses
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from pydantic import TypeAdapter

from fedlora.adapters import Adapter, pack, save_adapter, unpack
from fedlora.common.codec import Codec
from fedlora.common.errors import StoreError
from fedlora.common.files import write_file
from fedlora.common.messages import TrainReceipt
from fedlora.common.run_folder import ADAPTER_FOLDER, MANIFEST_FILE
from fedlora.server.round_report import CODEC, RoundReport

logger = logging.getLogger(__name__)

ROUNDS_FILE = "rounds.jsonl"
REPORT_FILE = "report.html"
_KEPT_ADAPTERS = 2

Content = TypeVar("Content")


@dataclass(frozen=True)
class _Plan:
    cohort: tuple[str, ...]


_PLAN = Codec(_Plan)
_RECEIPT = Codec(TrainReceipt)
_PREDICTIONS = TypeAdapter(dict[int, int])


@dataclass(frozen=True)
class Checkpoint:
    """The newest round that is over: its number, the global adapter after it, and the reports up to it."""

    round: int
    adapter: Adapter
    reports: tuple[RoundReport, ...]


class RunFolder:
    """The journal and the published files in one run's folder; `claim` says whose folder it is."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def manifest(self) -> dict[str, object] | None:
        """Return the manifest, or None in a run whose clients were never met.

        Raises:
            StoreError: it is damaged.
        """
        path = self.path / MANIFEST_FILE
        if not path.is_file():
            return None
        try:
            content: dict[str, object] = json.loads(path.read_bytes())
        except ValueError as error:
            raise StoreError(f"{path} is damaged ({error}); restore it, or start a new run") from error
        return content

    def write_manifest(self, content: Mapping[str, object]) -> None:
        """Write the manifest."""
        write_file(self.path / MANIFEST_FILE, json.dumps(content, indent=2) + "\n")

    def write_report(self, html: str) -> Path:
        """Write report.html, and return where."""
        write_file(self.path / REPORT_FILE, html)
        return self.path / REPORT_FILE

    def latest(self) -> Checkpoint | None:
        """Return the newest round whose report and adapter are whole, or None in a new run.

        A damaged one is passed over for the one before; it will be done again.
        """
        reports: list[RoundReport] = []
        while (report := _read(self._round(len(reports)) / "report.json", CODEC.load)) is not None:
            reports.append(report)
        for number in range(len(reports) - 1, -1, -1):
            if (adapter := self._read_adapter(reports[number])) is not None:
                return Checkpoint(number, adapter, tuple(reports[: number + 1]))
        if reports:
            raise StoreError(
                f"{self.path}: {len(reports) - 1} rounds are recorded, but none of the last adapters is whole; "
                "start a new run, from adapter/ with federation.start_from if that loads"
            )
        return None

    def plan(self, number: int) -> tuple[str, ...] | None:
        """Return the clients planned for a round, or None where it was not planned yet."""
        plan = _read(self._round(number) / "plan.json", _PLAN.load)
        return None if plan is None else plan.cohort

    def write_plan(self, number: int, cohort: Sequence[str]) -> None:
        """Record the clients of a round."""
        write_file(self._round(number) / "plan.json", _PLAN.dump(_Plan(tuple(cohort))) + "\n")

    def accepted(self, number: int) -> dict[str, TrainReceipt]:
        """Return the receipts accepted so far in a round that is not over, by client name."""
        receipts: dict[str, TrainReceipt] = {}
        for path in sorted((self._round(number) / "updates").glob("*.json")):
            receipt = _read(path, _RECEIPT.load)
            tensors = _read(path.with_suffix(".safetensors"), bytes)
            if receipt is not None and tensors is not None:
                receipts[receipt.client] = dataclasses.replace(receipt, adapter=tensors)
        return receipts

    def write_accepted(self, receipt: TrainReceipt) -> None:
        """Record an accepted update: its tensors first, then the receipt that makes it count."""
        folder, name = self._round(receipt.round) / "updates", _file_name(receipt.client)
        write_file(folder / f"{name}.safetensors", receipt.adapter)
        write_file(folder / f"{name}.json", _RECEIPT.dump(receipt, leave_out={"adapter"}))

    def predictions(self, number: int) -> dict[int, int]:
        """Return the predicted labels by place in the held-out set, empty where not all of it was judged."""
        return _read(self._round(number) / "predictions.json", _PREDICTIONS.validate_json) or {}

    def write_checkpoint(self, number: int, adapter: Adapter, *, predictions: Mapping[int, int]) -> str:
        """Write the global adapter after a round, and the predictions if there are any; return the adapter's sha256."""
        packed = pack(adapter)
        write_file(self._round(number) / "adapter.safetensors", packed)
        if predictions:
            write_file(self._round(number) / "predictions.json", json.dumps(dict(predictions)) + "\n")
        return hashlib.sha256(packed).hexdigest()

    def complete(self, report: RoundReport, adapter: Adapter) -> None:
        """Record that a round is over, after its checkpoint was written; then publish adapter and report."""
        write_file(self._round(report.round) / "report.json", CODEC.dump(report) + "\n")
        self.publish(adapter, report.round)

    def publish(self, adapter: Adapter, number: int) -> None:
        """Write adapter/ and rounds.jsonl as of a round that is over, and remove what the journal needs no more.

        A resumed run repeats it, for a crash may have cut it off.
        """
        save_adapter(adapter, self.path / ADAPTER_FOLDER)
        lines = [(self._round(index) / "report.json").read_bytes() for index in range(number + 1)]
        write_file(self.path / ROUNDS_FILE, b"".join(lines))
        self._prune(number)

    def _prune(self, number: int) -> None:
        shutil.rmtree(self._round(number) / "updates", ignore_errors=True)
        if number >= _KEPT_ADAPTERS:
            (self._round(number - _KEPT_ADAPTERS) / "adapter.safetensors").unlink(missing_ok=True)

    def _read_adapter(self, report: RoundReport) -> Adapter | None:
        def load(packed: bytes) -> Adapter:
            if hashlib.sha256(packed).hexdigest() != report.adapter_sha256:
                raise ValueError("another sha256 than in the report")
            return unpack(packed)

        return _read(self._round(report.round) / "adapter.safetensors", load)

    def _round(self, number: int) -> Path:
        return self.path / "rounds" / f"{number:04d}"


def _read(path: Path, load: Callable[[bytes], Content]) -> Content | None:
    """Return what `load` makes of a file, or None where it is missing, or damaged: that is said, and is no more."""
    try:
        return load(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        logger.warning("%s is damaged, and what it held is done again (%s)", path, error)
        return None


def _file_name(client: str) -> str:
    """Return the name of a client's files, its own whatever its length and also where case makes no difference."""
    return f"{quote(client, safe='')[:40]}-{hashlib.sha256(client.encode()).hexdigest()[:16]}"
