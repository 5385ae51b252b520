"""What a site has on its disk: adapters it has fetched, and updates that the server has not acknowledged.

adapters/SHA                        a global adapter, whole; `.part` until all of it is here
outbox/RUN/NNNN/update              the update of a round as it goes on the wire
                residual            what its rounding took, which goes into the next update (int8)
                answer              once it is there, the round's training is done and is never done again
residual/RUN                        the residual of the last acknowledged update
vector                              hidden numbers on their way into a sum
judged.jsonl                        which adapters were judged, on which choice of examples
privacy/                            the worker's ledger, of what its trainings have told of the examples
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError

from fedlora.common.files import sha256_of, write_file
from fedlora.common.messages import InitialiseReceipt, TrainReceipt
from fedlora.common.schema import serialised
from fedlora.common.wire import write_receipt
from fedlora.v1 import session_pb2

_KEPT_ADAPTERS = 3


@dataclass(frozen=True)
class Finished:
    """A round's result: the answer as it goes to the server, but for the request's id, and the file of its update."""

    answer: session_pb2.Answer
    update: Path


class Outbox:
    """The folder of a site's state."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def adapter_file(self, sha256: str) -> Path:
        """Return where the adapter of that content lies, or belongs."""
        path = self._folder / "adapters" / sha256
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def forget_adapters(self) -> None:
        """Remove all but the newest adapters, and what was left unfinished of others."""
        paths = sorted((self._folder / "adapters").glob("*"), key=lambda path: path.stat().st_mtime_ns)
        for path in paths[:-_KEPT_ADAPTERS]:
            path.unlink(missing_ok=True)

    def round_folder(self, run: str, round: int) -> Path:
        """Return the folder for a round's result, which is made."""
        folder = self._folder / "outbox" / run / f"{round:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def finished(self, run: str, round: int, *, started_from: str) -> Finished | None:
        """Return the round's result, if it was trained from the adapter of that content and is whole."""
        folder = self._folder / "outbox" / run / f"{round:04d}"
        found = session_pb2.FinishedRound()
        try:
            found.ParseFromString((folder / "answer").read_bytes())
        except (OSError, DecodeError):
            return None
        update, blob = folder / "update", found.answer.adapter.encoded
        is_whole = blob.size_bytes == 0 or (update.is_file() and update.stat().st_size == blob.size_bytes)
        is_this = found.HasField("answer") and found.started_from == started_from
        return Finished(found.answer, update) if is_this and is_whole else None

    def finish(self, receipt: TrainReceipt | InitialiseReceipt, *, run: str, round: int, started_from: str) -> Finished:
        """Record a round's result, whose update and residual are on disk already; other rounds' are removed."""
        folder = self.round_folder(run, round)
        update = folder / "update"
        finished = session_pb2.FinishedRound(started_from=started_from)
        write_receipt(receipt, finished.answer)
        if update.is_file():
            blob = finished.answer.adapter.encoded
            blob.sha256, blob.size_bytes = bytes.fromhex(sha256_of([update])), update.stat().st_size
        write_file(folder / "answer", serialised(finished))
        for other in folder.parent.iterdir():
            if other != folder:
                shutil.rmtree(other, ignore_errors=True)
        return Finished(finished.answer, update)

    def settle(self, run: str, round: int, *, is_accepted: bool) -> None:
        """Forget a result that the server has; of an accepted one the residual is kept for the next."""
        folder = self._folder / "outbox" / run / f"{round:04d}"
        if is_accepted and (folder / "residual").is_file():
            kept = self.residual(run)
            kept.parent.mkdir(parents=True, exist_ok=True)
            os.replace(folder / "residual", kept)
        shutil.rmtree(folder, ignore_errors=True)

    @property
    def vector_file(self) -> Path:
        """Where the site's hidden numbers for a sum are on their way out; they can be made again."""
        return self._folder / "vector"

    @property
    def state(self) -> Path:
        """The folder itself."""
        return self._folder

    @property
    def judged_file(self) -> Path:
        """Where it stands what was judged."""
        return self._folder / "judged.jsonl"

    def residual(self, run: str) -> Path:
        """Return where the last accepted update's residual lies."""
        return self._folder / "residual" / run
