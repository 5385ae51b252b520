"""Base models from folders: heads, preprocessing, fingerprints, and one clear line for all that can be wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from fedlora.common.config import RunConfig
from fedlora.common.errors import ModelError
from fedlora.models.base_model import fingerprint_of, load_base_model
from fedlora.models.reach import logits_of
from fedlora.training.data import Examples

MakeRun = Callable[..., RunConfig]
LABELS = ("a", "b", "c")
SIZE: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
VIT: dict[str, Any] = {**SIZE, "image_size": 16, "patch_size": 8}


def refusal(config: RunConfig) -> str:
    """Return the one line with which the base model is refused."""
    with pytest.raises(ModelError) as refused:
        load_base_model(config, LABELS)
    line = str(refused.value)
    assert "\n" not in line
    return line


@pytest.fixture
def copied(tiny_vision_model: Path, tmp_path: Path) -> Path:
    """Return a copy of the tiny vision model, to be damaged."""
    return Path(shutil.copytree(tiny_vision_model, tmp_path / "copied"))


def test_the_same_seed_gives_the_same_head_and_another_seed_another(vision_run: MakeRun) -> None:
    def head(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        weight: torch.Tensor = load_base_model(vision_run(), LABELS).module.classification_head.weight
        return weight

    assert torch.equal(head(1), head(1))
    assert not torch.equal(head(1), head(2))


def test_a_text_is_judged_alike_alone_and_padded(text_run: MakeRun) -> None:
    base = load_base_model(text_run(), LABELS)
    texts = ["good", "a very bad film and not fine and the film was not great"]
    prepared = base.task.prepare(Examples(texts, np.zeros(2, np.int64), np.full(2, "")))
    base.module.eval()

    together, alone = (base.module(**base.task.collate(prepared, np.array(rows)).inputs)[0] for rows in ([0, 1], [0]))

    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_a_run_without_dropout_gives_equal_logits_twice(vision_run: MakeRun) -> None:
    base = load_base_model(vision_run(), LABELS)
    base.module.train()
    pixels = torch.rand(2, 3, 16, 16)
    assert torch.equal(base.module(pixel_values=pixels), base.module(pixel_values=pixels))


def test_pictures_may_have_another_size_than_the_checkpoints(vision_run: MakeRun) -> None:
    base = load_base_model(vision_run(task={"image_size": 40}), LABELS)
    assert base.module(pixel_values=torch.rand(2, 3, 40, 40)).shape == (2, 3)


def test_pooling_can_be_chosen(vision_run: MakeRun) -> None:
    widths = {
        pooling: load_base_model(vision_run(model={"pooling": pooling}), LABELS).module.classification_head.in_features
        for pooling in ("auto", "mean", "cls", "cls_mean")
    }
    assert widths == {"auto": 64, "mean": 32, "cls": 32, "cls_mean": 64}


def test_training_mode_reaches_every_part_and_so_does_another_type(vision_run: MakeRun) -> None:
    """What stands at the encoder's outermost level too, such as a mask token."""
    module = load_base_model(vision_run(), LABELS).module
    encoder = module.__dict__["_encoder"]
    encoder.register_parameter("token", nn.Parameter(torch.zeros(1)))

    module.train()
    assert encoder.training
    module.to(torch.float64)
    assert encoder.token.dtype == torch.float64
    assert "token" in dict(module.named_parameters())


@pytest.mark.parametrize(
    ("file", "content", "mean", "std"),
    [
        ("preprocessor_config.json", {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5] * 3}, (0.1, 0.2, 0.3), 0.5),
        ("processor_config.json", {"image_processor": {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}}, 0.5, 0.5),
        ("preprocessor_config.json", {"do_normalize": False, "image_mean": [0.5] * 3}, 0.0, 1.0),
        ("other.json", {}, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ],
)
def test_pictures_are_normalised_as_the_checkpoint_says(
    vision_run: MakeRun, copied: Path, file: str, content: object, mean: Any, std: Any
) -> None:
    (copied / file).write_text(json.dumps(content))
    task = load_base_model(vision_run(model={"name": str(copied)}), LABELS).task
    grey = np.full((1, 16, 16, 1), 128, np.uint8)

    batch = task.collate(task.prepare(Examples(grey, np.zeros(1, np.int64), np.full(1, ""))), np.array([0]))

    expected = (128 / 255 - torch.tensor(mean)) / torch.tensor(std) * torch.ones(3)
    torch.testing.assert_close(batch.inputs["pixel_values"][0, :, 3, 5], expected, rtol=0, atol=1e-5)


def own_head(folder: Path, num_labels: int) -> Path:
    torch.manual_seed(0)
    config = transformers.ViTConfig(**VIT, num_labels=num_labels)
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    return folder


def test_a_trained_head_of_the_same_labels_is_kept(vision_run: MakeRun, tmp_path: Path) -> None:
    folder = own_head(tmp_path / "model", num_labels=3)
    saved = transformers.ViTForImageClassification.from_pretrained(folder).classifier.weight

    base = load_base_model(vision_run(model={"name": str(folder), "head": "auto"}), LABELS)

    assert base.heads == ("classifier",)
    assert torch.equal(base.module.classifier.weight, saved)


def test_a_head_of_other_labels_is_drawn_anew(vision_run: MakeRun, tmp_path: Path) -> None:
    folder = own_head(tmp_path / "model", num_labels=5)
    base = load_base_model(vision_run(model={"name": str(folder), "head": "auto"}), LABELS)
    assert base.heads == ("classifier",)
    assert base.module.classifier.out_features == 3


def test_what_else_a_classification_class_adds_is_a_head_too(text_run: MakeRun) -> None:
    """The checkpoint was saved without BERT's pooler."""
    base = load_base_model(text_run(model={"head": "auto"}), LABELS)
    assert base.heads == ("bert.pooler.dense", "classifier")
    assert base.peft_task_type == "SEQ_CLS"


def test_a_decoder_without_padding_token_judges_texts_alike_alone_and_padded(
    text_run: MakeRun, tiny_text_model: Path, tmp_path: Path
) -> None:
    config = transformers.LlamaConfig(**SIZE, vocab_size=200, bos_token_id=2, eos_token_id=[3, 4], pad_token_id=None)
    transformers.LlamaModel(config).save_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_text_model)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)

    base = load_base_model(text_run(model={"name": str(tmp_path), "head": "auto"}), LABELS)
    prepared = base.task.prepare(Examples(["good", "a very bad film"], np.zeros(2, np.int64), np.full(2, "")))
    together, alone = (
        logits_of(base.module(**base.task.collate(prepared, np.array(rows)).inputs))[0] for rows in ([0, 1], [0])
    )

    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_a_path_that_does_not_exist_is_refused_at_once(vision_run: MakeRun) -> None:
    for name in ("/no/such/folder", "./model", "a/b/c", "my model"):
        assert f"no folder {name}" in refusal(vision_run(model={"name": name}))


def test_a_folder_without_configuration_is_refused(vision_run: MakeRun, tmp_path: Path) -> None:
    assert "holds no config.json" in refusal(vision_run(model={"name": str(tmp_path)}))


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("config.json", b"{", "cannot load"),
        ("config.json", b'{"model_type": "no-such-model"}', "no-such-model"),
        ("model.safetensors", b"", "cannot load"),
        ("model.safetensors", b"\x10\0\0\0\0\0\0\0{nonsense       }", "cannot load"),
        ("preprocessor_config.json", b"{", "preprocessor_config.json is not JSON"),
    ],
)
@pytest.mark.parametrize("head", ["linear", "auto"])
def test_a_damaged_file_is_refused(
    vision_run: MakeRun, copied: Path, file: str, content: bytes, expected: str, head: str
) -> None:
    (copied / file).write_bytes(content)
    assert expected in refusal(vision_run(model={"name": str(copied), "head": head}))


def test_weights_that_were_cut_short_are_refused(vision_run: MakeRun, copied: Path) -> None:
    weights = copied / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "cannot load" in refusal(vision_run(model={"name": str(copied)}))


def test_missing_weights_are_refused(vision_run: MakeRun, copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    assert "model.safetensors" in refusal(vision_run(model={"name": str(copied)}))


@pytest.mark.parametrize("head", ["linear", "auto"])
def test_weights_of_another_model_are_refused(
    vision_run: MakeRun, copied: Path, tiny_text_model: Path, head: str
) -> None:
    shutil.copy(tiny_text_model / "model.safetensors", copied)
    assert "weights of another model" in refusal(vision_run(model={"name": str(copied), "head": head}))


@pytest.mark.parametrize("head", ["linear", "auto"])
def test_weights_of_another_size_are_refused(vision_run: MakeRun, copied: Path, head: str) -> None:
    settings = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**settings, "image_size": 32}))
    line = refusal(vision_run(model={"name": str(copied), "head": head}, task={"image_size": 32}))
    assert "position_embeddings of another size" in line


def test_a_text_encoder_for_pictures_and_the_other_way_round_are_refused(
    vision_run: MakeRun, text_run: MakeRun, tiny_vision_model: Path, tiny_text_model: Path
) -> None:
    assert "is no vision encoder" in refusal(vision_run(model={"name": str(tiny_text_model)}))
    assert "is a vision encoder" in refusal(text_run(model={"name": str(tiny_vision_model)}))


@pytest.mark.parametrize("pooling", ["cls", "cls_mean"])
def test_a_class_token_that_is_not_there_cannot_be_pooled(vision_run: MakeRun, tmp_path: Path, pooling: str) -> None:
    transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**VIT)).save_pretrained(tmp_path)
    assert "no class token" in refusal(vision_run(model={"name": str(tmp_path), "pooling": pooling}))


def test_pictures_smaller_than_a_patch_are_refused(vision_run: MakeRun, tmp_path: Path) -> None:
    transformers.Dinov2Model(transformers.Dinov2Config(**{**VIT, "patch_size": 14})).save_pretrained(tmp_path)
    line = refusal(vision_run(model={"name": str(tmp_path)}, task={"image_size": 8}))
    assert "does not take pictures of 8 x 8 pixels; its own are of 16" in line


def test_pictures_of_a_size_that_a_checkpoints_own_class_refuses_are_refused(
    vision_run: MakeRun, tmp_path: Path
) -> None:
    folder = own_head(tmp_path / "model", num_labels=3)
    line = refusal(vision_run(model={"name": str(folder), "head": "auto"}, task={"image_size": 24}))
    assert "does not take pictures of 24 x 24 pixels; its own are of 16" in line


def test_texts_longer_than_the_models_positions_are_refused(
    text_run: MakeRun, tiny_text_model: Path, tmp_path: Path
) -> None:
    line = refusal(text_run(task={"max_length": 129}))
    assert "task.max_length is 129" in line
    assert "at most 128 tokens" in line

    config = transformers.RobertaConfig(**SIZE, vocab_size=200, max_position_embeddings=66, pad_token_id=1)
    transformers.RobertaModel(config).save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(tiny_text_model).save_pretrained(tmp_path)
    assert "at most 64 tokens" in refusal(text_run(model={"name": str(tmp_path)}, task={"max_length": 65}))
    load_base_model(text_run(model={"name": str(tmp_path)}, task={"max_length": 64}), LABELS)


def test_a_text_model_without_tokenizer_is_refused(text_run: MakeRun, tiny_text_model: Path, tmp_path: Path) -> None:
    for file in ("config.json", "model.safetensors"):
        shutil.copy(tiny_text_model / file, tmp_path)
    assert "holds no vocabulary" in refusal(text_run(model={"name": str(tmp_path)}))


def test_a_family_without_classification_class_is_told_to_take_the_linear_head(
    vision_run: MakeRun, tmp_path: Path
) -> None:
    transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VIT)).save_pretrained(tmp_path)
    assert 'use head = "linear"' in refusal(vision_run(model={"name": str(tmp_path), "head": "auto"}))


def test_a_folders_fingerprint_follows_its_weights(vision_run: MakeRun, copied: Path) -> None:
    def fingerprint() -> str:
        return load_base_model(vision_run(model={"name": str(copied)}), LABELS).fingerprint

    before = fingerprint()
    assert before == load_base_model(vision_run(), LABELS).fingerprint
    model = transformers.ViTModel.from_pretrained(copied)
    with torch.no_grad():
        model.embeddings.cls_token += 1
    model.save_pretrained(copied)
    assert fingerprint() != before


def test_a_modules_fingerprint_follows_its_weights() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2).to(torch.bfloat16))
    before = fingerprint_of(module)
    assert fingerprint_of(module) == before
    module[1].num_batches_tracked += 1
    assert fingerprint_of(module) != before
