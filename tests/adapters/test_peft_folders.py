"""Folders that the real PEFT wrote and reads, of a tiny real model."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import Tensor, nn

from fedlora.adapters import Adapter, LoraLayer, load_adapter, save_adapter
from fedlora.common.errors import AdapterError

IN, HIDDEN, LABELS = 6, 10, 3
INPUTS = torch.linspace(-1, 1, 4 * IN).view(4, IN)

MakeModel = Callable[..., PeftModel]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(HIDDEN, HIDDEN)
        self.value = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + torch.tanh(self.query(hidden)) * self.value(hidden)


class TinyModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(IN, HIDDEN)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(HIDDEN, LABELS)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.embed(inputs)
        for block in self.blocks:
            hidden = block(hidden)
        logits: Tensor = self.head(hidden)
        return logits


def base_model() -> nn.Module:
    torch.manual_seed(0)
    return TinyModel()


def peft_model(**options: Any) -> PeftModel:
    """Return a PEFT model whose A, B and head are all random."""
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["query", "value"], modules_to_save=["head"])
    model = get_peft_model(base_model(), replace(config, **options))
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no head": {"modules_to_save": None},
    "rslora": {"use_rslora": True},
    "ranks": {"rank_pattern": {"blocks.1.query": 2, "value": 3}},
    "alphas": {"alpha_pattern": {"blocks.0.query": 1, "query": 20}},
    "overlapping alphas": {"alpha_pattern": {"query": 20, "blocks.0.query": 1}},
    "regular expression": {"alpha_pattern": {r"blocks\.[01]\.v.*": 5}, "rank_pattern": {r".*\.1\..*": 2}},
    "ends of names only": {"alpha_pattern": {"blocks.1": 5, "uery": 6}},
    "expression for targets": {"target_modules": r"blocks\.1\.(query|value)"},
}
each_config = pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS.keys())
pytestmark = pytest.mark.filterwarnings("ignore:The following alpha_pattern keys did not match:RuntimeWarning")


def saved(folder: Path, **options: Any) -> PeftModel:
    """Return what PEFT reads of a model that PEFT wrote; it sorts the patterns, of which the first match counts."""
    peft_model(**options).save_pretrained(folder)
    return PeftModel.from_pretrained(base_model(), str(folder)).eval()


def scalings(model: PeftModel) -> dict[str, float]:
    """Return PEFT's own scaling by module path."""
    return {
        name.removeprefix("base_model.model."): module.scaling["default"]
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }


@torch.no_grad()
def logits_of(model: nn.Module) -> Tensor:
    logits: Tensor = model(INPUTS)
    return logits


def tensors_of(adapter: Adapter) -> dict[str, Tensor]:
    pairs = {f"{path}.{side}": getattr(layer, side) for path, layer in adapter.layers.items() for side in "AB"}
    return pairs | dict(adapter.dense)


@each_config
def test_a_folder_of_pefts_is_loaded_with_pefts_scaling(options: dict[str, Any], tmp_path: Path) -> None:
    model = saved(tmp_path, **options)
    adapter = load_adapter(tmp_path)
    assert {path: layer.scaling for path, layer in adapter.layers.items()} == pytest.approx(scalings(model))
    heads = set() if options.get("modules_to_save", ()) is None else {"head.weight", "head.bias"}
    assert set(adapter.dense) == heads


@each_config
def test_the_loaded_pairs_and_head_explain_pefts_logits(options: dict[str, Any], tmp_path: Path) -> None:
    model, plain = saved(tmp_path, **options), base_model()
    adapter = load_adapter(tmp_path)
    with torch.no_grad():
        for path, layer in adapter.layers.items():
            plain.get_submodule(path).weight += layer.scaling * layer.B @ layer.A  # type: ignore[operator, arg-type]
        for path, tensor in adapter.dense.items():
            plain.get_parameter(path).copy_(tensor)
    torch.testing.assert_close(logits_of(plain), logits_of(model), rtol=1e-5, atol=1e-5)


@each_config
def test_a_saved_folder_gives_plain_peft_the_same_logits(options: dict[str, Any], tmp_path: Path) -> None:
    model = saved(tmp_path / "theirs", **options)
    save_adapter(load_adapter(tmp_path / "theirs"), tmp_path / "ours")
    loaded = PeftModel.from_pretrained(base_model(), str(tmp_path / "ours")).eval()
    assert torch.equal(logits_of(loaded), logits_of(model))


@each_config
def test_a_state_dict_with_its_config_is_the_models_adapter(options: dict[str, Any], tmp_path: Path) -> None:
    model = peft_model(**options)
    model.save_pretrained(tmp_path)
    from_folder = load_adapter(tmp_path)
    live = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    assert any(".default." in name for name in live)
    for state_dict in (get_peft_model_state_dict(model), live):
        adapter = load_adapter(state_dict, model.peft_config["default"])
        torch.testing.assert_close(tensors_of(adapter), tensors_of(from_folder), rtol=0, atol=0)
        assert {path: layer.scaling for path, layer in adapter.layers.items()} == pytest.approx(scalings(model))
        json.dumps(adapter.config)


def test_a_state_dict_without_its_config_is_a_programmers_error() -> None:
    with pytest.raises(ValueError, match="a state dict needs its LoraConfig"):
        load_adapter({})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_tensors_keep_their_type_in_a_folder(dtype: torch.dtype, tmp_path: Path) -> None:
    peft_model().to(dtype).save_pretrained(tmp_path / "theirs")
    adapter = load_adapter(tmp_path / "theirs")
    save_adapter(adapter, tmp_path / "ours")
    again = load_adapter(tmp_path / "ours")
    assert {tensor.dtype for tensor in tensors_of(again).values()} == {dtype}
    torch.testing.assert_close(tensors_of(again), tensors_of(adapter), rtol=0, atol=0)
    assert again.config == adapter.config


BESIDE_THE_PAIRS: dict[str, tuple[dict[str, Any], dict[str, set[str]]]] = {
    "DoRA": ({"use_dora": True}, {"magnitude": {"query", "value"}}),
    "lora_bias": ({"lora_bias": True}, {"bias": {"query", "value"}}),
    "DoRA and rslora": ({"use_dora": True, "use_rslora": True, "rank_pattern": {"query": 2}}, {"magnitude": {"query"}}),
    "biases of all": ({"bias": "all"}, {}),
    "biases of the adapted": ({"bias": "lora_only"}, {}),
}


@pytest.mark.parametrize(("options", "parts"), BESIDE_THE_PAIRS.values(), ids=BESIDE_THE_PAIRS.keys())
@pytest.mark.filterwarnings("ignore:.* LoRA tensor.* invalid shape")
def test_what_is_trained_beside_the_pairs_goes_through_a_folder_of_ours(
    options: dict[str, Any], parts: dict[str, set[str]], tmp_path: Path
) -> None:
    model = saved(tmp_path / "theirs", **options)
    adapter = load_adapter(tmp_path / "theirs")
    for part, names in parts.items():
        assert all(getattr(adapter.layers[f"blocks.1.{name}"], part) is not None for name in names)
    biases = {path for path in adapter.dense if path.endswith("bias") and "head" not in path}
    assert bool(biases) == (options.get("bias", "none") != "none")
    save_adapter(adapter, tmp_path / "ours")
    loaded = PeftModel.from_pretrained(base_model(), str(tmp_path / "ours")).eval()
    assert torch.equal(logits_of(loaded), logits_of(model))
    assert (logits_of(loaded) - logits_of(base_model())).abs().max() > 0.01


class TinyText(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, HIDDEN)
        self.head = nn.Linear(HIDDEN, LABELS)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.embed(tokens).mean(1))
        return logits


TOKENS = torch.tensor([[0, 1, 2], [4, 5, 6]])


def text_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return TinyText().eval()


@torch.no_grad()
def text_logits(model: nn.Module) -> Tensor:
    logits: Tensor = model(TOKENS)
    return logits


def saved_text_model(folder: Path, **options: Any) -> PeftModel:
    model = get_peft_model(text_model(), LoraConfig(r=2, lora_alpha=6, **options))
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    return model.eval()


def test_an_embedding_is_a_pair_whose_transpose_changes_the_weight(tmp_path: Path) -> None:
    model = saved_text_model(tmp_path / "theirs", target_modules=["embed", "head"])
    adapter = load_adapter(tmp_path / "theirs")
    assert {path: layer.is_embedding for path, layer in adapter.layers.items()} == {"embed": True, "head": False}
    assert adapter.layers["embed"].shapes() == f"A (2, 7), B ({HIDDEN}, 2)"
    plain = text_model()
    with torch.no_grad():
        for path, layer in adapter.layers.items():
            change = layer.scaling * layer.B @ layer.A
            plain.get_parameter(f"{path}.weight").add_(change.T if layer.is_embedding else change)
    torch.testing.assert_close(text_logits(plain), text_logits(model), rtol=1e-5, atol=1e-5)
    save_adapter(adapter, tmp_path / "ours")
    loaded = PeftModel.from_pretrained(text_model(), str(tmp_path / "ours")).eval()
    assert torch.equal(text_logits(loaded), text_logits(model))


def test_a_frozen_embedding_that_peft_saved_beside_its_pair_is_left_out() -> None:
    pair = {"embed.lora_embedding_A": torch.ones(2, 7), "embed.lora_embedding_B": torch.ones(HIDDEN, 2)}
    whole = {"embed.base_layer.weight": torch.ones(7, HIDDEN)}
    adapter = load_adapter(pair | whole, {"peft_type": "LORA", "lora_alpha": 2})
    assert set(adapter.layers) == {"embed"}
    assert not adapter.dense


def test_trained_tokens_go_through_a_folder_of_ours(tmp_path: Path) -> None:
    model = saved_text_model(tmp_path / "theirs", target_modules=["head"], trainable_token_indices={"embed": [1, 5]})
    adapter = load_adapter(tmp_path / "theirs")
    (tokens,) = adapter.dense.values()
    assert tokens.shape == (2, HIDDEN)
    save_adapter(adapter, tmp_path / "ours")
    loaded = PeftModel.from_pretrained(text_model(), str(tmp_path / "ours")).eval()
    assert torch.equal(text_logits(loaded), text_logits(model))


def test_a_convolution_that_peft_wrote_is_refused_by_name(tmp_path: Path) -> None:
    model = get_peft_model(nn.Sequential(nn.Conv2d(3, 5, 2)), LoraConfig(r=2, target_modules=["0"]))
    model.save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match=r"0 has A \(2, 3, 2, 2\), B \(5, 2, 1, 1\), a convolution's"):
        load_adapter(tmp_path)


def test_an_adapter_whose_config_gives_another_scaling_is_not_written(tmp_path: Path) -> None:
    peft_model().save_pretrained(tmp_path / "theirs")
    adapter = load_adapter(tmp_path / "theirs")
    scaled = {path: LoraLayer(layer.A, layer.B, 2 * layer.scaling) for path, layer in adapter.layers.items()}
    with pytest.raises(ValueError, match=r"blocks\.0\.query scales by 3, by the adapter's config it would by 1\.5"):
        save_adapter(Adapter(scaled, adapter.dense, adapter.config), tmp_path / "ours")
    with pytest.raises(ValueError, match="no peft_type 'LORA'"):
        save_adapter(Adapter(adapter.layers, adapter.dense, {"lora_alpha": 6}), tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
