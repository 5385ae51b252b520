"""Adapters that stay on disk: equal to loaded ones, read only when asked, and honest about files that change."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest
import torch
from torch import Tensor

from fedlora.adapters import Adapter, LoraLayer, load_adapter, open_adapter, save_adapter
from fedlora.common.errors import AdapterError

CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "alpha_pattern": {"v": 2}}
TENSORS = "adapter_model.safetensors"


def random_adapter(dtype: torch.dtype = torch.float32) -> Adapter:
    def random(*shape: int) -> Tensor:
        return torch.randn(*shape).to(dtype)

    torch.manual_seed(0)
    layers = {
        "embed": LoraLayer(random(4, 9), random(6, 4), 2.0, is_embedding=True),
        "q": LoraLayer(random(4, 6), random(5, 4), 2.0, bias=random(5), magnitude=random(5)),
        "v": LoraLayer(random(2, 6), random(5, 2), 1.0),
    }
    return Adapter(layers, {"head.bias": random(3), "empty": random(0, 3), "step": random(1).squeeze()}, CONFIG)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_adapter(random_adapter(), tmp_path / "adapter")
    return tmp_path / "adapter"


def parts_of(layers: Mapping[str, LoraLayer]) -> dict[str, Tensor]:
    return {
        f"{path}.{part}": tensor
        for path, layer in layers.items()
        for part in ("A", "B", "bias", "magnitude")
        if (tensor := getattr(layer, part)) is not None
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_an_opened_adapter_is_the_one_that_was_saved(dtype: torch.dtype, tmp_path: Path) -> None:
    saved = random_adapter(dtype)
    save_adapter(saved, tmp_path)
    for found in (open_adapter(tmp_path), load_adapter(tmp_path)):
        assert list(found.layers) == list(saved.layers)
        torch.testing.assert_close(parts_of(found.layers), parts_of(saved.layers), rtol=0, atol=0)
        torch.testing.assert_close(dict(found.dense), dict(saved.dense), rtol=0, atol=0)
        assert {path: layer.scaling for path, layer in found.layers.items()} == {"embed": 2.0, "q": 2.0, "v": 1.0}
        assert [layer.is_embedding for layer in found.layers.values()] == [True, False, False]
        assert found.config == saved.config
        assert found.size_bytes() == saved.size_bytes()


def test_each_access_reads_the_file_anew_into_memory_of_its_own(folder: Path) -> None:
    adapter = open_adapter(folder)
    adapter.layers["q"].A.zero_()
    adapter.dense["head.bias"].zero_()
    assert adapter.layers["q"].A.all()
    assert adapter.dense["head.bias"].all()
    with pytest.raises(KeyError):
        adapter.layers["k"]
    assert "k" not in adapter.layers


def test_the_outline_tells_shapes_types_and_scaling_without_the_file(folder: Path) -> None:
    adapter, saved = open_adapter(folder), random_adapter()
    shutil.rmtree(folder)
    assert {path: layer.shapes() for path, layer in adapter.outline.items()} == {
        path: layer.shapes() for path, layer in saved.layers.items()
    }
    assert adapter.outline["q"].A.is_meta
    assert adapter.outline["v"].scaling == 1.0
    assert {path: tuple(tensor.shape) for path, tensor in adapter.dense_outline.items()} == {
        "empty": (0, 3),
        "head.bias": (3,),
        "step": (),
    }
    assert adapter.size_bytes() == saved.size_bytes()
    assert saved.outline is saved.layers
    assert saved.dense_outline is saved.dense


def test_a_file_that_shrinks_or_goes_after_it_was_opened_is_named_with_the_tensor(folder: Path) -> None:
    adapter, path = open_adapter(folder), folder / TENSORS
    path.write_bytes(path.read_bytes()[:-200])
    last = f"{path}: ends within .*; it has changed since it was opened"
    with pytest.raises(AdapterError, match=last):
        [adapter.layers[name] for name in adapter.layers]
    path.unlink()
    with pytest.raises(AdapterError, match=f"{path}: cannot be read \\(No such file or directory\\)"):
        adapter.layers["q"]


def test_what_does_not_fit_is_found_before_a_tensor_is_asked_for(folder: Path) -> None:
    path = folder / TENSORS
    path.write_bytes(path.read_bytes().replace(b"q.lora_B.weight", b"q.lora_A_weight"))
    with pytest.raises(AdapterError, match="lora_A_weight is not part of a linear or embedding LoRA layer"):
        open_adapter(folder)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(AdapterError, match="not a safetensors file"):
        open_adapter(folder)


def test_opened_adapters_take_no_memory_for_their_tensors_also_after_these_were_read(tmp_path: Path) -> None:
    layers = {f"{place}.q": LoraLayer(torch.ones(8, 40_000), torch.ones(40_000, 8), 1.0) for place in range(4)}
    save_adapter(Adapter(layers, {}, {"peft_type": "LORA", "r": 8, "lora_alpha": 8}), tmp_path)
    opened = [open_adapter(tmp_path) for _ in range(12)]
    process = psutil.Process()
    sum(float(layer.A[0, 0]) for layer in opened[0].layers.values())
    before = process.memory_info().rss
    for adapter in opened:
        assert sum(float(adapter.layers[path].A[0, 0]) for path in adapter.layers) == 4
    assert process.memory_info().rss - before < 10e6  # One of them has 10 MB, and all 123.
