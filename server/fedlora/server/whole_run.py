"""A run from the claim of its folder to its report, the same on every engine. Needs no torch before its engine does."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedlora.common.config import RunConfig
from fedlora.common.errors import StoreError
from fedlora.common.messages import SiteDescription
from fedlora.methods import Method
from fedlora.server.disk.account import Account
from fedlora.server.disk.claim import Claim
from fedlora.server.record.events import Event, HeardSites, Listener, Noted, ignore
from fedlora.server.record.round_report import RoundReport
from fedlora.server.run_method import method_of
from fedlora.server.run_privacy import client_privacy_of
from fedlora.server.running_report import RunningReport
from fedlora.trackers.tracker import OpenTracker
from fedlora.trackers.tracking import Tracking

if TYPE_CHECKING:
    from flwr.serverapp import ServerApp

    from fedlora.server.disk.store import Checkpoint, RunFolder


@dataclass(frozen=True)
class Run:
    """What is to be run.

    Attributes:
        config, folder: the run file, and where the run is kept.
        num_sites: these are waited for at the start.
        command: goes into the manifest.
        notes: on the run file, in a line each, such as settings that do nothing.
        method: in place of the one that the run file names.
        trackers: what opens them, by name.
    """

    config: RunConfig
    folder: Path
    num_sites: int
    command: str
    notes: tuple[str, ...] = ()
    method: Method | None = None
    trackers: Mapping[str, OpenTracker] = field(default_factory=dict)


@dataclass(frozen=True)
class Rounds:
    """What an engine needs for the rounds of a run that are left; its folder is held meanwhile.

    Attributes:
        listener: hears what happens.
        account: keeps the time.
    """

    run: Run
    listener: Listener
    account: Account

    def server_app(self, *, first: Listener = ignore) -> "ServerApp":
        """Return the ServerApp that does the rounds, whose events `first` hears before the listener. Imports torch."""
        from fedlora.server.app import server_app_for

        def listen(event: Event) -> None:
            first(event)
            self.listener(event)

        run = self.run
        return server_app_for(
            run.config,
            run.folder,
            num_sites=run.num_sites,
            command=run.command,
            listener=listen,
            account=self.account,
            method=run.method,
        )


Engine = Callable[[Rounds], None]
"""Runs the ServerApp of the rounds against its sites, to the end."""

WriteReport = Callable[["RunFolder", Sequence[RoundReport], Mapping[str, SiteDescription], tuple[str, ...]], None]
"""Writes report.html over the rounds so far, given what the sites said of themselves, and notes on the run."""


def whole_run(
    run: Run,
    engine: Engine,
    *,
    shown: AbstractContextManager[Listener],
    resume: bool = True,
    write_report: WriteReport | None = None,
) -> "Checkpoint | None":
    """Do the rounds that are left, and return what they have led to; None where no round is over.

    The report over the rounds so far is written while it runs, and again at its end, also where it is interrupted or
    has to stop.

    Args:
        shown: tells whoever looks on what happens; it begins once the folder is claimed.
        resume: whether a run that the folder holds already is gone on with; else it is refused.
        write_report: without it the report of a deployment, whose examples lie elsewhere.

    Raises:
        FedloraError: the folder is another run's, or the run cannot go on.
    """
    # Refused before anything is written.
    privacy = client_privacy_of(run.config, run.method or method_of(run.config))
    if privacy is not None:
        run = replace(run, notes=(*run.notes, *privacy.notes(run.config.federation.rounds)))
    with Claim(run.folder, run.config, resume=resume) as claim, shown as listener:
        account = Account(run.folder)
        heard = HeardSites(listener)
        if notes := (*claim.notes, *run.notes):
            heard(Noted(notes))

        tracking = Tracking(run.trackers, run.config, run.folder, say=lambda line: heard(Noted((line,))))

        def write(reports: Sequence[RoundReport]) -> None:
            _write_report(run, reports, heard.sites, (*run.notes, *tracking.failures), write_report)

        def write_so_far(reports: Sequence[RoundReport]) -> None:
            account.write()
            write(reports)

        try:
            # The account is closed before the last report, so that whoever tells the time tells the same.
            with account, tracking, RunningReport(write_so_far) as report:

                def listen(event: Event) -> None:
                    heard(event)
                    report.heard(event)
                    tracking.heard(event)

                engine(Rounds(run, listen, account))
        except BaseException:
            with suppress(StoreError):  # What has ended the run says more than that it has no report.
                _reported(run, write)
            raise
        return _reported(run, write)


def _reported(run: Run, write: Callable[[Sequence[RoundReport]], None]) -> "Checkpoint | None":
    """Return the newest round, with the report over all that are over written."""
    from fedlora.server.disk.store import RunFolder

    checkpoint = RunFolder(run.folder).latest()
    if checkpoint is not None:
        write(checkpoint.reports)
    return checkpoint


def _write_report(
    run: Run,
    reports: Sequence[RoundReport],
    sites: Mapping[str, SiteDescription],
    notes: tuple[str, ...],
    write_report: WriteReport | None,
) -> None:
    from fedlora.server import run_report
    from fedlora.server.disk.store import RunFolder

    folder = RunFolder(run.folder)
    if write_report is None:
        run_report.write_report(folder, run.config, reports, sites=sites, notes=notes)
    else:
        write_report(folder, reports, sites, notes)
