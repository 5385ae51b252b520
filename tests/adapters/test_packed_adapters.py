"""Adapters as bytes: exact there and back, and nothing but an AdapterError for bytes that are none."""

import io
import json
import pickle
import resource
import sys
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor

from fedlora.adapters import Adapter, LoraLayer, load_adapter, pack, unpack
from fedlora.adapters.packed import packed_config
from fedlora.common.errors import AdapterError

few = settings(derandomize=True, database=None, deadline=None, max_examples=100)

CONFIG = {"peft_type": "LORA", "lora_alpha": 8, "alpha_pattern": {}, "use_rslora": False}


def random_adapter(dtype: torch.dtype = torch.float32, config: Mapping[str, object] = CONFIG) -> Adapter:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    layers = {path: LoraLayer(random(4, 6), random(5, 4), 2.0) for path in ("blocks.0.query", "blocks.1.query")}
    return Adapter(layers, {"head.weight": random(3, 5), "head.bias": random(3)}, config)


def tensors_of(adapter: Adapter) -> dict[str, Tensor]:
    pairs = {f"{path}.{side}": getattr(layer, side) for path, layer in adapter.layers.items() for side in "AB"}
    return pairs | dict(adapter.dense)


def packed(tensors: Mapping[str, Tensor], config: str = json.dumps(CONFIG)) -> bytes:
    return save({f"base_model.model.{name}": tensor for name, tensor in tensors.items()}, {"adapter_config": config})


PAIR = {"q.lora_A.weight": torch.ones(4, 6), "q.lora_B.weight": torch.ones(5, 4)}
WHOLE = pack(random_adapter())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_every_bit_comes_out_as_it_went_in(dtype: torch.dtype) -> None:
    adapter = random_adapter(dtype)
    again = unpack(pack(adapter))
    assert again.config == adapter.config
    assert again.layers["blocks.0.query"].scaling == 2.0
    assert tensors_of(again).keys() == tensors_of(adapter).keys()
    for name, tensor in tensors_of(again).items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor.view(torch.uint8), tensors_of(adapter)[name].view(torch.uint8))
    assert pack(again) == pack(adapter)


def test_nan_infinity_and_minus_zero_come_out_as_they_went_in() -> None:
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 1e-45])
    again = unpack(pack(Adapter({}, {"bias": special}, CONFIG))).dense["bias"]
    assert torch.equal(again.view(torch.int32), special.view(torch.int32))


def test_views_and_transposed_tensors_are_packed_as_what_they_show() -> None:
    buffer = torch.arange(44.0)
    A, B = buffer[:24].view(6, 4).T, buffer[24:].view(5, 4)
    layer = unpack(pack(Adapter({"q": LoraLayer(A, B, 2.0)}, {}, CONFIG))).layers["q"]
    assert torch.equal(layer.A, A)
    assert torch.equal(layer.B, B)


def test_the_order_of_alpha_patterns_is_kept_for_the_first_match_counts() -> None:
    config = CONFIG | {"alpha_pattern": {"query": 8, "blocks.0.query": 1}}
    again = unpack(pack(random_adapter(config=config)))
    assert again.layers["blocks.0.query"].scaling == 2.0
    assert again.config == config


def test_the_same_adapter_gives_the_same_bytes_in_any_order_of_its_layers() -> None:
    adapter = random_adapter()
    turned = Adapter(dict(reversed(adapter.layers.items())), dict(reversed(adapter.dense.items())), CONFIG)
    assert pack(turned) == pack(adapter)


def test_the_configuration_can_be_read_alone() -> None:
    assert packed_config(WHOLE) == CONFIG
    assert packed_config(WHOLE[:-10]) == CONFIG


def test_an_adapter_whose_config_gives_another_scaling_is_not_packed() -> None:
    with pytest.raises(ValueError, match=r"blocks\.0\.query scales by 2, by the adapter's config it would by 4"):
        pack(random_adapter(config=CONFIG | {"lora_alpha": 16}))


def test_bytes_cut_anywhere_are_refused() -> None:
    for length in {*range(0, len(WHOLE), 7), len(WHOLE) - 1}:
        with pytest.raises(AdapterError):
            unpack(WHOLE[:length])


def test_a_body_longer_than_its_header_says_is_refused() -> None:
    with pytest.raises(AdapterError, match="not a safetensors file"):
        unpack(WHOLE + b"\0" * 8)


@few
@given(st.binary(max_size=200))
def test_garbage_is_refused(raw: bytes) -> None:
    with pytest.raises(AdapterError):
        unpack(raw)


@few
@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
def test_a_changed_byte_is_a_changed_value_or_refused(place: int, change: int) -> None:
    raw = bytearray(WHOLE)
    raw[place] ^= change
    assert isinstance(outcome(bytes(raw)), Adapter | AdapterError)


def outcome(raw: bytes) -> Adapter | AdapterError:
    try:
        return unpack(raw)
    except AdapterError as error:
        return error


@pytest.mark.parametrize(
    ("dtype", "shape", "size"),
    [
        ("F32", [2**40], 2**42),
        ("F32", [2**20, 2**20], 2**42),
        ("F32", [2**40], 16),
        ("F32", [2**63, 2], 16),
        ("F32", [-4], 16),
        ("F32", [2], 2**63),
        ("F33", [4], 16),
        ("F32", "x", 16),
    ],
)
def test_a_header_that_claims_what_is_not_there_is_refused_before_memory_is_taken(
    dtype: str, shape: object, size: int
) -> None:
    claim = {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}
    header = json.dumps({"__metadata__": {"adapter_config": json.dumps(CONFIG)}, "base_model.model.x": claim}).encode()
    before = peak_memory_bytes()
    with pytest.raises(AdapterError, match="not a safetensors file"):
        unpack(len(header).to_bytes(8, "little") + header + b"\0" * 16)
    assert peak_memory_bytes() - before < 2**26


def test_a_header_that_claims_to_be_enormous_is_refused_unread() -> None:
    for size in (10_000_001, 2**40, 2**64 - 1):
        with pytest.raises(AdapterError, match=rf"without the header of a packed adapter .*{size:,} bytes"):
            unpack(size.to_bytes(8, "little") + b" " * 100)


def peak_memory_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return (pytest.fail, ("the bytes were unpickled",))


def test_pickled_bytes_are_refused_unread() -> None:
    buffer = io.BytesIO()
    torch.save({"bomb": Bomb()}, buffer)
    for raw in (pickle.dumps(Bomb()), buffer.getvalue()):
        with pytest.raises(AdapterError, match="without the header of a packed adapter"):
            unpack(raw)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"q.lora_A.weight": torch.ones(4, 6)}, "q has no lora_B; a LoRA layer needs both A and B"),
        ({"q.lora_B.weight": torch.ones(4, 6)}, "q has no lora_A; a LoRA layer needs both A and B"),
        (
            PAIR | {"q.lora_B.weight": torch.ones(5, 3)},
            r"q has A \(4, 6\), B \(5, 3\); expected A \(rank, in_f",
        ),
        (PAIR | {"q.lora_A.weight": torch.ones(4)}, r"q has A \(4,\), B \(5, 4\); expected A"),
        (PAIR | {"q.lora_B.weight": torch.ones(5, 4, 1, 1)}, r"q has A \(4, 6\), B \(5, 4, 1, 1\); expected A"),
        (
            {"q.lora_A.weight": torch.ones(0, 6), "q.lora_B.weight": torch.ones(5, 0)},
            r"q has A \(0, 6\), B \(5, 0\); expected A",
        ),
        (PAIR | {"q.lora_C.weight": torch.ones(1)}, r"q\.lora_C\.weight is not part of a linear or embedding LoRA"),
        (PAIR | {"q.lora_magnitude_vector": torch.ones(1)}, r"q has lora_magnitude_vector \(1,\); expected \(5,\)"),
    ],
)
def test_tensors_that_are_no_pairs_are_refused_by_name(tensors: dict[str, Tensor], message: str) -> None:
    with pytest.raises(AdapterError, match=f"packed adapter: (tensor base_model.model.)?{message}"):
        unpack(packed(tensors))
    with pytest.raises(AdapterError, match=f"state dict: (tensor )?{message}"):
        load_adapter(tensors, CONFIG)


@pytest.mark.parametrize(
    "config",
    [
        "", "{", "[1]", "5", '"x"', "null", "NaN", "[" * 100_000, "1" * 5000,
        '{"lora_alpha": "x"}', '{"lora_alpha": null}', '{"lora_alpha": [1]}', '{"lora_alpha": 8, "alpha_pattern": [1]}',
        '{"lora_alpha": 8, "alpha_pattern": {"(": 3}}', '{"lora_alpha": 8, "alpha_pattern": {"q": "x"}}',
    ],
    ids=lambda config: config[:48] or "empty",
)  # fmt: skip
def test_a_configuration_that_makes_no_sense_is_refused(config: str) -> None:
    with pytest.raises(AdapterError):
        unpack(packed(PAIR, config))


def test_safetensors_without_a_configuration_are_refused() -> None:
    for raw in (save(PAIR), save(PAIR, metadata={"format": "pt"})):
        with pytest.raises(AdapterError, match="without the header of a packed adapter"):
            unpack(raw)


@pytest.mark.parametrize("side", ["A", "B"])
@pytest.mark.parametrize("is_embedding", [False, True])
def test_a_factor_that_the_receiver_has_need_not_travel(side: str, is_embedding: bool) -> None:
    whole = random_adapter()
    whole = replace(
        whole, layers={path: replace(pair, is_embedding=is_embedding) for path, pair in whole.layers.items()}
    )
    raw = pack(whole, without=side)
    assert len(raw) < len(pack(whole))
    again = unpack(raw, without=side, frozen=whole)
    torch.testing.assert_close(tensors_of(again), tensors_of(whole), rtol=0, atol=0)
    assert [(pair.scaling, pair.is_embedding) for pair in again.layers.values()] == [(2.0, is_embedding)] * 2
    with pytest.raises(AdapterError, match=f"has no lora_(embedding_)?{side}"):
        unpack(raw)


def test_a_factor_that_was_not_to_be_sent_is_refused() -> None:
    with pytest.raises(AdapterError, match=r"blocks\.0\.query\.lora_A\.weight, of a factor that was not to be trained"):
        unpack(WHOLE, without="A", frozen=random_adapter())


def test_a_frozen_factor_that_does_not_fit_is_refused() -> None:
    other = {path: LoraLayer(torch.ones(3, 6), torch.ones(5, 3), 2.0) for path in random_adapter().layers}
    with pytest.raises(AdapterError, match=r"blocks\.0\.query has A \(3, 6\), B \(5, 4\); expected"):
        unpack(pack(random_adapter(), without="A"), without="A", frozen=Adapter(other, {}, CONFIG))
    with pytest.raises(AdapterError, match=r"blocks\.0\.query has no lora_A"):
        unpack(pack(random_adapter(), without="A"), without="A", frozen=Adapter({}, {}, CONFIG))


@pytest.mark.parametrize("is_embedding", [False, True])
def test_a_change_of_the_base_weights_travels_too(is_embedding: bool) -> None:
    change = LoraLayer(torch.ones(9, 6), torch.full((5, 9), 0.5), 1.0, is_embedding=is_embedding)
    again = unpack(pack(replace(random_adapter(), base_change={"blocks.0.query": change})))
    assert set(again.base_change) == {"blocks.0.query"}
    found = again.base_change["blocks.0.query"]
    assert torch.equal(found.A, change.A)
    assert torch.equal(found.B, change.B)
    assert (found.scaling, found.is_embedding) == (1.0, is_embedding)
