"""The run's adapters as others use them: each round's is published as a PEFT folder under a versioned name.

    published/NAME-vNNNN/     fedlora.common.published says what is in it

An adapter is published only when all its numbers are finite and the caller's check has nothing against it. No round
waits for that: where rounds are faster, the newest wins. A folder is whole or absent, never changes, and is removed
once so many newer ones are there.
"""

import itertools
import logging
import math
import os
import re
import shutil
import threading
import time
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
    read_published,
    versioned_name,
)
from fedlora.common.run_file import load_run
from fedlora.common.run_folder import ADAPTER_FOLDER, PUBLISHED_FOLDER, RUN_FILE
from fedlora.server.disk.store import RunFolder
from fedlora.server.record.events import Event, RoundEnded, RunStarted
from fedlora.server.record.round_report import RoundReport

logger = logging.getLogger(__name__)

# How long the end of a run waits for watchers to fetch its last adapter.
LINGER_SECONDS = 30.0
# And for the check of that adapter; of a run that is to stop it waits hardly at all.
LAST_CHECK_SECONDS, STOP_SECONDS = 120.0, 2.0

_UNFINISHED = ".unfinished"
_VERSION = re.compile(r".+-v(\d{4,})")


@dataclass(frozen=True)
class _Candidate:
    """The files of a round's adapter, linked so that they stay what they are."""

    report: RoundReport
    folder: Path


class Registry:
    """Publishes the adapters of one run, and tells who watches. The caller holds the folder's `Claim`."""

    def __init__(self, folder: Path, *, check: Callable[[Path], str], keep: int = 5) -> None:
        """`folder` is the run's; `keep` versions stay, the newest; `check` says what is wrong with a PEFT folder."""
        self._run_folder = folder
        self._folder = folder / PUBLISHED_FOLDER
        self._keep = keep
        self._check = check
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._waiting: _Candidate | None = None
        self._is_publishing = False
        self._end: bool | None = None
        self._has_given_up = False
        self._wakes: list[Callable[[], None]] = []
        for leftover in self._folder.glob(f"*{_UNFINISHED}"):
            shutil.rmtree(leftover, ignore_errors=True)
        self._adapters = _on_disk(self._folder)

    def heard(self, event: Event) -> None:
        """Publish the newest adapter after a round, and at a run's start what a crash kept from it; a Listener."""
        if isinstance(event, RoundEnded):
            self._take(event.report)
        elif isinstance(event, RunStarted) and event.reports:
            self._take(event.reports[-1])

    def adapters(self) -> tuple[Published, ...]:
        """Return what is published, newest first."""
        with self._changed:
            return self._adapters

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

    def close(self, *, is_finished: bool = True, linger_seconds: float = LINGER_SECONDS) -> None:
        """Wait for the last publication, and of a run that is over also for those who watch; for each a while.

        What is not published by then is when the same command is given again.
        """
        most = LAST_CHECK_SECONDS if is_finished else STOP_SECONDS
        with self._changed:
            if not self._changed.wait_for(lambda: not self._is_publishing, most):
                self._has_given_up = True
                logger.warning("the newest adapter is not published: its check took more than %g s", most)
            self._end = is_finished
            self._wake()
            if is_finished:
                self._changed.wait_for(lambda: not self._wakes, linger_seconds)

    def _take(self, report: RoundReport) -> None:
        """Hold on to the adapter of a round before the next one replaces it, and have it published."""
        if report.round == 0:
            return
        candidate = _Candidate(report, self._folder / f"candidate-{next(self._numbers)}{_UNFINISHED}")
        try:
            for name in (CONFIG_FILE, TENSOR_FILE):
                link_file(self._run_folder / ADAPTER_FOLDER / name, candidate.folder / name)
        except StoreError as error:
            logger.error("round %d is not published: %s", report.round, error)
            shutil.rmtree(candidate.folder, ignore_errors=True)
            return
        with self._changed:
            passed_over, self._waiting = self._waiting, candidate
            if not self._is_publishing:
                self._is_publishing = True
                threading.Thread(target=self._publish_all, name="registry", daemon=True).start()
        if passed_over is not None:
            logger.info("round %d is not published: a newer one was there first", passed_over.report.round)
            shutil.rmtree(passed_over.folder, ignore_errors=True)

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
        if any(known.round == round and known.files == files for known in self.adapters()):
            return
        misfit = bad_value(named_tensors(open_adapter(candidate.folder)), most=math.inf)
        if refusal := misfit.found if misfit is not None else self._check(candidate.folder):
            logger.error("round %d is not published: %s", round, refusal)
            return
        if self._has_given_up:
            return  # Nobody waits for it any more, and the folder may be another process's.
        published = self._described(candidate.report, files)
        write_file(candidate.folder / METADATA_FILE, CODEC.dump(published) + "\n")
        move_folder(candidate.folder, self._folder / published.name)
        with self._changed:
            everything = (published, *self._adapters)
            self._adapters, gone = everything[: self._keep], everything[self._keep :]
            self._wake()
        logger.info("published %s", published.name)
        for old in gone:
            self._remove(old.name)

    def _described(self, report: RoundReport, files: tuple[PublishedFile, ...]) -> Published:
        config = load_run(self._run_folder / RUN_FILE, aggregates_elsewhere=True)
        manifest = RunFolder(self._run_folder).manifest() or {}
        metric = None if report.held_out is None else report.held_out.overall.metric
        version = 1 + max((int(found[1]) for found in map(_version_of, self._folder.iterdir()) if found), default=0)
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

    def _wake(self) -> None:
        for wake in self._wakes:
            wake()


def _version_of(folder: Path) -> re.Match[str] | None:
    return _VERSION.fullmatch(folder.name)


def _on_disk(folder: Path) -> tuple[Published, ...]:
    """Return the adapters in the folder `published`, newest first; a damaged one is passed over, and said."""
    found: list[Published] = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if _version_of(path) is None:
            continue
        published = read_published(path)
        if published is None or published.name != path.name or not _is_whole(path, published):
            logger.warning("%s is damaged, and not offered", path)
        else:
            found.append(published)
    return tuple(sorted(found, key=lambda published: published.version, reverse=True))


def _is_whole(folder: Path, published: Published) -> bool:
    return all(
        (folder / file.name).is_file() and (folder / file.name).stat().st_size == file.size_bytes
        for file in published.files
    )
