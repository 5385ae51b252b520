"""The runs that the attacks are measured on, and what the server of each sees.

    outcome     digits dealt out to five clients by Dirichlet 0.5, fifty examples each: it learns them by heart
    picture     five clients with one picture each, and one step of plain SGD
    text        six clients with one text each, and one step of plain SGD

The last two begin from a start that the server has crafted.
"""

import csv
import gzip
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import privacy_attacks as attacks

from fedlora.adapters import Adapter, save_adapter, unpack
from fedlora.client.worker.workbench import Workbench
from fedlora.common.config import RunConfig
from fedlora.common.errors import DataError
from fedlora.common.messages import InitialiseRequest
from fedlora.common.packed_file import packed_bytes
from fedlora.common.random_streams import stream
from fedlora.common.resources import resolve_path
from fedlora.methods import METHODS
from fedlora.secure_sums.adapter_sums import AdapterSums, trained_paths
from fedlora.secure_sums.round_terms import read, unpacked_vector
from fedlora.server.disk.sum_journal import SumJournal
from fedlora.server.record.events import EvaluationStarted, Event
from fedlora.simulation import SimulationResult, preset, simulate
from fedlora.training.data import load_federated_data

_DIGITS, _TEXTS = "package:fedlora.embedded/digits5.npz", "package:fedlora.embedded/emoji_text.csv.gz"
# Of each domain or language.
_NUM_SMALL, _NUM_OTHERS = 100, 20
_ONE_STEP = (
    "train.optimizer=sgd",
    "train.momentum=0",
    "train.optimizer_state=reset",
    "train.steps=1",
    "train.learning_rate=1e-2",
    "data.validation=0",
    "federation.rounds=1",
    "evaluation.round_examples=8",
)
_OUTCOME = (
    "lora.exclude_modules=.*layer[.][0-9][.].*",
    "train.frozen_cache_megabytes=900",
    "train.steps=8",
    "federation.rounds=12",
    "data.test=0.5",
    "data.validation=0",
    "partition.by=dirichlet",
    "partition.num_clients=5",
    "partition.alpha=0.5",
    "evaluation.round_examples=8",
)


@dataclass(frozen=True, eq=False)
class Seen:
    """What a server has had in its hands in the first round.

    Attributes:
        start: the adapter that clients were sent.
        updates: by client what the server knows of its update. Where it knows sums alone that is the mean of all.
    """

    start: Adapter
    updates: Mapping[str, Adapter]


@dataclass(frozen=True, eq=False)
class SmallRun:
    """A run that is over.

    Attributes:
        config: the run's.
        result: what it left.
        seen: by its server.
    """

    config: RunConfig
    result: SimulationResult
    seen: Seen


def outcome_run(folder: Path, *, draw: int, overrides: Sequence[str]) -> SmallRun:
    """Run the first of the three in `folder`."""
    folder.mkdir(parents=True)
    _write_digits(folder / "digits.npz", None, draw=draw, num=_NUM_SMALL)
    config = preset("digits", f"run.seed={draw}", f"data.path={folder / 'digits.npz'}", *_OUTCOME, *overrides)
    return run_and_keep(config, folder)


def picture_run(folder: Path, *, draw: int, overrides: Sequence[str], num: int = 1) -> SmallRun:
    """Run the second in `folder`, with `num` pictures a client, all of them in its step."""
    folder.mkdir(parents=True)
    _write_digits(folder / "digits.npz", folder / "others.npz", draw=draw, num=num)
    labels = json.dumps([str(label) for label in range(10)])
    return _crafted("digits", folder, "digits.npz", "others.npz", labels, draw=draw, num=num, overrides=overrides)


def text_run(folder: Path, *, draw: int, overrides: Sequence[str], num: int = 1) -> SmallRun:
    """Run the third in `folder`, with `num` texts a client, all of them in its step."""
    folder.mkdir(parents=True)
    labels = json.dumps(_write_texts(folder / "texts.csv", folder / "others.csv", draw=draw, num=num))
    of_languages = ["partition.by=group", "data.split_by=text", *overrides]
    return _crafted("emoji", folder, "texts.csv", "others.csv", labels, draw=draw, num=num, overrides=of_languages)


def run_and_keep(config: RunConfig, folder: Path) -> SmallRun:
    """Run it in `folder`, and keep what its server has of the first round, which it removes when the round is over.

    The round has to be judged on held-out examples: that is when it is kept.
    """
    run, kept = folder / "run", folder / "seen"

    def keep(event: Event) -> None:
        if event == EvaluationStarted(1):
            shutil.copytree(run / "rounds" / "0001", kept)
            shutil.copy(run / "rounds" / "0000" / "adapter.safetensors", kept / "start.safetensors")

    result = simulate(config, out=run, num_workers=1, listener=keep)
    return SmallRun(config, result, seen_by_server(kept, clients=sorted(result.reports[1].clients)))


def _crafted(
    name: str,
    folder: Path,
    data: str,
    others: str,
    labels: str,
    *,
    draw: int,
    num: int,
    overrides: Sequence[str],
) -> SmallRun:
    of_data = [f"data.path={folder / data}", f"data.test={folder / others}", f"data.labels={labels}"]
    settings = [f"run.seed={draw}", f"train.batch_size={num}", *of_data, *_ONE_STEP, *overrides]
    config = preset(name, *settings)
    # It gives the first adapter alone, for which it needs no folder to keep anything in.
    of_first = [setting for setting in settings if not setting.startswith(("privacy.", "train.optimizer_state"))]
    bench = Workbench(preset(name, *of_first, "train.optimizer_state=reset"), load_federated_data(config))
    start = unpack(packed_bytes(bench.initialise(InitialiseRequest(draw)).adapter))
    save_adapter(attacks.crafted_start(start, seed=draw), folder / "start")
    return run_and_keep(preset(name, *settings, f"federation.start_from={folder / 'start'}"), folder)


def seen_by_server(kept: Path, *, clients: Sequence[str]) -> Seen:
    """Return what is in the folder of a round that is not over yet: accepted updates, or the totals of its sums.

    Args:
        kept: that folder, with the adapter before it as start.safetensors.
        clients: of the round.
    """
    start = unpack((kept / "start.safetensors").read_bytes())
    updates = {
        json.loads(receipt.read_bytes())["client"]: unpack(receipt.with_suffix(".safetensors").read_bytes())
        for receipt in sorted((kept / "updates").glob("*.json"))
    }
    if not updates:
        updates = dict.fromkeys(clients, mean_of_sums(SumJournal(kept / "sums"), start))
    return Seen(start, updates)


def mean_of_sums(journal: SumJournal, start: Adapter) -> Adapter:
    """Return the mean of the clients' updates, which is what the first total of a round's sums says.

    Raises:
        DataError: there is no total.
    """
    terms, total = journal.terms(), journal.total(0)
    if terms is None or total is None:
        raise DataError("the round has left neither updates nor sums")
    sums = AdapterSums(METHODS["fedit"](), start, only=trained_paths(start, ("A", "B")))
    sums.take(read(unpacked_vector(total, sum(sums.sizes())), terms, index=0))
    return sums.result()


def _write_digits(path: Path, others: Path | None, *, draw: int, num: int) -> None:
    """Write `num` digits of each domain, and some of the others for who is to know what digits look like."""
    given = np.load(resolve_path(_DIGITS, error=DataError))
    chosen: dict[str, np.ndarray] = {}
    left: dict[str, np.ndarray] = {}
    for domain in sorted(name.removesuffix("_images") for name in given if name.endswith("_images")):
        rows = stream(draw, purpose="digits", client=domain).permutation(len(given[f"{domain}_labels"]))
        for what in ("images", "labels"):
            chosen[f"{domain}_{what}"] = given[f"{domain}_{what}"][rows[:num]]
            left[f"{domain}_{what}"] = given[f"{domain}_{what}"][rows[num : num + _NUM_OTHERS]]
    for file, arrays in ((path, chosen), (others, left)):
        if file is not None:
            np.savez(file, **arrays)  # type: ignore[arg-type]


def _write_texts(path: Path, others: Path, *, draw: int, num: int) -> list[str]:
    """Write `num` texts of each language, some of the others beside them, and return all labels."""
    with gzip.open(str(resolve_path(_TEXTS, error=DataError)), "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    chosen, left = [], []
    for language in sorted({row["language"] for row in rows}):
        of_language = [row for row in rows if row["language"] == language]
        order = stream(draw, purpose="texts", client=language).permutation(len(of_language))
        chosen += [of_language[place] for place in order[:num]]
        left += [of_language[place] for place in order[num : num + _NUM_OTHERS]]
    texts = {row["text"] for row in chosen}
    left = [row for row in left if row["text"] not in texts]
    for target, written in ((path, chosen), (others, left)):
        with target.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(written)
    return sorted({row["group"] for row in rows})
