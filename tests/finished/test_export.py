"""A run's folder for others: it is read back by PEFT and transformers alone, and gives the same logits."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

sys.path.append(str(Path(__file__).parent))

from finished_runs import (
    TEMPLATE,
    language_run,
    leave,
    questions,
    save_language_model,
    trained_adapters,
    write_run,
)

from fedlora.adapters import with_base_change_inside
from fedlora.aggregation import METHODS, aggregate
from fedlora.common.config import RunConfig
from fedlora.common.errors import ConfigError, ModelError, StoreError
from fedlora.common.messages import Score
from fedlora.common.run_file import to_toml
from fedlora.finished.export import Exported, export_run
from fedlora.finished.finished_run import open_finished
from fedlora.finished.model_card import History
from fedlora.finished.trained import load_trained
from fedlora.training.data import federated_data_from, load_federated_data

MakeRun = Callable[..., RunConfig]

TEXTS = ["a very good film", "the film was awful"]
HISTORY = History("digits", "lora_fair", 3, 4, 5, start=Score(9, 1.5, 0.25), end=Score(9, 0.5, 0.75))


def export(run_folder: Path, *, merge: bool, out: str = "exported") -> Exported:
    return export_run(open_finished(run_folder), run_folder / out, HISTORY, merge=merge)


def text_data() -> Any:
    examples = [("a very good film", "good"), ("the film was awful", "bad"), ("great", "good"), ("poor", "bad")] * 5
    return federated_data_from({"reader": examples}, examples[:4], labels=["bad", "good"])


def loaded_as_the_card_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return the variables after the Python in a folder's README.md was run there."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(folder)
    variables: dict[str, Any] = {}
    with torch.no_grad():
        exec(code, variables)
    return variables


@torch.no_grad()
def expected_logits(run_folder: Path, **inputs: Tensor) -> Tensor:
    output = load_trained(run_folder).model(**inputs)
    logits: Tensor = getattr(output, "logits", output)
    return logits


def close(found: Tensor, expected: Tensor) -> bool:
    return float((found.detach() - expected).abs().max()) < 1e-4 * float(expected.max() - expected.min())


@pytest.mark.parametrize("merge", [False, True])
def test_a_language_model_is_loaded_by_peft_or_transformers_alone(tmp_path: Path, merge: bool) -> None:
    save_language_model(tmp_path / "model")
    write_run(tmp_path, language_run(tmp_path / "model", train={"steps": 10}), questions())

    exported = export(tmp_path, merge=merge)

    tokenizer = AutoTokenizer.from_pretrained(exported.folder)
    assert tokenizer.chat_template == TEMPLATE
    inputs = tokenizer("what colour is the sky ?", return_tensors="pt")
    inputs.pop("token_type_ids", None)
    if merge:
        model: Any = AutoModelForCausalLM.from_pretrained(exported.folder)
        assert model.config.use_cache
        assert not list(exported.folder.glob("adapter_*"))
    else:
        named = json.loads((exported.folder / "adapter_config.json").read_text())
        assert named["base_model_name_or_path"] == str(tmp_path / "model")
        base = AutoModelForCausalLM.from_pretrained(named["base_model_name_or_path"])
        assert named["task_type"] == "CAUSAL_LM"
        untrained = base(**inputs).logits
        model = PeftModel.from_pretrained(base, str(exported.folder)).eval()
        assert not close(untrained, expected_logits(tmp_path, **inputs))
    assert close(model(**inputs).logits, expected_logits(tmp_path, **inputs))
    assert not list(tmp_path.glob(".*"))
    text = "".join(path.read_text() for path in exported.folder.glob("*.json"))
    assert merge == (str(tmp_path) not in text)


@pytest.mark.parametrize("merge", [False, True])
def test_what_was_learned_as_the_end_ends_what_transformers_generates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, merge: bool
) -> None:
    """A turn ends with another token than the tokenizer's end token, and the base model knows of the latter alone."""
    save_language_model(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    tokenizer.add_special_tokens({"additional_special_tokens": ["#"]})
    tokenizer.chat_template = TEMPLATE.replace("</s>", "#")
    tokenizer.save_pretrained(tmp_path / "model")
    write_run(tmp_path, language_run(tmp_path / "model"), questions())

    exported = export(tmp_path, merge=merge)

    end = tokenizer.convert_tokens_to_ids("#")
    settings = json.loads((exported.folder / "generation_config.json").read_text())
    assert (settings["eos_token_id"], settings["pad_token_id"]) == ([end, 2], 2)
    card = (exported.folder / "README.md").read_text()
    assert f"An answer ends with `#` ({end}) or `</s>` (2); `generation_config.json` says so too." in card
    if merge:
        model: Any = AutoModelForCausalLM.from_pretrained(exported.folder)
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": "what colour is the sky ?"}], add_generation_prompt=True, return_tensors="pt"
        )
        written = model.generate(**asked, max_new_tokens=20)[0, asked["input_ids"].shape[1] :].tolist()
        assert tokenizer.convert_ids_to_tokens(written) == ["blue", "#"]
    found = loaded_as_the_card_says(exported.folder, monkeypatch)
    written = found["generated"].tolist()
    assert end not in written[found["inputs"]["input_ids"].shape[1] : -1]
    assert written[-1] == end


def test_a_template_without_an_end_is_learned_with_the_tokenizers(tmp_path: Path) -> None:
    save_language_model(tmp_path / "model")
    template = TEMPLATE.replace(" </s>", "")
    run = language_run(tmp_path / "model", task={"chat_template": template})
    write_run(tmp_path, run, questions())

    folder = export(tmp_path, merge=True).folder

    assert load_trained(tmp_path).generate(["what colour is the sky ?"]) == ["blue"]
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 2
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "what colour is the dog ?"}], add_generation_prompt=True, return_tensors="pt"
    )
    written = model.generate(**asked, max_new_tokens=20)[0, asked["input_ids"].shape[1] :].tolist()
    assert tokenizer.convert_ids_to_tokens(written) == ["red", "</s>"]


def test_the_runs_chat_template_wins_over_the_tokenizers(tmp_path: Path) -> None:
    save_language_model(tmp_path / "model")
    other = TEMPLATE.replace("assistant", "blue")
    run = language_run(tmp_path / "model", task={"chat_template": other}, train={"steps": 1})
    write_run(tmp_path, run, questions("plain"))
    exported = export(tmp_path, merge=False)
    assert AutoTokenizer.from_pretrained(exported.folder).chat_template == other


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("head", ["linear", "auto"])
def test_a_picture_model_is_loaded_as_its_card_says(
    vision_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str, merge: bool
) -> None:
    config = vision_run(model={"head": head}, train={"steps": 10})
    write_run(tmp_path, config, load_federated_data(config))

    exported = export(tmp_path, merge=merge)

    picture = np.random.default_rng(1).integers(0, 256, (40, 23, 3), dtype=np.uint8)
    Image.fromarray(picture).save(exported.folder / "picture.png")
    found = loaded_as_the_card_says(exported.folder, monkeypatch)
    trained = load_trained(tmp_path)
    resized = np.asarray(Image.fromarray(picture).resize((16, 16), Image.Resampling.BILINEAR))
    pixels = torch.from_numpy(resized / 255.0).permute(2, 0, 1)[None].float() * 2 - 1
    normal = AutoImageProcessor.from_pretrained(exported.folder)([Image.fromarray(picture)], return_tensors="pt")
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    assert torch.allclose(normal["pixel_values"], ((pixels + 1) / 2 - mean) / std, atol=1e-5)
    assert close(found["logits"], expected_logits(tmp_path, **normal))
    assert trained.labels[int(found["logits"].argmax())] == trained.predict([picture])[0]
    assert (head == "linear") == (exported.folder / "head.safetensors").is_file()


def test_a_merged_picture_model_of_transformers_knows_its_labels(vision_run: MakeRun, tmp_path: Path) -> None:
    config = vision_run(model={"head": "auto"}, train={"steps": 10})
    write_run(tmp_path, config, load_federated_data(config))
    exported = export(tmp_path, merge=True)
    model = AutoModelForImageClassification.from_pretrained(exported.folder)
    pixels = torch.randn(2, 3, 16, 16)
    assert close(model(pixel_values=pixels).logits, expected_logits(tmp_path, pixel_values=pixels))
    assert tuple(model.config.id2label.values()) == ("0", "1", "2")


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("head", ["linear", "auto"])
def test_a_text_model_is_loaded_as_its_card_says(
    text_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str, merge: bool
) -> None:
    write_run(tmp_path, text_run(model={"head": head}, train={"steps": 10}), text_data())

    exported = export(tmp_path, merge=merge)

    found = loaded_as_the_card_says(exported.folder, monkeypatch)
    inputs = AutoTokenizer.from_pretrained(exported.folder)(TEXTS, padding=True, return_tensors="pt")
    assert close(found["logits"], expected_logits(tmp_path, **found["inputs"]))
    if merge and head == "auto":
        model = AutoModelForSequenceClassification.from_pretrained(exported.folder)
        assert close(model(**inputs).logits, expected_logits(tmp_path, **inputs))
    if merge and head == "linear":
        encoder = AutoModel.from_pretrained(exported.folder)
        assert encoder.config.id2label == {0: "bad", 1: "good"}


@pytest.mark.parametrize("method", ["flora", "fedex_lora"])
def test_an_adapter_with_a_change_of_the_base_weights_is_one_that_peft_loads(
    vision_run: MakeRun, tmp_path: Path, method: str
) -> None:
    config = vision_run(model={"head": "auto"}, train={"steps": 10})
    workbench, adapters = trained_adapters(config, load_federated_data(config))
    weights = dict.fromkeys(adapters, 1.0)
    mean = aggregate(adapters, weights=weights, method=METHODS[method]()).adapter
    assert mean.base_change
    leave(tmp_path, config, workbench, mean)
    pixels = torch.randn(2, 3, 16, 16)
    expected = expected_logits(tmp_path, pixel_values=pixels)

    adapter, merged = export(tmp_path, merge=False), export(tmp_path, merge=True, out="merged")

    base = AutoModelForImageClassification.from_pretrained(
        config.model.name, num_labels=3, ignore_mismatched_sizes=True, dtype=torch.float32
    )
    with torch.no_grad():
        assert close(PeftModel.from_pretrained(base, str(adapter.folder)).eval()(pixel_values=pixels).logits, expected)
        model = AutoModelForImageClassification.from_pretrained(merged.folder)
        assert close(model(pixel_values=pixels).logits, expected)
    whole = with_base_change_inside(mean)
    assert {layer.rank for layer in whole.layers.values()} != {config.lora.rank}


def test_what_is_merged_is_checked_and_the_difference_told(tmp_path: Path) -> None:
    save_language_model(tmp_path / "model")
    write_run(tmp_path, language_run(tmp_path / "model", train={"steps": 5}), questions())
    check = export(tmp_path, merge=True).check
    assert check is not None
    assert check.num_inputs == 4
    assert check.merged == pytest.approx(check.saved, abs=1e-5)
    assert check.saved < 1e-4 * check.logits_range
    assert check.tolerance == pytest.approx(1e-3 * check.logits_range)


def test_rounded_base_weights_are_merged_in_float32_and_rounded_again(tmp_path: Path) -> None:
    save_language_model(tmp_path / "model", dtype=torch.bfloat16)
    run = language_run(tmp_path / "model", model={"dtype": "bfloat16"}, train={"steps": 5})
    write_run(tmp_path, run, questions())
    exported = export(tmp_path, merge=True)
    assert exported.check is not None
    assert 0 < exported.check.merged < 1e-4 * exported.check.logits_range < exported.check.saved
    assert exported.check.saved < exported.check.tolerance
    model = AutoModelForCausalLM.from_pretrained(exported.folder)
    assert model.dtype == torch.bfloat16
    assert {tensor.dtype for tensor in load_file(exported.folder / "model.safetensors").values()} == {torch.bfloat16}


@pytest.mark.filterwarnings("ignore:Model .*tied:UserWarning")
@pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True`:UserWarning")
def test_a_merge_that_does_not_act_the_same_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    """The output layer is the embedding too, so that what is merged into one changes the other."""
    save_language_model(tmp_path / "model", ties=True)
    write_run(tmp_path, language_run(tmp_path / "model", train={"steps": 1}), questions())
    # No run of ours trains such an adapter.
    lora = LoraConfig(r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "model"), lora)
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    before = {entry.name for entry in tmp_path.iterdir()}
    with pytest.raises(ModelError, match=r"merged model in float32 is no copy: its logits differ by up to .* --merge"):
        export(tmp_path, merge=True)
    assert {entry.name for entry in tmp_path.iterdir()} == before


def test_nothing_is_merged_into_quantised_weights(tmp_path: Path) -> None:
    save_language_model(tmp_path / "model")
    write_run(tmp_path, language_run(tmp_path / "model", train={"steps": 1}), questions())
    quantised = language_run(tmp_path / "model", model={"quantization": "4bit"})
    (tmp_path / "run.toml").write_text(to_toml(quantised))
    with pytest.raises(ConfigError, match=r'"4bit": .* set it to "none" in .*run.toml .* export without --merge'):
        export(tmp_path, merge=True)
    assert not (tmp_path / "exported").exists()
    card = (export(tmp_path, merge=False).folder / "README.md").read_text()
    assert "quantised to 4bit in training" in card


def test_another_base_model_than_the_runs_is_refused(tmp_path: Path) -> None:
    save_language_model(tmp_path / "model")
    write_run(tmp_path, language_run(tmp_path / "model", train={"steps": 1}), questions())
    weights = load_file(tmp_path / "model" / "model.safetensors")
    weights["lm_head.weight"] += 1
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    for merge in (False, True):
        with pytest.raises(ModelError, match=r"trained on another model than"):
            export(tmp_path, merge=merge)
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize("kind", ["file", "full"])
def test_nothing_is_overwritten_and_an_empty_folder_will_do(tmp_path: Path, kind: str) -> None:
    save_language_model(tmp_path / "model")
    write_run(tmp_path, language_run(tmp_path / "model", train={"steps": 1}), questions())
    out = tmp_path / "exported"
    if kind == "full":
        out.mkdir()
        (out / "thesis.tex").touch()
    else:
        out.touch()
    with pytest.raises(StoreError, match=r"--out .*exported: is (not empty|a file); expected a new or an empty"):
        export(tmp_path, merge=False)
    (tmp_path / "empty").mkdir()
    assert (export(tmp_path, merge=False, out="empty").folder / "adapter_config.json").is_file()


def test_the_card_says_what_the_model_is_and_leaves_the_licence_open(tmp_path: Path) -> None:
    save_language_model(tmp_path / "model", has_template=False)
    write_run(tmp_path, language_run(tmp_path / "model", train={"steps": 1}), questions("plain"))
    card = (export(tmp_path, merge=False).folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: peft\npipeline_tag: text-generation\ntags:\n")
    assert "license:" not in card.split("---")[1]
    assert "rank 4, alpha 16" in card
    assert (
        "each of 5 clients trained on its own data, and the server averaged the adapters with `lora_fair`. "
        "This is the adapter after round 3 of 4." in card
    )
    assert "| before training | 9 | 1.5000 | 0.2500 |\n| after round 3 | 9 | 0.5000 | 0.7500 |" in card
    assert "no chat template" in card
    assert f"a folder of the machine that exported this, `{tmp_path / 'model'}`" in card
