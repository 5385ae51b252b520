"""What a finished or interrupted run shows of itself: report.html, and how to load the model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from fedlora.common.config import RunConfig
from fedlora.common.messages import SiteDescription
from fedlora.common.run_file import to_toml
from fedlora.common.run_folder import BEST_FOLDER
from fedlora.server.disk.account import seconds_worked
from fedlora.server.disk.store import RunFolder
from fedlora.server.disk.withheld import withheld_rounds
from fedlora.server.record.round_report import RoundReport
from fedlora.server.report import Holding, Holdings, ShownAnswer, ShownExample, render_report
from fedlora.server.report.data_notes import left_out_parts
from fedlora.server.report.run_line import summary


def write_report(
    folder: RunFolder,
    config: RunConfig,
    reports: Sequence[RoundReport],
    *,
    num_clients: int | None = None,
    examples: Sequence[ShownExample] = (),
    shown_answers: Sequence[ShownAnswer] = (),
    holdings: Holdings | None = None,
    sites: Mapping[str, SiteDescription] | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Write report.html over the rounds so far.

    Args:
        num_clients: without it as many as the sites, or as are waited for where none is known.
        examples, shown_answers: held-out ones to show, where they may be shown.
        holdings: who holds what; without it what the sites said of themselves.
        sites: what they said, where the folder does not hold it.
        notes: on the run file, in a line each, such as settings that do nothing.
    """
    manifest = folder.manifest() or {}
    sites = sites or folder.sites()
    if num_clients is None:
        num_clients = len(sites) or config.federation.sites
    html = render_report(
        title=config.run.name,
        subtitle=summary(config, num_clients=num_clients),
        metric_name=folder.metric_name,
        num_rounds=config.federation.rounds,
        reports=reports,
        config_toml=to_toml(config),
        worked=seconds_worked(folder.path),
        examples=examples,
        shown_answers=shown_answers,
        holdings=holdings or _holdings_of_sites(sites),
        load_code=load_code(folder.path, config),
        notes=notes,
        versions=cast(Mapping[str, str], manifest.get("versions", {})),
        unpublished=withheld_rounds(folder.path),
    )
    folder.write_report(html)


def load_code(folder: Path, config: RunConfig) -> str:
    """Return the Python that loads the run's model and gives it an input."""
    imported, use = {
        "image_classification": ("from PIL import Image\n", 'predict([Image.open("picture.png")])'),
        "sequence_classification": ("", "predict(['a text'])"),
        "causal_lm": ("", 'generate(["a question"])'),
        "own": ("", "model  # takes what the task makes of examples: trained.task.prepare, .collate"),
    }[config.task.kind]
    best = '  # with adapter="best": that of the best round' if (folder / BEST_FOLDER).is_dir() else ""
    return (
        f"{imported}from fedlora.training.trained import load_trained\n\n"
        f'trained = load_trained("{folder}"){best}\n'
        f"trained.{use}"
    )


def _holdings_of_sites(sites: Mapping[str, SiteDescription]) -> Holdings | None:
    """Return what the sites said that they hold; None before they have."""
    if not sites:
        return None
    descriptions = list(sites.values())
    own = [site.num_held_out for site in descriptions if site.has_own_held_out]
    return Holdings(
        [Holding(name, site.num_examples, site.num_validation) for name, site in sorted(sites.items())],
        num_test=sum(own) if own else descriptions[0].num_held_out,
        partition="Each site brings its own examples, and tells only how many they are.",
        noun="site",
        left_out=left_out_parts(sites),
    )
