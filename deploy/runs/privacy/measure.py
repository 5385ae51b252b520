"""Measure what is read of clients in an open run, in one of secure sums, and in any other: one table.

    python deploy/runs/privacy/measure.py                                   # open and secure, three draws each
    python deploy/runs/privacy/measure.py --run NAME section.key=value ...  # the same runs with this set, as NAME

Each line of the table is three runs (`small_runs`) and what attacks (`privacy_attacks`) read in what their servers see.
What was measured under a name is not measured again; --out holds the table, results.md, and all numbers, results.json.
"""

import argparse
import json
import shutil
import statistics
import sys
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import privacy_attacks as attacks
import torch
from small_runs import SmallRun, outcome_run, picture_run, text_run
from torch import Tensor

from fedlora.common.errors import FedloraError
from fedlora.common.files import write_file
from fedlora.models.base_model import BaseModel, load_base_model
from fedlora.training.data import Examples, FederatedData, load_federated_data
from fedlora.training.trained import TrainedModel, load_trained

_KNOWN = {"open": (), "secure": ("privacy.secure_sums=true",)}


@dataclass(frozen=True)
class Read:
    """How much an attack reads, and how much is read by who guesses without having seen anything of the client."""

    score: float
    guess: float


@dataclass(frozen=True)
class Measured:
    """A line of the table for one draw.

    Attributes:
        name: of the line.
        draw: the runs' seed.
        overrides: what differs from an open run.
        num: examples of a client in the runs of one step.
        accuracy: of the first run, on held-out examples.
        epsilon: of the first run, None where it has no budget.
        labels: what of the clients' shares of labels the server's estimate has in common with them, of 1.
        pictures: the correlation of the reconstructed with the true picture; of the mean of others as a guess.
        tokens: the share of a text's tokens among as many best guesses; the most frequent ones of others as a guess.
        all_tokens: the same of all clients' texts together, without asking whose they are.
        members: the chance to tell an example that was trained on from another.
        members_found: the share that is found of those where a hundredth of the others is taken for one.
    """

    name: str
    draw: int
    overrides: tuple[str, ...]
    num: int
    accuracy: float
    epsilon: float | None
    labels: Read
    pictures: Read
    tokens: Read
    all_tokens: Read
    members: Read
    members_found: Read


def measured(name: str, overrides: Sequence[str], *, draw: int, num: int, folder: Path) -> Measured:
    """Return what is read in the three runs, which are done in `folder`."""
    shutil.rmtree(folder, ignore_errors=True)  # of a measurement that was cut off
    outcome = outcome_run(folder / "outcome", draw=draw, overrides=overrides)
    held_out = outcome.result.reports[-1].held_out
    found = members_read(outcome)
    tokens, all_tokens = tokens_read(text_run(folder / "text", draw=draw, overrides=overrides, num=num))
    return Measured(
        name=name,
        draw=draw,
        overrides=tuple(overrides),
        num=num,
        accuracy=held_out.overall.metric if held_out else float("nan"),
        epsilon=epsilon_of(outcome.result.folder),
        labels=labels_read(outcome),
        pictures=pictures_read(picture_run(folder / "picture", draw=draw, overrides=overrides, num=num)),
        tokens=tokens,
        all_tokens=all_tokens,
        members=Read(found.auc, 0.5),
        members_found=Read(found.found, 0.01),
    )


def labels_read(run: SmallRun) -> Read:
    """Return how well the clients' shares of labels are read; as a guess those of all clients together."""
    data = load_federated_data(run.config)
    held = {name: client.training.labels for name, client in data.clients.items()}
    of_all = _shares(np.concatenate(list(held.values())), len(data.labels))
    scores, guesses = [], []
    for client, update in run.seen.updates.items():
        truth = _shares(held[client], len(data.labels))
        scores.append(attacks.overlap(attacks.label_shares(update, run.seen.start), truth))
        guesses.append(attacks.overlap(of_all, truth))
    return _mean(scores, guesses)


def pictures_read(run: SmallRun) -> Read:
    """Return how well the clients' pictures are read; as a guess the mean of others of the same domain."""
    data, side = load_federated_data(run.config), run.config.task.image_size  # type: ignore[union-attr]
    base = load_base_model(run.config, data.labels)
    layers = _first_layers(base, data, run)
    images = attacks.patch_images(
        layers, lambda pictures: _pixel_values(base, pictures), side=side, patch=_settings(base).patch_size
    )
    scores, guesses = [], []
    for client, update in run.seen.updates.items():
        span = attacks.input_span(update, run.seen.start, layers.paths)
        found = attacks.picture_in(span, layers, images)
        mean = _grey(data.test)[torch.from_numpy(data.test.groups == client)].mean(0)
        for truth in _grey(data.clients[client].training):
            scores.append(attacks.likeness(found, truth))
            guesses.append(attacks.likeness(mean, truth))
    return _mean(scores, guesses)


def tokens_read(run: SmallRun) -> tuple[Read, Read]:
    """Return how well each client's tokens are read, and those of all clients together, whosever they are.

    A guess is the most frequent tokens of others' texts.
    """
    data = load_federated_data(run.config)
    base = load_base_model(run.config, data.labels)
    layers = _first_layers(base, data, run)
    special = set(base.tokenizer.all_special_ids)
    texts = {client: _token_ids(base, data.clients[client].training) for client in run.seen.updates}
    truths = {client: {token for ids in of_client for token in ids} - special for client, of_client in texts.items()}
    everybody = set.union(*truths.values())
    # Of sums there is one update, and one ranking.
    updates = {id(update): update for update in run.seen.updates.values()}
    spans = [attacks.input_span(update, run.seen.start, layers.paths) for update in updates.values()]
    length = max(len(ids) for of_client in texts.values() for ids in of_client)
    found = attacks.likely_tokens(spans, layers, num_tokens=_settings(base).vocab_size, length=length)
    ranked = {
        key: [token for token in tokens if token not in special] for key, tokens in zip(updates, found, strict=True)
    }
    counted = Counter(token for ids in _token_ids(base, data.test) for token in ids if token not in special)
    usual = [token for token, _ in counted.most_common()]
    scores, guesses = [], []
    for client, update in run.seen.updates.items():
        scores.append(_found_of(truths[client], ranked[id(update)]))
        guesses.append(_found_of(truths[client], usual))
    together = [token for place in zip(*ranked.values(), strict=True) for token in place]
    of_all = Read(_found_of(everybody, list(dict.fromkeys(together))), _found_of(everybody, usual))
    return _mean(scores, guesses), of_all


def _found_of(truth: set[int], ranked: Sequence[int]) -> float:
    """Return what share of the true tokens is among as many of the first."""
    return len(truth & set(ranked[: len(truth)])) / len(truth)


def members_read(run: SmallRun) -> attacks.Membership:
    """Return how well examples that were trained on are told from held-out ones by the final adapter."""
    data, trained = load_federated_data(run.config), load_trained(run.result.folder)
    losses = [_losses(trained, held.training) for held in data.clients.values()]
    return attacks.membership(np.concatenate(losses), _losses(trained, data.test))


def epsilon_of(folder: Path) -> float | None:
    """Return what a run says that its adapters tell at most: its last report, or else the budget of its run file."""
    last = json.loads((folder / "rounds.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    settings = tomllib.loads((folder / "run.toml").read_text(encoding="utf-8"))
    found = last.get("epsilon") or settings.get("privacy", {}).get("epsilon")
    return None if found is None else float(found)


def _shares(labels: npt.NDArray[np.int64], num_labels: int) -> attacks.Numbers:
    return np.bincount(labels, minlength=num_labels) / len(labels)


def _settings(base: BaseModel) -> Any:
    """Return transformers' configuration of the model."""
    return base.module.config


def _first_layers(base: BaseModel, data: FederatedData, run: SmallRun) -> attacks.FirstLayers:
    one = base.task.collate(base.task.prepare(data.test.take([0])), np.arange(1))
    return attacks.first_layers(base.module, list(run.seen.start.layers), one.inputs)


def _pixel_values(base: BaseModel, pictures: Tensor) -> Tensor:
    """Return what the model is given for grey pictures (n, side, side) of numbers from 0 to 1.

    The task takes whole numbers: what black and white become says what is between them.
    """
    ends = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None].expand(-1, *pictures.shape[1:], 1)
    nobody = np.array(["", ""], dtype=np.object_)
    batch = base.task.collate(base.task.prepare(Examples(ends.numpy(), np.zeros(2, np.int64), nobody)), np.arange(2))
    black, white = batch.inputs["pixel_values"]
    values: Tensor = black + (white - black) * pictures[:, None]
    return values


def _grey(examples: Examples) -> Tensor:
    """Return pictures as (n, side, side) of numbers from 0 to 1."""
    return torch.from_numpy(np.asarray(examples.inputs)).double().mean(-1) / 255


def _token_ids(base: BaseModel, examples: Examples) -> list[list[int]]:
    return [ids.tolist() for ids in base.task.prepare(examples).token_ids]


@torch.no_grad()
def _losses(trained: TrainedModel, examples: Examples) -> attacks.Numbers:
    prepared, found = trained.task.prepare(examples), []
    for begin in range(0, len(examples), trained.batch_size):
        batch = trained.task.collate(prepared, np.arange(len(examples))[begin : begin + trained.batch_size])
        losses, _, _ = trained.task.judge(trained.model(**batch.inputs), batch)
        found.append(losses.double().numpy())
    return np.concatenate(found)


def _mean(scores: Sequence[float], guesses: Sequence[float]) -> Read:
    return Read(statistics.fmean(scores), statistics.fmean(guesses))


COLUMNS = {
    "labels": "labels of a client",
    "pictures": "a picture",
    "tokens": "tokens of a text",
    "all_tokens": "of all texts",
    "members": "members",
    "members_found": "members, 1 % wrong",
}


def table(found: Sequence[Measured]) -> str:
    """Return all that was measured, something at least: means over draws, with the least and the most."""
    lines = [["run", "accuracy", "epsilon", *COLUMNS.values()], ["---"] * (3 + len(COLUMNS))]
    guesses = [_spread([getattr(each, column).guess for each in found]) for column in COLUMNS]
    lines.append(["a guess", "", "none", *guesses])
    for name in dict.fromkeys(each.name for each in found):
        line = [each for each in found if each.name == name]
        epsilons = [each.epsilon for each in line if each.epsilon is not None]
        lines.append(
            [
                name,
                _spread([each.accuracy for each in line]),
                f"{max(epsilons):.3g}" if epsilons else "none",
                *(_spread([getattr(each, column).score for each in line]) for column in COLUMNS),
            ]
        )
    return "".join(f"| {' | '.join(line)} |\n".replace("|  |", "| |") for line in lines)


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def known_in(out: Path) -> list[Measured]:
    """Return what was measured before."""
    try:
        rows: list[dict[str, Any]] = json.loads((out / "results.json").read_bytes())
    except FileNotFoundError:
        return []
    return [
        Measured(**row | {"overrides": tuple(row["overrides"])} | {name: Read(**row[name]) for name in COLUMNS})
        for row in rows
    ]


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", nargs="+", metavar=("NAME", "KEY=VALUE"), help="instead of open and secure")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--examples", type=int, default=1, help="of a client in the runs of one step")
    parser.add_argument("--out", type=Path, default=Path("runs/privacy"))
    chosen = parser.parse_args(words)
    wanted = {chosen.run[0]: tuple(chosen.run[1:])} if chosen.run else _KNOWN
    found = known_in(chosen.out)
    for draw in range(chosen.draws):
        for name, overrides in wanted.items():
            before = [each for each in found if each.name == name]
            if any((each.overrides, each.num) != (overrides, chosen.examples) for each in before):
                sys.exit(f"error: {name} was measured with other settings; give this one another name")
            if any(each.draw == draw for each in before):
                continue
            place = chosen.out.resolve() / f"{name}-{draw}"
            try:
                found.append(measured(name, overrides, draw=draw, num=chosen.examples, folder=place))
            except FedloraError as error:
                sys.exit(f"error: {name}: {error}")
            write_file(chosen.out / "results.json", json.dumps([asdict(each) for each in found], indent=1) + "\n")
            write_file(chosen.out / "results.md", table(found))
            print(table(found), flush=True)


if __name__ == "__main__":
    main()
