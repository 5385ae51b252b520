"""What a finished or interrupted run shows of itself: report.html, and how to load the model."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image

from fedlora.common.config import RunConfig
from fedlora.common.run_file import to_toml
from fedlora.server.report import ShownExample, render_report
from fedlora.server.round_report import RoundReport
from fedlora.server.store import RunFolder
from fedlora.training.data import Examples, FederatedData

_SHOWN_OF_A_KIND = 8


def write_report(folder: RunFolder, config: RunConfig, data: FederatedData, reports: Sequence[RoundReport]) -> None:
    """Write report.html over the rounds so far."""
    manifest = folder.manifest() or {}
    clients = f"{len(data.clients)} client{'s' if len(data.clients) > 1 else ''}"
    html = render_report(
        title=config.run.name,
        subtitle=f"{clients}, {config.model.name.rpartition('/')[2]}, rank {config.lora.rank}, "
        f"{config.aggregation.method}, seed {config.run.seed}",
        metric_name=str(manifest.get("metric", "metric")),
        num_rounds=config.federation.rounds,
        reports=reports,
        config_toml=to_toml(config),
        examples=_gallery(data, before=folder.predictions(0), after=folder.predictions(reports[-1].round)),
        load_code=load_code(folder.path, config),
        versions=cast(Mapping[str, str], manifest.get("versions", {})),
    )
    folder.write_report(html)


def load_code(folder: Path, config: RunConfig) -> str:
    """Return the Python that loads the run's model and judges an input."""
    given = "a text" if config.task.kind == "sequence_classification" else 'Image.open("picture.png")'
    imported = "" if config.task.kind == "sequence_classification" else "from PIL import Image\n"
    return (
        f"{imported}from fedlora.training.trained import load_trained\n\n"
        f'trained = load_trained("{folder}")\n'
        f"trained.predict([{given if imported else repr(given)}])"
    )


def _gallery(data: FederatedData, *, before: Mapping[int, int], after: Mapping[int, int]) -> list[ShownExample]:
    """Return some held-out examples that were learned and some that are still wrong, taken from the groups in turn."""
    judged = sorted(before.keys() & after.keys())
    labels = data.test.labels
    learned = [place for place in judged if before[place] != labels[place] == after[place]]
    wrong = [place for place in judged if after[place] != labels[place]]
    chosen = [place for places in (learned, wrong) for place in _in_turn(data.test, places)[:_SHOWN_OF_A_KIND]]
    return [_shown(data, place, before=before[place], after=after[place]) for place in chosen]


def _in_turn(test: Examples, places: Sequence[int]) -> list[int]:
    """Return `places` so that each group comes once before any comes twice; within a group, spread over its labels."""
    rank: dict[int, tuple[int, str]] = {}
    for group in np.unique(test.groups):
        own = [place for place in places if test.groups[place] == group]
        step = max(1, len(own) // _SHOWN_OF_A_KIND)
        for position, place in enumerate(own[::step]):
            rank[place] = (position, str(group))
    return sorted(rank, key=lambda place: rank[place])


def _shown(data: FederatedData, place: int, *, before: int, after: int) -> ShownExample:
    given = data.test.inputs[place]
    return ShownExample(
        group=str(data.test.groups[place]),
        label=data.labels[data.test.labels[place]],
        before=data.labels[before],
        after=data.labels[after],
        picture_png=None if isinstance(given, str) else _png(given),
        text=given if isinstance(given, str) else None,
    )


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()
