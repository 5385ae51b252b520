"""The run's adapters as others use them: each round's is published as a PEFT folder under a versioned name.

    published/NAME-vNNNN/     fedlora.common.published says what is in it

An adapter is published only when all its numbers are finite, the caller's check has nothing against it, and it is not
worse than it may be (record.publish_gate): where that is asked for, it waits for its score, which the next round tells.
No round waits for any of this: where rounds are faster, the newest wins. A folder is whole or absent, never changes,
and is removed once so many newer ones are there that are offered.

An operator may go back to an earlier adapter (published_folder): then newer ones are not offered, and none is published
until it is better.
"""

import logging
import math
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedlora.adapters import open_adapter
from fedlora.adapters.fit import bad_value
from fedlora.adapters.keys import named_tensors
from fedlora.adapters.peft_format import CONFIG_FILE, TENSOR_FILE
from fedlora.common.errors import FedloraError, StoreError
from fedlora.common.files import link_file, write_file
from fedlora.common.published import (
    CODEC,
    METADATA_FILE,
    Published,
    PublishedFile,
    described_files,
    move_folder,
    versioned_name,
)
from fedlora.common.run_file import load_run
from fedlora.common.run_folder import ADAPTER_FOLDER, PUBLISHED_FOLDER, RUN_FILE
from fedlora.server.disk.published_folder import (
    Rollback,
    kept,
    number_of,
    offered,
    published_held,
    published_in,
    read_rollback,
    stands,
)
from fedlora.server.disk.store import RunFolder
from fedlora.server.disk.withheld import Withheld
from fedlora.server.record.events import Event, Listener, RoundEnded, RunStarted, Waiting, ignore
from fedlora.server.record.publish_gate import Losses, refusal
from fedlora.server.record.round_report import RoundReport

logger = logging.getLogger(__name__)

# How long the end of a run waits for watchers to fetch its last adapter.
LINGER_SECONDS = 30.0
# A server that is to stop hardly waits for a check; nor is more than that worth a word.
STOP_SECONDS = 2.0
_UNCHECKED = "its check with PEFT is not over; where no server waits for it, the same start command publishes it"
_UNFINISHED = ".unfinished"


@dataclass(frozen=True)
class _Candidate:
    """The files of a round's adapter, linked so that they stay what they are."""

    report: RoundReport
    folder: Path


class Registry:
    """Publishes the adapters of one run, and tells who watches. The caller holds the folder's `Claim`."""

    def __init__(
        self,
        folder: Path,
        *,
        check: Callable[[Path], str],
        keep: int = 5,
        margin: float | None = None,
        listener: Listener = ignore,
    ) -> None:
        """`folder` is the run's; `keep` versions stay, see `kept`; `check` says what is wrong with a PEFT folder.

        `margin` is the gate's, and `listener` hears what is refused.

        Raises:
            StoreError: what is rolled back cannot be read.
        """
        self._run_folder = folder
        self._folder = folder / PUBLISHED_FOLDER
        self._keep = keep
        self._check = check
        self._margin = margin
        self._changed = threading.Condition()
        self._losses = Losses()
        self._unjudged: _Candidate | None = None
        self._waiting: _Candidate | None = None
        self._is_publishing = False
        self._in_check: _Candidate | None = None
        self._end: bool | None = None
        self._is_stopping = False
        self._has_given_up = False
        self._wakes: list[Callable[[], None]] = []
        for leftover in self._folder.glob(f"*{_UNFINISHED}"):
            shutil.rmtree(leftover, ignore_errors=True)
        self._adapters = published_in(folder)
        self._listener = listener
        self._withheld = Withheld(folder, listener)
        self._rollback = read_rollback(folder)

    def heard(self, event: Event) -> None:
        """Publish the newest adapter after a round, and at a run's start what a crash kept from it; a Listener."""
        if isinstance(event, RoundEnded):
            self._take(event.report)
        elif isinstance(event, RunStarted) and event.reports:
            for report in event.reports:
                self._losses = self._losses.then(report)
            self._take(event.reports[-1])

    def adapters(self) -> tuple[Published, ...]:
        """Return what is offered, newest first."""
        with self._changed:
            return offered(self._adapters, self._rollback)

    def is_withdrawn(self, version: int) -> bool:
        """Return whether an operator has gone back from a version."""
        with self._changed:
            return self._rollback is not None and version in self._rollback.withdrawn

    def look(self) -> None:
        """Take note of what an operator has rolled back or undone since, and tell who watches."""
        with self._changed:
            before, self._rollback = self._rollback, self._read_rollback()
            if self._rollback == before:
                return
            self._wake()
            rollback = self._rollback
        if rollback is None:
            logger.warning("the rollback is undone: all adapters are offered again")
        else:
            logger.warning("rolled back to %s by %s: newer adapters are withdrawn", rollback.name, rollback.by)

    def find(self, version: int, file: str) -> Path | None:
        """Return where a file of a version lies, or None; by the time it is opened it may be gone."""
        for published in self.adapters():
            if published.version == version and any(file == known.name for known in published.files):
                return self._folder / published.name / file
        return None

    @property
    def is_finished(self) -> bool | None:
        """Whether the run was over when the registry closed; None while it is open."""
        with self._changed:
            return self._end

    @contextmanager
    def watching(self, wake: Callable[[], None]) -> Iterator[None]:
        """Call `wake`, from another thread, after each publication and at the close, for as long as the block lasts."""
        with self._changed:
            self._wakes.append(wake)
        try:
            yield
        finally:
            with self._changed:
                self._wakes.remove(wake)
                self._changed.notify_all()

    def stop(self) -> None:
        """Have nobody wait for a check any more: the run is to stop."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()

    def close(self, *, is_finished: bool = True, linger_seconds: float = LINGER_SECONDS) -> bool:
        """Wait for the last check, and of a run that is over also for those who watch, these for a while.

        Of a run that is over the check may take as long as it does, unless the run is to stop. What is not published by
        then is when the same command is given again.

        Returns:
            Whether no check is left to be done.
        """
        if is_finished and (unjudged := self._unjudged) is not None:
            self._unjudged = None
            self.look()
            self._queue_if_good(unjudged)
        if is_finished and not self._is_idle(STOP_SECONDS):
            self._wait_for_check()
        is_idle = self._is_idle(STOP_SECONDS)
        with self._changed:
            if not is_idle:
                self._has_given_up = True
                logger.warning("the newest adapter is not published: its check is not over as the run stops")
            self._end = is_finished
            self._wake()
            if is_finished:
                self._changed.wait_for(lambda: self._is_stopping or not self._wakes, linger_seconds)
        return is_idle

    def part(self) -> None:
        """Let go of the run, which is over: who reads what it has published may do so for as long as they like."""
        self._listener = ignore
        self._withheld.part()

    def _is_idle(self, seconds: float) -> bool:
        """Return whether nothing is being published any more, within so many seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._is_publishing, seconds)

    def _wait_for_check(self) -> None:
        """Wait for the check of a run's last adapter, and say so, until it is over or the run is to stop."""
        with self._changed:
            unchecked = self._waiting or self._in_check
            if unchecked is None:
                return
            # Whatever ends this process, the folder tells what is left to do.
            round = unchecked.report.round
            self._withheld.note(round, _UNCHECKED)
        self._listener(Waiting(f"the check with PEFT of the adapter of round {round}, the last, which takes long"))
        with self._changed:
            self._changed.wait_for(lambda: self._is_stopping or not self._is_publishing)
        self._listener(Waiting(""))

    def _take(self, report: RoundReport) -> None:
        """Hold on to the adapter of a round before the next one replaces it, and have it published once it is judged.

        With it may come the score of the one before, which has waited for it.
        """
        self.look()
        self._losses = self._losses.then(report)
        new = self._linked(report)
        with self._changed:
            judged, self._unjudged = self._unjudged, None
            is_gated = self._margin is not None or stands(self._adapters, self._rollback)
        if new is not None and is_gated and self._losses.of(report.round) is None:
            self._unjudged, new = new, None
        for candidate in (judged, new):
            if candidate is not None:
                self._queue_if_good(candidate)

    def _linked(self, report: RoundReport) -> _Candidate | None:
        if report.round == 0:
            return None
        candidate = _Candidate(report, self._folder / f"candidate-{uuid.uuid4().hex}{_UNFINISHED}")
        try:
            for name in (CONFIG_FILE, TENSOR_FILE):
                link_file(self._run_folder / ADAPTER_FOLDER / name, candidate.folder / name)
        except StoreError as error:
            logger.error("round %d is not published: %s", report.round, error)
            shutil.rmtree(candidate.folder, ignore_errors=True)
            return None
        return candidate

    def _queue_if_good(self, candidate: _Candidate) -> None:
        if why := self._refusal(candidate.report.round):
            self._refuse(candidate, why)
            return
        with self._changed:
            passed_over, self._waiting = self._waiting, candidate
            if not self._is_publishing:
                self._is_publishing = True
                threading.Thread(target=self._publish_all, name="registry", daemon=True).start()
        if passed_over is not None:
            self._pass_over(passed_over)

    def _pass_over(self, candidate: _Candidate) -> None:
        self._withheld.forget(candidate.report.round, why=_UNCHECKED)
        logger.info("round %d is not published: a newer one was there first", candidate.report.round)
        shutil.rmtree(candidate.folder, ignore_errors=True)

    def _refusal(self, round: int) -> str:
        """Return what speaks against a round's adapter by its score, with what is published and rolled back."""
        with self._changed:
            adapters, rollback = self._adapters, self._rollback
        if any(published.round == round for published in adapters):
            return ""  # It has passed before.
        return refusal(
            self._losses,
            round,
            margin=self._margin,
            published=[published.round for published in offered(adapters, rollback)],
            rolled_back_to=rollback.round if rollback is not None and stands(adapters, rollback) else None,
        )

    def _refuse(self, candidate: _Candidate, why: str) -> None:
        shutil.rmtree(candidate.folder, ignore_errors=True)
        self._withheld.tell(candidate.report.round, why)

    def _publish_all(self) -> None:
        while True:
            with self._changed:
                candidate, self._waiting = self._waiting, None
                if candidate is None:
                    self._is_publishing = False
                    self._changed.notify_all()
                    return
            try:
                self._publish(candidate)
            except (FedloraError, OSError) as error:
                logger.error("round %d is not published: %s", candidate.report.round, error)
            # The thread must live on: without it, no later adapter would be published.
            except Exception:
                logger.exception("round %d is not published", candidate.report.round)
            finally:
                shutil.rmtree(candidate.folder, ignore_errors=True)

    def _publish(self, candidate: _Candidate) -> None:
        """Give a candidate its name, if it is good and not published already.

        Raises:
            FedloraError, OSError: it is not good, or cannot be written.
        """
        files = described_files(candidate.folder, (CONFIG_FILE, TENSOR_FILE))
        round = candidate.report.round
        with self._changed:
            known = self._adapters
        if any(published.round == round and published.files == files for published in known):
            return
        why = self._fault(candidate)
        if self._has_given_up:
            return  # Nobody waits for it any more, and the folder may be another process's.
        if why:
            self._refuse(candidate, why)
            return
        with published_held(self._run_folder):
            # While it was checked, an operator may have gone back.
            self.look()
            if why := self._refusal(round):
                self._refuse(candidate, why)
                return
            published = self._described(candidate.report, files)
            write_file(candidate.folder / METADATA_FILE, CODEC.dump(published) + "\n")
            move_folder(candidate.folder, self._folder / published.name)
            with self._changed:
                everything = (published, *self._adapters)
                self._adapters = kept(everything, self._rollback, self._keep)
                gone = set(everything) - set(self._adapters)
                self._wake()
            for old in gone:
                self._remove(old.name)
        logger.info("published %s", published.name)
        self._withheld.forget(round)

    def _fault(self, candidate: _Candidate) -> str:
        """Return what is wrong with the files of an adapter, nothing where they are good."""
        with self._changed:
            self._in_check = candidate
        try:
            misfit = bad_value(named_tensors(open_adapter(candidate.folder)), most=math.inf)
            return misfit.found if misfit is not None else self._check(candidate.folder)
        finally:
            with self._changed:
                self._in_check = None

    def _described(self, report: RoundReport, files: tuple[PublishedFile, ...]) -> Published:
        config = load_run(self._run_folder / RUN_FILE, aggregates_elsewhere=True)
        manifest = RunFolder(self._run_folder).manifest() or {}
        metric = None if report.held_out is None else report.held_out.overall.metric
        version = 1 + max((number_of(path) or 0 for path in self._folder.iterdir()), default=0)
        return Published(
            name=versioned_name(config.run.name, version),
            version=version,
            run=str(manifest.get("run_id", "")),
            round=report.round,
            published_seconds=int(time.time()),
            metric_name=str(manifest.get("metric", "")),
            metric=metric if metric is not None and math.isfinite(metric) else None,
            base_model=config.model.name,
            files=files,
        )

    def _remove(self, name: str) -> None:
        """Remove a version, at once for who looks: a crash leaves no half of it under its name."""
        unfinished = self._folder / f"{name}{_UNFINISHED}"
        try:
            os.rename(self._folder / name, unfinished)
        except OSError as error:
            logger.warning("%s cannot be removed (%s)", self._folder / name, error.strerror)
        shutil.rmtree(unfinished, ignore_errors=True)

    def _read_rollback(self) -> Rollback | None:
        try:
            return read_rollback(self._run_folder)
        except StoreError as error:
            logger.error("%s; until then what was known of it holds", error)
            return self._rollback

    def _wake(self) -> None:
        for wake in self._wakes:
            wake()
