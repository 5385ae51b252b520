"""Packed files that stay on disk: equal to what `unpack` makes of their bytes, and refused for the same reasons."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor

from fedlora.adapters import Adapter, LoraLayer, pack, unpack
from fedlora.adapters.packed import metadata_of, open_packed, packed_config
from fedlora.common.errors import AdapterError

few = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

CONFIG = {"peft_type": "LORA", "lora_alpha": 8, "alpha_pattern": {"v": 2}}


def random_adapter(dtype: torch.dtype = torch.float32) -> Adapter:
    torch.manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape).to(dtype)

    layers = {
        "embed": LoraLayer(random(4, 9), random(6, 4), 2.0, is_embedding=True),
        "q": LoraLayer(random(4, 6), random(5, 4), 2.0, bias=random(5), magnitude=random(5)),
        "v": LoraLayer(random(2, 6), random(5, 2), 1.0),
    }
    base_change = {
        "embed": LoraLayer(random(3, 9), random(6, 3), 1.0, is_embedding=True),
        "q": LoraLayer(random(9, 6), random(5, 9), 1.0),
    }
    return Adapter(layers, {"head.bias": random(3), "empty": random(0, 3)}, CONFIG, base_change)


def parts_of(layers: Mapping[str, LoraLayer]) -> dict[str, Tensor]:
    return {
        f"{path}.{part}": tensor
        for path, layer in layers.items()
        for part in ("A", "B", "bias", "magnitude")
        if (tensor := getattr(layer, part)) is not None
    }


def assert_same(found: Adapter, expected: Adapter) -> None:
    for one, other in ((found.layers, expected.layers), (found.base_change, expected.base_change)):
        assert [(path, pair.scaling, pair.is_embedding) for path, pair in one.items()] == [
            (path, pair.scaling, pair.is_embedding) for path, pair in other.items()
        ]
        torch.testing.assert_close(parts_of(one), parts_of(other), rtol=0, atol=0)
    torch.testing.assert_close(dict(found.dense), dict(expected.dense), rtol=0, atol=0)
    assert found.config == expected.config
    assert found.size_bytes() == expected.size_bytes()


def written(path: Path, raw: bytes) -> Path:
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_an_opened_file_is_the_adapter_that_was_packed(dtype: torch.dtype, tmp_path: Path) -> None:
    raw = pack(random_adapter(dtype))
    found = open_packed(written(tmp_path / "packed", raw))
    assert_same(found, unpack(raw))
    assert pack(found) == raw


@pytest.mark.parametrize("side", ["A", "B"])
@pytest.mark.parametrize("is_on_disk", [False, True])
def test_a_factor_that_was_left_out_is_taken_from_the_frozen_adapter(
    side: str, is_on_disk: bool, tmp_path: Path
) -> None:
    whole = random_adapter()
    raw = pack(whole, without=side)
    path = written(tmp_path / "packed", raw)
    frozen = open_packed(written(tmp_path / "frozen", pack(whole))) if is_on_disk else whole
    found = open_packed(path, without=side, frozen=frozen)
    assert_same(found, unpack(raw, without=side, frozen=whole))
    assert pack(found) == pack(whole)
    assert not is_on_disk or found.outline["q"].A.is_meta
    for arguments in ({}, {"frozen": frozen}, {"without": side}):
        with pytest.raises(AdapterError, match=f"packed: .* has no lora_(embedding_)?{side}"):
            open_packed(path, **arguments)


def test_a_factor_that_was_not_to_be_sent_or_does_not_fit_is_refused(tmp_path: Path) -> None:
    whole = replace(random_adapter(), base_change={})
    path = written(tmp_path / "packed", pack(whole))
    with pytest.raises(AdapterError, match=r"embed\.lora_embedding_A, of a factor that was not to be trained or sent"):
        open_packed(path, without="A", frozen=whole)
    path.write_bytes(pack(whole, without="A"))
    other = {name: LoraLayer(torch.ones(3, 6), torch.ones(5, 3), 2.0) for name in ("q", "v")}
    with pytest.raises(AdapterError, match=r"q has A \(3, 6\), B \(5, 4\); expected"):
        open_packed(path, without="A", frozen=replace(whole, layers=dict(whole.layers) | other))
    with pytest.raises(AdapterError, match="embed has no lora_embedding_A"):
        open_packed(path, without="A", frozen=Adapter({}, {}, CONFIG))


def test_each_access_reads_the_file_anew_and_the_outline_reads_nothing(tmp_path: Path) -> None:
    path = written(tmp_path / "packed", pack(random_adapter()))
    found = open_packed(path)
    found.layers["q"].A.zero_()
    assert found.layers["q"].A.all()
    path.unlink()
    assert found.outline["v"].shapes() == "A (2, 6), B (5, 2)"
    assert found.size_bytes() == random_adapter().size_bytes()
    assert found.base_change["q"].A.all()
    with pytest.raises(AdapterError, match=f"{path}: cannot be read"):
        found.layers["q"]


def test_opened_files_take_no_memory_for_their_tensors(tmp_path: Path) -> None:
    layers = {f"{place}.q": LoraLayer(torch.ones(8, 40_000), torch.ones(40_000, 8), 1.0) for place in range(4)}
    path = written(tmp_path / "packed", pack(Adapter(layers, {}, {"peft_type": "LORA", "lora_alpha": 8})))
    first = open_packed(path)
    assert sum(float(layer.A[0, 0]) for layer in first.layers.values()) == 4
    process = psutil.Process()
    before = process.memory_info().rss
    for adapter in [open_packed(path) for _ in range(12)]:
        assert sum(float(layer.A[0, 0]) for layer in adapter.layers.values()) == 4
    assert process.memory_info().rss - before < 10e6  # One of them has 10 MB, and all 123.


def test_the_configuration_is_read_from_the_header_alone(tmp_path: Path) -> None:
    raw = pack(random_adapter())
    path = written(tmp_path / "packed", raw[:-200])
    assert packed_config(path) == packed_config(raw) == CONFIG
    assert metadata_of(path) == {"adapter_config": json.dumps(CONFIG), "format": "pt"}
    with pytest.raises(AdapterError, match="packed: not a safetensors file"):
        open_packed(path)


PAIR = {"base_model.model.q.lora_A.weight": torch.ones(4, 6), "base_model.model.q.lora_B.weight": torch.ones(5, 4)}
RAW = save(PAIR, {"adapter_config": json.dumps(CONFIG)})


def both_refuse(raw: bytes, path: Path) -> None:
    with pytest.raises(AdapterError):
        unpack(raw)
    with pytest.raises(AdapterError):
        open_packed(written(path, raw))


def test_what_unpack_refuses_is_refused_here_too(tmp_path: Path) -> None:
    path = tmp_path / "packed"
    configs = ["", "{", "[1]", "null", "[" * 100_000, '{"lora_alpha": "x"}', '{"target_parameters": ["x"]}']
    for raw in (
        *(save(PAIR, {"adapter_config": config}) for config in configs),
        *(RAW[:length] for length in range(0, len(RAW), 7)),
        RAW + b"\0" * 8,
        save(PAIR),
        save(PAIR, {"format": "pt"}),
        save(dict([*PAIR.items()][:1]), {"adapter_config": json.dumps(CONFIG)}),
        (2**40).to_bytes(8, "little") + b" " * 100,
    ):
        both_refuse(raw, path)
    path.unlink()
    with pytest.raises(AdapterError, match=r"packed: cannot be read \(No such file"):
        open_packed(path)


@pytest.mark.parametrize(
    ("shape", "size"), [([2**40], 2**42), ([2**63, 0], 0), ([2**62, 2**62, 0], 0), ([0, 2**63 - 1, 4], 0)]
)
def test_shapes_that_no_tensor_can_have_are_refused(shape: list[int], size: int, tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}
    header = json.dumps({"__metadata__": {"adapter_config": json.dumps(CONFIG)}, "x": entry}).encode()
    both_refuse(len(header).to_bytes(8, "little") + header, tmp_path / "packed")


@few
@given(st.integers(0, len(RAW) - 1), st.integers(1, 255))
def test_a_changed_byte_has_the_same_outcome_in_memory_and_on_disk(tmp_path: Path, place: int, change: int) -> None:
    raw = bytearray(RAW)
    raw[place] ^= change
    path = written(tmp_path / "packed", bytes(raw))
    try:
        expected = unpack(bytes(raw))
    except AdapterError:
        with pytest.raises(AdapterError):
            open_packed(path)
        return
    found = open_packed(path)
    torch.testing.assert_close(parts_of(found.layers), parts_of(expected.layers), rtol=0, atol=0, equal_nan=True)
