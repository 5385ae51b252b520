"""The model of a finished run, loaded to be used."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.append(str(Path(__file__).parent))

from finished_runs import language_run, leave, questions, save_language_model, write_run

from fedlora.adapters import unpack
from fedlora.client.worker.workbench import Workbench
from fedlora.common.config import RunConfig
from fedlora.common.errors import AdapterError, ConfigError, ModelError, StoreError
from fedlora.common.run_file import to_toml
from fedlora.finished.trained import load_trained
from fedlora.server.run_report import load_code
from fedlora.training.data import federated_data_from, load_federated_data
from fedlora.training.data.examples import Conversation, Turn

MakeRun = Callable[..., RunConfig]


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


@pytest.mark.parametrize("style", ["chat", "plain"])
def test_a_trained_language_model_answers_as_it_has_learned(tmp_path: Path, style: Literal["chat", "plain"]) -> None:
    save_language_model(tmp_path / "model")
    config = language_run(tmp_path / "model", data={"format": "prompt_completion" if style == "plain" else "auto"})
    write_run(tmp_path, config, questions(style))

    trained = load_trained(tmp_path)

    texts = ["what colour is the dog ?", "what colour is the sky ?"]
    assert trained.generate(texts, max_new_tokens=4) == ["red", "blue"]
    asked = [Conversation((Turn("user", text),), style) for text in texts]
    assert trained.generate(asked, max_new_tokens=4) == ["red", "blue"]
    answered = [Conversation((*one.turns, Turn("assistant", "green")), style) for one in asked]
    assert trained.generate(answered, max_new_tokens=4) == ["red", "blue"]
    assert trained.generate([]) == []
    with pytest.raises(ModelError, match=r"no labels to predict; a language model answers with `generate`"):
        trained.predict(["what"])


def test_a_classifier_does_not_generate(vision_run: MakeRun, tmp_path: Path) -> None:
    config = vision_run()
    write_run(tmp_path, config, load_federated_data(config))
    with pytest.raises(ModelError, match=r"no language model; a classifier answers with `predict`"):
        load_trained(tmp_path).generate(["what"])


def test_the_best_rounds_adapter_is_loaded_where_it_is_asked_for(vision_run: MakeRun, tmp_path: Path) -> None:
    config = vision_run(train={"steps": 10})
    data = load_federated_data(config)
    expected = write_run(tmp_path, config, data)
    with pytest.raises(AdapterError, match=r"no best/adapter_config.json; .* take the newest"):
        load_trained(tmp_path, adapter="best")
    (tmp_path / "adapter").rename(tmp_path / "best")
    workbench = Workbench(config, data)
    leave(tmp_path, config, workbench, unpack(workbench._initial))
    pictures = list(np.asarray(data.test.inputs)[..., 0])
    best = [data.labels[expected[place]] for place in range(len(pictures))]
    assert load_trained(tmp_path, adapter="best").predict(pictures) == best
    assert load_trained(tmp_path).predict(pictures) != best


def test_a_run_on_quantised_weights_is_loaded_onto_the_checkpoints_own(tmp_path: Path) -> None:
    save_language_model(tmp_path / "model")
    config = language_run(tmp_path / "model", train={"steps": 1})
    write_run(tmp_path, config, questions())
    quantised = language_run(tmp_path / "model", model={"quantization": "4bit"})
    (tmp_path / "run.toml").write_text(to_toml(quantised))
    assert next(load_trained(tmp_path).model.parameters()).dtype == torch.float32


def test_rounded_base_weights_stay_the_runs_own_in_float32(tmp_path: Path) -> None:
    save_language_model(tmp_path / "model")
    config = language_run(tmp_path / "model", model={"dtype": "bfloat16"}, train={"steps": 1})
    write_run(tmp_path, config, questions())
    weight = load_trained(tmp_path).model.get_base_model().lm_head.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, weight.bfloat16().float())


def test_the_public_name_of_the_readme_is_this_one() -> None:
    from fedlora.training import trained

    assert trained.load_trained is load_trained
    assert "from fedlora.training.trained import load_trained" in load_code(Path("run"), RunConfig())
