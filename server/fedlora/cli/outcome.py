"""A run's outcome as --json prints it. Pure but for what lies in its folder."""

from collections.abc import Sequence
from pathlib import Path

from fedlora.cli.outputs import Outcome
from fedlora.common.run_folder import ADAPTER_FOLDER, BEST_FOLDER, REPORT_FILE
from fedlora.server.disk.account import seconds_worked
from fedlora.server.record.round_report import RoundReport
from fedlora.server.record.totals import run_seconds, trained
from fedlora.server.report.numbers import group_gains, overall_gain, refusals


def outcome_of(run: str, folder: Path, reports: Sequence[RoundReport], metric_name: str) -> Outcome:
    """Return what a run's rounds have led to."""
    total = overall_gain(reports)
    best = folder / BEST_FOLDER
    return Outcome(
        run=run,
        folder=str(folder),
        adapter=str(folder / ADAPTER_FOLDER),
        best=str(best) if best.is_dir() else None,
        report=str(folder / REPORT_FILE),
        rounds=len(trained(reports)),
        ended_early=bool(reports) and reports[-1].ended_early,
        metric=metric_name,
        before=None if total is None else total.before,
        after=None if total is None else total.after,
        groups={gain.name: (gain.before, gain.after) for gain in group_gains(reports)},
        refused=sum(len(refusal.rounds) for refusal in refusals(reports)),
        seconds=run_seconds(reports, seconds_worked(folder)),
        epsilon=reports[-1].epsilon if reports else None,
    )
