"""What a run leaves is what it says: the adapter folder gives the logits that the last evaluation judged."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModel

from fedlora.adapters import load_adapter
from fedlora.common.run_file import load_run
from fedlora.finished.trained import load_trained
from fedlora.simulation import SimulationResult, simulate
from fedlora.training.data import load_federated_data
from fedlora.training.tasks import ImageClassification

RunFile = Callable[..., Path]


def test_the_loaded_model_predicts_what_the_last_evaluation_did(finished_run: SimulationResult) -> None:
    data = load_federated_data(load_run(finished_run.folder / "run.toml"))
    judged = json.loads((finished_run.folder / "rounds" / "0002" / "predictions.json").read_text())
    trained = load_trained(finished_run.folder)
    predicted = trained.predict(list(data.test.inputs[:, :, :, 0]))
    assert predicted == [data.labels[judged[str(place)]] for place in range(len(data.test))]
    right = np.mean([label == data.labels[true] for label, true in zip(predicted, data.test.labels, strict=True)])
    held_out = finished_run.reports[-1].held_out
    assert held_out is not None
    assert held_out.is_complete
    assert right == pytest.approx(held_out.overall.metric)


def test_the_plain_encoder_takes_the_lora_part(finished_run: SimulationResult, tiny_vision_model: Path) -> None:
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    plain = PeftModel.from_pretrained(
        AutoModel.from_pretrained(tiny_vision_model), str(finished_run.folder / "adapter")
    )
    features = plain.eval()(pixel_values=pixels).last_hidden_state
    logits = load_trained(finished_run.folder).model(pixel_values=pixels)
    head = load_adapter(finished_run.folder / "adapter").dense
    pooled = torch.cat([features[:, 0], features[:, 1:].mean(1)], dim=-1)
    weight, bias = head["classification_head.weight"], head["classification_head.bias"]
    torch.testing.assert_close(pooled @ weight.T + bias, logits, atol=1e-5, rtol=1e-5)


def test_a_run_that_is_prolonged_ends_in_the_adapter_of_one_that_was_planned_so(
    finished_run: SimulationResult, run_file: RunFile, fedlora_here: Callable[..., Any], tmp_path: Path
) -> None:
    simulate(run_file("federation.rounds=1"), out=tmp_path / "out", num_workers=2)
    done = fedlora_here("simulate", "--resume", "--out", "out", "--set", "federation.rounds=2", "--workers", "2")
    assert done.returncode == 0
    assert "federation.rounds is changed from 1 to 2" in done.stdout
    took = re.search(r"time +2 rounds in (.*)", done.stdout)
    assert took
    page = (tmp_path / "out" / "report.html").read_text().replace("\N{NO-BREAK SPACE}", " ")
    assert f"The run took {took[1]}: training" in page
    assert f"<dd>{took[1]}<small>" in page
    kept = "adapter/adapter_model.safetensors"
    assert (tmp_path / "out" / kept).read_bytes() == (finished_run.folder / kept).read_bytes()
    assert load_run(tmp_path / "out" / "run.toml").federation.rounds == 2


def test_every_round_is_one_documented_line(finished_run: SimulationResult) -> None:
    lines = [json.loads(line) for line in (finished_run.folder / "rounds.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [0, 1, 2]
    last = lines[-1]
    assert last["cohort"] == sorted(last["clients"])
    assert last["refused"] == {}
    assert last["bytes_up"] > 0
    assert last["bytes_down"] > 0
    assert set(last["seconds"]) == {"training", "aggregation", "evaluation", "storing"}
    assert last["aggregation"]["method"] == "lora_fair"
    assert last["aggregation"]["error_after"] <= last["aggregation"]["error_before"]
    client = next(iter(last["clients"].values()))
    assert client["before"]["num_examples"] == client["after"]["num_examples"] == 4
    assert {"forward", "backward", "optimizer", "training", "validation"} <= set(client["seconds"])
    assert last["adapter_sha256"]


def test_a_run_starts_from_the_adapter_of_another(
    finished_run: SimulationResult, run_file: RunFile, tmp_path: Path
) -> None:
    following = simulate(
        run_file(f"federation.start_from={finished_run.folder / 'adapter'}", "federation.rounds=1"),
        out=tmp_path / "following",
        num_workers=1,
    )
    first, last = following.reports[0].held_out, finished_run.reports[-1].held_out
    assert first is not None
    assert last is not None
    assert first.overall.metric == pytest.approx(last.overall.metric)
    assert first.overall.loss == pytest.approx(last.overall.loss, rel=1e-5)


def test_sampling_takes_a_part_of_the_clients_in_each_round(run_file: RunFile, tmp_path: Path) -> None:
    run = run_file("federation.fraction=0.5", "partition.by=iid", "partition.num_clients=4", "aggregation.method=fedit")
    result = simulate(run, out=tmp_path / "out", num_workers=2)
    cohorts = [report.cohort for report in result.reports[1:]]
    assert all(len(cohort) == 2 for cohort in cohorts)
    aggregation = result.reports[-1].aggregation
    assert aggregation is not None
    assert aggregation.method == "fedit"
    assert aggregation.moved_B == aggregation.moved_A == 0


class SmallNetwork(nn.Module):
    """A model of one's own: it must be importable where the workers run."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(3 * 16 * 16, 32)
        self.classifier = nn.Linear(32, 2)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(torch.relu(self.hidden(pixel_values.flatten(1))))
        return logits


def test_python_takes_a_model_and_data_sets_of_ones_own(run_file: RunFile, tmp_path: Path) -> None:
    random = np.random.default_rng(0)

    def pictures(num: int) -> list[tuple[np.ndarray, str]]:
        return [
            (np.full((16, 16), 40 if index % 2 else 200, np.uint8) + random.integers(0, 30, (16, 16), dtype=np.uint8),
             "dark" if index % 2 else "bright")
            for index in range(num)
        ]  # fmt: skip

    torch.manual_seed(0)
    result = simulate(
        load_run(run_file("lora.target_modules=['hidden']", "federation.rounds=3")),
        out=tmp_path / "own",
        clients={"ward": pictures(24), "lab": pictures(24)},
        test=pictures(20),
        model=SmallNetwork(),
        heads=("classifier",),
        task=ImageClassification(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        num_workers=1,
    )
    held_out = result.reports[-1].held_out
    assert held_out is not None
    assert held_out.overall.metric > 0.9
    assert set(result.adapter.layers) == {"hidden"}
    assert set(result.adapter.dense) == {"classifier.weight", "classifier.bias"}
