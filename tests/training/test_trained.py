"""The model of a finished run, loaded to be used."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedlora.adapters import save_adapter, unpack
from fedlora.client.workbench import Workbench
from fedlora.common.config import RunConfig
from fedlora.common.errors import AdapterError, ConfigError, ModelError, StoreError
from fedlora.common.messages import EvaluateRequest, TrainRequest
from fedlora.common.run_file import to_toml
from fedlora.training.data import FederatedData, federated_data_from, load_federated_data
from fedlora.training.trained import load_trained

MakeRun = Callable[..., RunConfig]


def write_run(folder: Path, config: RunConfig, data: FederatedData) -> dict[int, int]:
    """Train one client for a round, leave what a run leaves, and return the predictions on the held-out set."""
    workbench = Workbench(config, data)
    client = workbench.client_names[0]
    initial = workbench._initial
    receipt = workbench.train(client, TrainRequest("run", 1, 0, config.run.seed, 2, 0, initial))
    save_adapter(unpack(receipt.adapter), folder / "adapter")
    (folder / "run.toml").write_text(to_toml(config))
    described = workbench.describe(client)
    manifest = {"labels": described.labels, "base_model": {"fingerprint": described.base_model_fingerprint}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    judged = workbench.evaluate(EvaluateRequest("run", 1, None, 0, 1, True, receipt.adapter))
    return dict(judged.predictions)


@pytest.mark.parametrize("head", ["linear", "auto"])
def test_a_trained_vision_model_predicts_as_the_run_did(vision_run: MakeRun, tmp_path: Path, head: str) -> None:
    config = vision_run(model={"head": head}, lora={"dropout": 0.5}, train={"steps": 10})
    data = load_federated_data(config)
    expected = write_run(tmp_path, config, data)

    trained = load_trained(tmp_path)

    pictures = np.asarray(data.test.inputs)[..., 0]
    found = trained.predict(list(pictures))
    assert found == [data.labels[expected[index]] for index in range(len(pictures))]
    assert len(set(found)) > 1
    assert trained.predict([Image.fromarray(pictures[0])]) == found[:1]


def test_a_trained_text_model_predicts_as_the_run_did(text_run: MakeRun, tmp_path: Path) -> None:
    examples = [("a very good film", "good"), ("the film was awful", "bad"), ("great", "good"), ("poor", "bad")] * 5
    config = text_run(train={"steps": 10})
    data = federated_data_from({"reader": examples}, examples[:4], labels=["bad", "good"])
    expected = write_run(tmp_path, config, data)

    trained = load_trained(str(tmp_path))

    assert isinstance(data.test.inputs, list)
    found = trained.predict(data.test.inputs)
    assert found == [data.labels[expected[index]] for index in range(4)]
    assert trained.image_size is None
    assert trained.predict([]) == []


def test_predictions_do_not_depend_on_how_many_are_asked_for_at_once(vision_run: MakeRun, tmp_path: Path) -> None:
    config = vision_run(train={"steps": 10}, evaluation={"batch_size": 3})
    data = load_federated_data(config)
    write_run(tmp_path, config, data)
    trained = load_trained(tmp_path)
    pictures = list(np.asarray(data.test.inputs)[:8, ..., 0])
    assert trained.predict(pictures) == [trained.predict([picture])[0] for picture in pictures]


def test_a_loaded_model_can_be_trained_on(vision_run: MakeRun, tmp_path: Path) -> None:
    """Nothing in it is left over from inference."""
    config = vision_run()
    data = load_federated_data(config)
    write_run(tmp_path, config, data)
    trained = load_trained(tmp_path)
    trained.predict(list(np.asarray(data.test.inputs)[:2, ..., 0]))
    pixels = torch.rand(2, 3, 16, 16, requires_grad=True)
    trained.model(pixel_values=pixels).sum().backward()
    assert pixels.grad is not None


@pytest.mark.parametrize("damage", ["nothing", "manifest", "labels", "base_model", "adapter", "run"])
def test_a_folder_that_is_no_whole_run_is_one_line(vision_run: MakeRun, tmp_path: Path, damage: str) -> None:
    config = vision_run()
    write_run(tmp_path, config, load_federated_data(config))
    expected = {"nothing": AdapterError, "base_model": ModelError, "adapter": AdapterError, "run": ConfigError}
    if damage == "nothing":
        (tmp_path / "adapter" / "adapter_config.json").unlink()
    elif damage == "manifest":
        (tmp_path / "manifest.json").unlink()
    elif damage == "labels":
        (tmp_path / "manifest.json").write_text("{}")
    elif damage == "base_model":
        manifest = json.loads((tmp_path / "manifest.json").read_text())
        (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "base_model": {"fingerprint": "sha256:0"}}))
    elif damage == "adapter":
        (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"")
    else:
        (tmp_path / "run.toml").write_text("[run")

    with pytest.raises(expected.get(damage, StoreError)) as refused:
        load_trained(tmp_path)

    assert "\n" not in str(refused.value)
