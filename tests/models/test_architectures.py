"""Encoders of many families, tiny and random: each is trained, judged, saved, and loaded again by PEFT alone."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import PeftModel
from torch import Tensor, nn

from fedlora.adapters import save_adapter
from fedlora.common.config import RunConfig
from fedlora.models.base_model import BaseModel, load_base_model
from fedlora.models.reach import logits_of
from fedlora.training.data import Examples
from fedlora.training.peft_bridge import ResidentModel, add_lora
from fedlora.training.trainer import LocalTrainer

MakeRun = Callable[..., RunConfig]
LABELS = ("a", "b", "c")

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
PATCHES = {**SIZE, "image_size": 16, "patch_size": 8, "initializer_range": 0.2}
STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
SWIN = {"image_size": 16, "patch_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
BOTH = {"vision_config": PATCHES, "text_config": {**SIZE, "vocab_size": 200, "pad_token_id": 0, "eos_token_id": 3}}
WORDS: dict[str, Any] = {**SIZE, "vocab_size": 200, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
T5 = {"vocab_size": 200, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}

# The family, its configuration, and how many tokens stand before the patches (None: no class token).
VISION: list[tuple[str, dict[str, Any], int | None]] = [
    ("ViT", PATCHES, 1),
    ("DeiT", PATCHES, 2),
    ("Dinov2", PATCHES, 1),
    ("Dinov2WithRegisters", {**PATCHES, "num_register_tokens": 3}, 4),
    ("DINOv3ViT", {**PATCHES, "num_register_tokens": 2}, 3),
    ("Beit", {**PATCHES, "use_relative_position_bias": True}, 1),
    ("ViTMAE", PATCHES, 1),
    ("CLIPVision", PATCHES, 1),
    ("CLIP", BOTH, 1),
    ("Siglip", BOTH, None),
    ("Swin", SWIN, None),
    ("Swinv2", SWIN, None),
]
TEXT: list[tuple[str, dict[str, Any]]] = [
    ("Bert", WORDS),
    ("Roberta", WORDS),
    ("DistilBert", {"vocab_size": 200, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}),
    ("Electra", {**WORDS, "embedding_size": 16}),
    ("DebertaV2", {**WORDS, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
    ("MPNet", WORDS),
    ("ModernBert", {**WORDS, "cls_token_id": 2, "sep_token_id": 3}),
    ("Llama", {**WORDS, "pad_token_id": None}),
    ("GPT2", {"vocab_size": 200, "n_embd": 32, "n_layer": 2, "n_head": 2, "eos_token_id": 3, "bos_token_id": 2}),
    ("T5", {**T5, "decoder_start_token_id": 0, "eos_token_id": 3}),
    ("T5Encoder", T5),
    ("CLIP", BOTH),
]
WITH_OWN_HEAD = ("ViT", "DeiT", "Dinov2", "Beit", "Swin", "Bert", "Roberta", "DistilBert", "DebertaV2", "Llama", "T5")


def save(family: str, settings: Mapping[str, Any], folder: Path, tokenizer: Path | None = None) -> Path:
    """Save a random model of `family`, with the tokenizer of another folder."""
    config_class = getattr(transformers, f"{family.replace('T5Encoder', 'T5')}Config")
    torch.manual_seed(0)
    getattr(transformers, f"{family}Model")(config_class(**settings)).save_pretrained(folder)
    if tokenizer is not None:
        transformers.AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return folder


def pictures() -> Examples:
    inputs = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 1), dtype=np.uint8)
    return Examples(inputs, np.arange(6) % 3, np.full(6, ""))


def texts() -> Examples:
    inputs = ["good film", "a very bad film and not fine", "awful", "", "poor poor poor", "the great"]
    return Examples(inputs, np.arange(6) % 3, np.full(6, ""))


def build(config: RunConfig) -> tuple[BaseModel, ResidentModel, LocalTrainer[Any]]:
    torch.manual_seed(1)
    base = load_base_model(config, LABELS)
    resident = add_lora(
        base.module, config.lora, heads=base.heads, task_type=base.peft_task_type, name=config.model.name
    )
    return base, resident, LocalTrainer(resident, base.task, config.train, device=torch.device("cpu"))


def logits(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    model.eval()
    with torch.no_grad():
        return logits_of(model(**inputs))


def train_and_load_again(config: RunConfig, examples: Examples, folder: Path) -> tuple[BaseModel, Mapping[str, Tensor]]:
    """Check what holds for every model; return a base model as it was, and the inputs of all examples."""
    base, resident, trainer = build(config)
    prepared = base.task.prepare(examples)
    together = trainer.evaluate(prepared, np.arange(6), batch_size=6)
    alone = trainer.evaluate(prepared, np.arange(6), batch_size=1)
    np.testing.assert_allclose(alone.losses, together.losses, atol=1e-5)

    frozen = {name: value.clone() for name, value in resident.peft_model.state_dict().items() if "default" not in name}
    before = resident.read()
    result = trainer.train(prepared, progress=(0.0, 1.0), batch_seed=1, dropout_seed=1)
    after = resident.read()
    assert result.is_finite
    assert all(not torch.equal(before.layers[path].B, layer.B) for path, layer in after.layers.items())
    assert all(not torch.equal(before.dense[path], tensor) for path, tensor in after.dense.items())
    now = resident.peft_model.state_dict()
    assert all(torch.equal(value, now[name]) for name, value in frozen.items())

    save_adapter(after, folder)
    torch.manual_seed(2)
    fresh = load_base_model(config, LABELS)
    inputs = base.task.collate(prepared, np.arange(6)).inputs
    loaded = PeftModel.from_pretrained(fresh.module, str(folder))
    torch.testing.assert_close(logits(loaded, inputs), logits(resident.peft_model, inputs), rtol=0, atol=1e-5)
    return base, inputs


@pytest.mark.parametrize(("family", "settings", "num_prefix_tokens"), VISION, ids=[family for family, *_ in VISION])
def test_a_vision_encoder_trains_and_its_adapter_loads_into_the_plain_encoder(
    vision_run: MakeRun, tmp_path: Path, family: str, settings: dict[str, Any], num_prefix_tokens: int | None
) -> None:
    config = vision_run(model={"name": str(save(family, settings, tmp_path / "model"))})
    base, inputs = train_and_load_again(config, pictures(), tmp_path / "adapter")

    plain = transformers.AutoModel.from_pretrained(tmp_path / "model")
    plain = getattr(plain, "vision_model", plain)
    if family == "ViTMAE":
        plain.config.mask_ratio = 0.0
    encoder = PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).eval()
    options = {} if num_prefix_tokens is None or family == "DINOv3ViT" else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        hidden = encoder(**inputs, **(options if "Dinov2" not in family else {})).last_hidden_state
    features = [hidden.mean(1)]
    if num_prefix_tokens is not None:
        features = [hidden[:, 0], hidden[:, num_prefix_tokens:].mean(1)]
    expected = base.module.classification_head(torch.cat(features, dim=1))
    torch.testing.assert_close(logits(base.module, inputs), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("family", "settings"), TEXT, ids=[family for family, _ in TEXT])
def test_a_text_encoder_trains_and_its_adapter_loads_into_the_plain_encoder(
    text_run: MakeRun, tiny_text_model: Path, tmp_path: Path, family: str, settings: dict[str, Any]
) -> None:
    config = text_run(model={"name": str(save(family, settings, tmp_path / "model", tiny_text_model))})
    base, inputs = train_and_load_again(config, texts(), tmp_path / "adapter")

    plain = transformers.AutoModel.from_pretrained(tmp_path / "model")
    plain = plain.get_encoder() if "T5" in family else getattr(plain, "text_model", plain)
    encoder = PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).eval()
    with torch.no_grad():
        hidden = encoder(**inputs).last_hidden_state
    features = torch.stack([row[mask == 1].mean(0) for row, mask in zip(hidden, inputs["attention_mask"], strict=True)])
    expected = base.module.classification_head(features)
    torch.testing.assert_close(logits(base.module, inputs), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "settings"), [(family, settings) for family, settings, _ in VISION if family in WITH_OWN_HEAD]
)
def test_a_vision_checkpoints_own_classification_class_trains(
    vision_run: MakeRun, tmp_path: Path, family: str, settings: dict[str, Any]
) -> None:
    folder = save(family, settings, tmp_path / "model")
    train_and_load_again(vision_run(model={"name": str(folder), "head": "auto"}), pictures(), tmp_path / "adapter")


@pytest.mark.parametrize(("family", "settings"), [pair for pair in TEXT if pair[0] in WITH_OWN_HEAD])
def test_a_text_checkpoints_own_classification_class_trains(
    text_run: MakeRun, tiny_text_model: Path, tmp_path: Path, family: str, settings: dict[str, Any]
) -> None:
    folder = save(family, settings, tmp_path / "model", tiny_text_model)
    train_and_load_again(text_run(model={"name": str(folder), "head": "auto"}), texts(), tmp_path / "adapter")
