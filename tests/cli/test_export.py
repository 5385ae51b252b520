"""`fedlora export`: what a run leaves becomes a folder for others, or one line of error and nothing."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedlora.common.config import RunConfig
from fedlora.common.run_file import parse_run
from fedlora.simulation import simulate

MakeRun = Callable[..., RunConfig]

LOAD = """
import sys
from transformers import AutoModelForImageClassification
import torch

torch.manual_seed(0)
model = AutoModelForImageClassification.from_pretrained(sys.argv[1])
print(model(pixel_values=torch.randn(1, 3, 16, 16)).logits.tolist(), list(model.config.id2label.values()))
"""


@pytest.fixture(scope="module")
def run_folder(tiny_vision_model: Path, tiny_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a simulation of two rounds."""
    config = parse_run(
        {
            "run": {"name": "tiny"},
            "model": {"name": str(tiny_vision_model), "head": "auto"},
            "task": {"image_size": 16},
            "data": {"path": str(tiny_digits)},
            "lora": {"rank": 4},
            "train": {"steps": 3, "batch_size": 8, "learning_rate": 0.01, "device": "cpu"},
            "federation": {"rounds": 2},
        }
    )
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    simulate(config, out=folder, num_workers=1)
    return folder


def test_a_simulated_run_is_exported_with_its_scores(
    fedlora: Callable[..., Any], run_folder: Path, tmp_path: Path
) -> None:
    done = fedlora("export", run_folder, "--out", tmp_path / "adapter")
    assert (done.code, done.err) == (0, "")
    first, second = done.out.splitlines()
    assert first.startswith(f"wrote {tmp_path / 'adapter'}: an adapter of ")
    assert second == "the base model is a folder of this machine; README.md says what to change elsewhere"
    rounds = [json.loads(line) for line in (run_folder / "rounds.jsonl").read_text().splitlines()]
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert (
        "each of 3 clients trained on its own data, and the server averaged the adapters with `lora_fair`. "
        "This is the adapter after round 2 of 2." in card
    )
    score = rounds[2]["held_out"]["overall"]
    assert f"| after round 2 | {score['num_examples']} | {score['loss']:.4f} | {score['metric']:.4f} |" in card
    assert "| - chalk |" in card


def test_a_merged_model_is_loaded_in_a_fresh_process_without_fedlora(
    fedlora: Callable[..., Any], run_folder: Path, tmp_path: Path
) -> None:
    done = fedlora("export", run_folder, "--out", tmp_path / "model", "--merge")
    assert (done.code, done.err) == (0, "")
    assert "checked on 4 inputs: logits differ by at most" in done.out
    loaded = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path / "model")], capture_output=True, text=True, timeout=600, check=True
    )
    assert loaded.stdout.strip().endswith("['0', '1', '2']")


def test_the_best_rounds_adapter_is_exported_where_the_run_has_kept_it(
    fedlora: Callable[..., Any], run_folder: Path, tmp_path: Path
) -> None:
    done = fedlora("export", run_folder, "--out", tmp_path / "best", "--adapter", "best")
    assert (done.code, done.err) == (0, "")
    number = json.loads((run_folder / "best" / "best.json").read_text())["round"]
    assert f"This is the adapter after round {number} of 2." in (tmp_path / "best" / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["{run}", "--out", "{run}"], "--out {run}: is not empty; expected a new or an empty folder"),
        (["{run}", "--out", "{tmp}/x", "--adapter", "last"], "--adapter is 'last'; expected newest or best"),
        (["{tmp}", "--out", "{tmp}/x"], "{tmp}: no adapter/adapter_config.json; expected the folder of a run"),
    ],
    ids=["taken", "choice", "no run"],
)
def test_what_cannot_be_exported_is_one_line_and_nothing_is_written(
    fedlora: Callable[..., Any], run_folder: Path, tmp_path: Path, arguments: list[str], line: str
) -> None:
    def filled(text: str) -> str:
        return text.format(run=run_folder, tmp=tmp_path)

    before = sorted(run_folder.rglob("*"))
    done = fedlora("export", *map(filled, arguments))
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"error: {filled(line)}")
    assert list(tmp_path.iterdir()) == []
    assert sorted(run_folder.rglob("*")) == before
