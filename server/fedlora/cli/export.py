"""`fedlora export`: a finished run's adapter, or the whole model, for who does not have fedlora."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from fedlora.cli.json_output import print_json
from fedlora.cli.outputs import FolderWritten
from fedlora.common.errors import ConfigError, StoreError
from fedlora.common.parsing import json_in
from fedlora.common.run_folder import BEST_RECORD, MANIFEST_FILE, ROUNDS_FILE
from fedlora.finished.export import Exported, export_run
from fedlora.finished.finished_run import Choice, FinishedRun, open_finished
from fedlora.finished.model_card import History
from fedlora.server.record.best_round import validation_scores
from fedlora.server.record.round_report import CODEC, RoundReport
from fedlora.server.report.wording import size_text

_CHOICES = ("newest", "best")


@dataclass(frozen=True)
class Options:
    """What was typed."""

    run_folder: Path
    out: Path
    is_merged: bool
    adapter: str
    as_json: bool = False


def run_export(options: Options) -> None:
    """Write the folder, and print what is in it.

    Raises:
        FedloraError: it cannot work; the caller prints why, and nothing was written.
    """
    if options.adapter not in _CHOICES:
        raise ConfigError(f"--adapter is {options.adapter!r}; expected newest or best")
    run = open_finished(options.run_folder, cast(Choice, options.adapter))
    exported = export_run(run, options.out, history_of(run), merge=options.is_merged)
    if options.as_json:
        check = exported.check
        print_json(
            FolderWritten(
                str(exported.folder), exported.base_model, check is not None, exported.size_bytes,
                None if check is None else float(check.saved),
            )
        )  # fmt: skip
    else:
        _print(exported)


def history_of(run: FinishedRun) -> History:
    """Return how a run's chosen adapter came about, as far as the folder says.

    Raises:
        StoreError: rounds.jsonl is damaged.
    """
    reports = _reports(run.folder / ROUNDS_FILE)
    number = _best_round(run) if run.adapter_folder.name == "best" else len(reports) - 1
    start, end = (reports[place].held_out if 0 <= place < len(reports) else None for place in (0, number))
    by_clients = validation_scores(reports) if end is None else {}
    return History(
        run=run.config.run.name,
        method=run.config.method_name,
        round=number if 0 <= number < len(reports) else None,
        num_rounds=max(0, len(reports) - 1),
        num_clients=len({client for report in reports for client in report.clients}),
        metric_name=_metric_name(run.folder),
        judged_on="held-out examples" if end is not None else "validation examples of the clients",
        start=by_clients.get(0) if start is None else start.overall,
        end=by_clients.get(number) if end is None else end.overall,
        groups={} if end is None else end.groups,
    )


def _reports(path: Path) -> Sequence[RoundReport]:
    try:
        # What comes after the last end of a line, a run is about to write.
        return [CODEC.load(line) for line in path.read_bytes().split(b"\n")[:-1]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} is damaged ({error}); the same run with --resume writes it anew") from error


def _best_round(run: FinishedRun) -> int:
    try:
        return int(json_in((run.folder / BEST_RECORD).read_bytes())["round"])
    except (OSError, ValueError, LookupError, TypeError):
        return -1


def _metric_name(folder: Path) -> str:
    content = json_in((folder / MANIFEST_FILE).read_bytes())
    return str(content.get("metric", "accuracy"))


def _print(exported: Exported) -> None:
    what = "the whole model" if exported.check else f"an adapter of {exported.base_model}"
    print(f"wrote {exported.folder}: {what}, {size_text(exported.size_bytes)}")
    if (check := exported.check) is not None:
        print(
            f"checked on {check.num_inputs} inputs: logits differ by at most {check.saved:.3g} from those of the "
            f"adapter on its base (allowed {check.tolerance:.3g}, their range is {check.logits_range:.3g})"
        )
        if check.dtype != "float32":
            print(f"merged in float32, where they differ by {check.merged:.3g}; saved in {check.dtype}")
    elif not exported.is_on_hub:
        print("the base model is a folder of this machine; README.md says what to change elsewhere")
