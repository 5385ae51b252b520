"""What a finished or interrupted run shows of itself: report.html, and how to load the model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from fedlora.common.config import RunConfig
from fedlora.common.run_file import to_toml
from fedlora.server.report import ShownExample, render_report
from fedlora.server.round_report import RoundReport
from fedlora.server.store import RunFolder


def write_report(
    folder: RunFolder,
    config: RunConfig,
    reports: Sequence[RoundReport],
    *,
    num_clients: int,
    examples: Sequence[ShownExample] = (),
) -> None:
    """Write report.html over the rounds so far; `examples` are held-out ones to show, where they may be shown."""
    manifest = folder.manifest() or {}
    clients = f"{num_clients} client{'' if num_clients == 1 else 's'}"
    html = render_report(
        title=config.run.name,
        subtitle=f"{clients}, {config.model.name.rpartition('/')[2]}, rank {config.lora.rank}, "
        f"{config.aggregation.method}, seed {config.run.seed}",
        metric_name=str(manifest.get("metric", "metric")),
        num_rounds=config.federation.rounds,
        reports=reports,
        config_toml=to_toml(config),
        examples=examples,
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
