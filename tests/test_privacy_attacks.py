"""The attacks of deploy/runs/privacy/: each reads what it is for in an open run, and no client's in a run of sums.

The models are tiny, and so are the examples; what is asserted is far from both chance and failure.
"""

import csv
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1] / "deploy" / "runs" / "privacy"))
sys.path.append(str(Path(__file__).parent / "secure_sums"))

import measure
import privacy_attacks as attacks
from small_runs import Seen, SmallRun, run_and_keep
from sums import Signers, introduced, plan_of

from fedlora.adapters import Adapter, pack, save_adapter, unpack
from fedlora.client.worker.workbench import Workbench
from fedlora.common.config import RunConfig
from fedlora.common.messages import InitialiseRequest, SumTerms, TrainRequest
from fedlora.common.packed_file import packed_bytes
from fedlora.methods import METHODS
from fedlora.models.base_model import load_base_model
from fedlora.secure_sums.adapter_sums import AdapterSums
from fedlora.secure_sums.keys import RoundKeys
from fedlora.secure_sums.member import Member
from fedlora.secure_sums.round_terms import read, share_of, written
from fedlora.simulation import simulate
from fedlora.training.data import load_federated_data

MakeRun = Callable[..., RunConfig]
WORDS = ("good", "great", "fine", "bad", "poor", "awful")
DOMAINS = ("ash", "birch", "cedar")
ONE_STEP = {"steps": 1, "batch_size": 1, "optimizer": "sgd", "momentum": 0.0, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def finer_vision_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a ViT whose tokens have more numbers than a patch has pixels, as those in use have."""
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
        image_size=8,
        patch_size=4,
        initializer_range=0.2,
    )
    folder = tmp_path_factory.mktemp("models") / "finer-vit"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def run_from_a_crafted_start(config: RunConfig, folder: Path, *, is_secure: bool) -> SmallRun:
    """Return a run of one round from what a malicious server sends."""
    bench = Workbench(config, load_federated_data(config))
    start = unpack(packed_bytes(bench.initialise(InitialiseRequest(config.run.seed)).adapter))
    save_adapter(attacks.crafted_start(start), folder / "start")
    sections = config.model_dump()
    sections["federation"] |= {"rounds": 1, "start_from": str(folder / "start")}
    sections["privacy"] |= {"secure_sums": is_secure}
    return run_and_keep(RunConfig.model_validate(sections), folder)


@pytest.fixture(scope="module")
def picture_runs(
    vision_run: MakeRun, finer_vision_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, SmallRun]:
    """Return an open run and a secure one of three clients with a picture each, of another label each."""
    folder, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name, num in (("one", 1), ("others", 6)):
        arrays: dict[str, np.ndarray] = {}
        for label, domain in enumerate(DOMAINS):
            arrays[f"{domain}_images"] = draw.integers(0, 256, (num, 8, 8), dtype=np.uint8)
            arrays[f"{domain}_labels"] = np.full(num, label)
        np.savez(folder / f"{name}.npz", **arrays)  # type: ignore[arg-type]
    config = vision_run(
        model={"name": str(finer_vision_model)},
        task={"image_size": 8},
        data={"path": str(folder / "one.npz"), "test": str(folder / "others.npz"), "validation": 0.0},
        train=ONE_STEP,
    )
    return {
        name: run_from_a_crafted_start(config, folder / name, is_secure=is_secure)
        for name, is_secure in (("open", False), ("secure", True))
    }


@pytest.fixture(scope="module")
def text_runs(
    text_run: MakeRun, tiny_text_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, SmallRun]:
    """Return an open run and a secure one of three clients with a text each, and a secure one of a larger rank."""
    folder = tmp_path_factory.mktemp("texts")
    ones = ("good film not bad", "the great very awful", "poor fine was and")
    others = ("the film was the film", "a film and a film", "not the film a was")
    for name, texts in (("ones", ones), ("others", others)):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("text", "label", "source"))
            writer.writerows((text, str(place % 2), DOMAINS[place]) for place, text in enumerate(texts))
    model = without_dropout(tiny_text_model, folder / "model")
    settings = {
        "model": {"name": str(model)},
        "data": {"path": str(folder / "ones.csv"), "test": str(folder / "others.csv"), "validation": 0.0},
        "train": ONE_STEP,
    }
    return {
        name: run_from_a_crafted_start(
            text_run(**settings, lora={"rank": rank}), folder / name, is_secure=name != "open"
        )
        for name, rank in (("open", 4), ("secure", 4), ("wide", 10))
    }


def without_dropout(model: Path, folder: Path) -> Path:
    """Return a copy of a model in which no input is blurred: a tiny one has few numbers to know a token by."""
    shutil.copytree(model, folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "hidden_dropout_prob": 0.0}))
    return folder


def test_an_open_server_reads_a_client_s_picture_and_its_label(picture_runs: dict[str, SmallRun]) -> None:
    pictures, labels = (how(picture_runs["open"]) for how in (measure.pictures_read, measure.labels_read))
    assert pictures.score > 0.99
    assert abs(pictures.guess) < 0.5
    assert labels.score > 0.6
    assert labels.guess == pytest.approx(1 / 3)


def test_of_sums_no_client_s_picture_nor_label_is_read(picture_runs: dict[str, SmallRun]) -> None:
    run = picture_runs["secure"]
    pictures, labels = (how(run) for how in (measure.pictures_read, measure.labels_read))
    assert abs(pictures.score) < 0.5
    assert labels.score < 0.5


def test_all_that_a_server_of_sums_keeps_of_a_round_is_their_totals(picture_runs: dict[str, SmallRun]) -> None:
    """Beside them there is what members have signed and sealed, in which no number of an update is."""
    run = picture_runs["secure"]
    kept = run.result.folder.parent / "seen"
    large = {str(path.relative_to(kept)) for path in kept.rglob("*") if path.is_file() and b"F32" in path.read_bytes()}
    assert large == {"adapter.safetensors", "start.safetensors"}
    totals = {path.name for path in (kept / "sums").glob("*/total-*")}
    assert totals == {"total-0", "total-1"}
    assert not (kept / "updates").exists()
    assert len({id(update) for update in run.seen.updates.values()}) == 1


def test_a_hidden_vector_shows_nothing(picture_runs: dict[str, SmallRun]) -> None:
    """What one member adds to a sum, taken for the sum itself."""
    run = picture_runs["open"]
    plan = plan_of(3)
    signers, secrets = Signers(plan.members), {name: RoundKeys.made(plan.num_sums) for name in plan.members}
    members = {
        name: Member(plan, name, secrets[name], sign=signers.sign(name), verify=signers.verify) for name in plan.members
    }
    introduced(plan, members)
    terms = SumTerms(plan.members, threshold=2, repetition=0, most_examples=0, most_change=0.0, clips=(64.0, 64.0))
    start, update = run.seen.start, run.seen.updates["ash"]
    sums = AdapterSums(METHODS["fedit"](), start)
    vector = written(sums.term(update), terms, index=0, weight=share_of(terms, 1)).vector
    plain, hidden = vector, members[plan.members[0]].masked(0, vector)
    shown = {}
    for name, each in (("plain", plain), ("hidden", hidden)):
        found = read(each, terms, index=0)
        found[-1] = share_of(terms, 1)
        taken = AdapterSums(METHODS["fedit"](), start)
        taken.take(found)
        seen = replace(run.seen, updates={"ash": taken.result()})
        shown[name] = measure.pictures_read(replace(run, seen=seen)).score
    assert shown["plain"] > 0.8
    assert abs(shown["hidden"]) < 0.6


def test_an_open_server_reads_a_text_s_tokens(text_runs: dict[str, SmallRun]) -> None:
    of_each, of_all = measure.tokens_read(text_runs["open"])
    assert of_each.score == of_all.score == 1.0
    assert of_each.guess < 0.5


def test_of_sums_no_client_s_tokens_are_read(text_runs: dict[str, SmallRun]) -> None:
    of_each, _ = measure.tokens_read(text_runs["secure"])
    assert of_each.score < 0.6


def test_of_a_clipped_update_under_noise_nothing_is_read(
    picture_runs: dict[str, SmallRun], text_runs: dict[str, SmallRun]
) -> None:
    """Noise of the clip's own size on each number, as a budget has it: the clip alone hides nothing."""
    for runs, how in (
        (picture_runs, measure.pictures_read),
        (text_runs, lambda run: measure.tokens_read(run)[0]),
    ):
        run, scores = runs["open"], {}
        for noise_multiplier in (0.0, 1.0):
            updates = {
                client: clipped_and_noised(update, run.seen.start, noise_multiplier=noise_multiplier)
                for client, update in run.seen.updates.items()
            }
            scores[noise_multiplier] = how(replace(run, seen=replace(run.seen, updates=updates))).score
        assert scores[0.0] > 0.99
        assert abs(scores[1.0]) < 0.6


def clipped_and_noised(update: Adapter, start: Adapter, *, noise_multiplier: float) -> Adapter:
    """Return the update with the change of its pairs clipped to half its norm, and noise on every number."""
    draw = torch.Generator().manual_seed(0)
    changes = {
        path: (update.layers[path].A - layer.A, update.layers[path].B - layer.B) for path, layer in start.layers.items()
    }
    clip = 0.5 * float(torch.cat([part.flatten() for pair in changes.values() for part in pair]).norm())

    def moved(tensor: Tensor, change: Tensor) -> Tensor:
        return tensor + 0.5 * change + noise_multiplier * clip * torch.randn(change.shape, generator=draw)

    layers = {
        path: replace(layer, A=moved(layer.A, changes[path][0]), B=moved(layer.B, changes[path][1]))
        for path, layer in start.layers.items()
    }
    return replace(update, layers=layers)


def test_a_rank_that_holds_the_crowd_s_inputs_shows_them_in_the_sum_but_not_whose_they_are(
    text_runs: dict[str, SmallRun],
) -> None:
    of_each, of_all = measure.tokens_read(text_runs["wide"])
    assert of_all.score == 1.0
    assert of_each.score < 0.6


def test_at_b_zero_a_says_nothing_and_a_server_that_sends_another_start_says_the_same_model(
    vision_run: MakeRun,
) -> None:
    config = vision_run(train={**ONE_STEP, "batch_size": 4})
    bench = Workbench(config, load_federated_data(config))
    fresh = unpack(packed_bytes(bench.initialise(InitialiseRequest(0)).adapter))
    crafted = attacks.crafted_start(fresh)
    updates, losses = {}, {}
    for name, start in (("fresh", fresh), ("crafted", crafted)):
        receipt = bench.train("chalk", TrainRequest("run", 1, 1, 0, 4, 0, pack(start)))
        updates[name], losses[name] = unpack(packed_bytes(receipt.adapter)), receipt.loss
    paths = list(fresh.layers)
    assert attacks.input_span(updates["fresh"], fresh, paths).shape[1] == 0
    assert attacks.input_span(updates["crafted"], crafted, paths[:2]).shape[1] == 8
    assert losses["crafted"] == pytest.approx(losses["fresh"])


def test_an_embedding_that_is_trained_whole_names_the_tokens_that_were_used(text_run: MakeRun, tmp_path: Path) -> None:
    """Whatever the optimiser, the number of steps and the batch."""
    with (tmp_path / "texts.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label", "source"))
        writer.writerows((f"{word} film was {word}", "01"[place % 2], "ash") for place, word in enumerate(WORDS))
    config = text_run(
        data={"path": str(tmp_path / "texts.csv"), "test": 0.0, "validation": 0.0},
        lora={"modules_to_save": ["word_embeddings"]},
    )
    data = load_federated_data(config)
    bench = Workbench(config, data)
    packed = packed_bytes(bench.initialise(InitialiseRequest(0)).adapter)
    receipt = bench.train("ash", TrainRequest("run", 1, 1, 0, 6, 0, packed))
    table = "embeddings.word_embeddings.weight"
    change = unpack(packed_bytes(receipt.adapter)).dense[table] - unpack(packed).dense[table]
    task = load_base_model(config, data.labels).task
    used = {int(token) for ids in task.prepare(data.clients["ash"].training).token_ids for token in ids}
    assert set(change.any(dim=1).nonzero().flatten().tolist()) == used


def test_examples_that_a_run_has_learned_by_heart_are_told_from_others(vision_run: MakeRun, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for domain in DOMAINS[:2]:
        arrays[f"{domain}_images"] = draw.integers(0, 256, (24, 16, 16), dtype=np.uint8)
        arrays[f"{domain}_labels"] = draw.permutation(np.arange(24) % 3)
    np.savez(tmp_path / "noise.npz", **arrays)  # type: ignore[arg-type]
    config = vision_run(
        data={"path": str(tmp_path / "noise.npz"), "test": 0.5, "validation": 0.0},
        train={"steps": 60, "batch_size": 12, "learning_rate": 0.02},
        federation={"rounds": 2},
        lora={"rank": 8},
    )
    result = simulate(config, out=tmp_path / "run", num_workers=1)
    found = measure.members_read(SmallRun(config, result, Seen(result.adapter, {})))
    assert found.auc > 0.7


def test_a_line_has_the_mean_over_draws_and_a_name_stands_for_one_setting(tmp_path: Path) -> None:
    reads = {name: measure.Read(0.5, 0.25) for name in measure.COLUMNS}
    found = [
        measure.Measured(name="open", draw=draw, overrides=(), num=1, accuracy=accuracy, epsilon=None, **reads)
        for draw, accuracy in enumerate((0.4, 0.6))
    ]
    assert measure.table(found).splitlines()[2:] == [
        "| a guess | | none |" + " 0.25 (0.25 to 0.25) |" * len(reads),
        "| open | 0.50 (0.40 to 0.60) | none |" + " 0.50 (0.50 to 0.50) |" * len(reads),
    ]
    (tmp_path / "results.json").write_text(json.dumps([asdict(each) for each in found]))
    assert measure.known_in(tmp_path) == found
    measure.main(["--out", str(tmp_path), "--draws", "2", "--run", "open"])
    with pytest.raises(SystemExit, match=r"^error: open was measured with other settings; give this one another name$"):
        measure.main(["--out", str(tmp_path), "--run", "open", "run.seed=1"])
    with pytest.raises(SystemExit, match=r"^error: other: .*privacy.nothing: unknown key"):
        measure.main(["--out", str(tmp_path), "--run", "other", "privacy.nothing=1"])


def test_the_table_on_the_page_is_that_of_the_numbers_beside_it() -> None:
    folder = Path(measure.__file__).parent
    assert measure.table(measure.known_in(folder)) in (folder / "README.md").read_text()


@pytest.mark.slow
def test_a_line_is_measured_once_and_an_open_server_reads_more_than_a_guess(tmp_path: Path) -> None:
    words = ["--out", str(tmp_path), "--draws", "1", "--run", "short", "federation.rounds=1"]
    measure.main(words)
    (found,) = measure.known_in(tmp_path)
    assert found.pictures.score > 0.9 > 0.7 > found.pictures.guess
    assert found.tokens.score > 0.7 > 0.5 > found.tokens.guess
    assert found.labels.score > found.labels.guess + 0.05
    assert found.epsilon is None
    assert (tmp_path / "results.md").read_text() == measure.table([found])
    written = (tmp_path / "results.json").stat().st_mtime_ns
    measure.main(words)
    assert (tmp_path / "results.json").stat().st_mtime_ns == written
