"""PEFT folders that are incomplete, damaged or of another kind."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fedlora.adapters import Adapter, LoraLayer, load_adapter, save_adapter
from fedlora.common.errors import AdapterError, StoreError

CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}
ADAPTER = Adapter({"q": LoraLayer(torch.ones(4, 6), torch.ones(5, 4), 2.0)}, {"head.bias": torch.ones(3)}, CONFIG)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_adapter(ADAPTER, tmp_path / "adapter")
    return tmp_path / "adapter"


def refusal(folder: Path | str) -> str:
    with pytest.raises(AdapterError) as caught:
        load_adapter(folder)
    return str(caught.value)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file_is_named_with_what_belongs_there(folder: Path, name: str) -> None:
    (folder / name).unlink()
    expected = f"{folder / name}: no such file; a PEFT folder holds adapter_config.json and adapter_model.safetensors"
    assert refusal(folder) == expected
    assert refusal(str(folder)) == expected


def test_pickled_weights_are_no_substitute(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    assert refusal(folder) == (
        f"{folder / 'adapter_model.bin'}: a pickle, which can run code when it is read; expected "
        "adapter_model.safetensors: save the adapter again with save_pretrained(..., safe_serialization=True)"
    )


def test_a_pickle_beside_the_tensors_is_left_alone(folder: Path) -> None:
    (folder / "adapter_model.bin").write_bytes(b"not even a pickle")
    assert set(load_adapter(folder).layers) == {"q"}


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_configuration_that_is_no_json_is_refused(folder: Path, content: bytes) -> None:
    (folder / "adapter_config.json").write_bytes(content)
    assert refusal(folder).startswith(f"{folder / 'adapter_config.json'}: not JSON (")


@pytest.mark.parametrize("content", ["[]", "null", "5", '"LORA"'])
def test_a_configuration_that_is_no_object_is_refused(folder: Path, content: str) -> None:
    (folder / "adapter_config.json").write_text(content)
    assert refusal(folder).endswith("; expected a JSON object")


def test_another_kind_of_adapter_is_refused_by_name(folder: Path) -> None:
    for kind, found in [("IA3", "'IA3'"), (None, "None")]:
        (folder / "adapter_config.json").write_text(json.dumps(CONFIG | {"peft_type": kind}))
        assert refusal(folder) == f"{folder / 'adapter_config.json'}: peft_type is {found}; expected 'LORA'"


def test_tensors_cut_short_or_of_another_format_are_refused(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    whole = path.read_bytes()
    for content in (b"", whole[:4], whole[:100], whole[:-1], whole + b"\0", b"PK\3\4" + whole):
        path.write_bytes(content)
        assert refusal(folder).startswith(f"{path}: not a safetensors file (")


def test_a_pair_without_its_other_half_is_refused_with_the_files_path(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    save_file({"base_model.model.q.lora_A.weight": torch.ones(4, 6)}, path)
    assert refusal(folder) == f"{path}: q has no lora_B; a LoRA layer needs both A and B"


@pytest.mark.parametrize(
    ("shape_A", "shape_B"), [((4, 3, 2, 2), (5, 4, 1, 1)), ((4, 3, 2), (5, 4, 1)), ((4, 3, 2, 2, 2), (5, 4, 1, 1, 1))]
)
def test_a_convolution_is_refused_as_one(folder: Path, shape_A: tuple[int, ...], shape_B: tuple[int, ...]) -> None:
    path = folder / "adapter_model.safetensors"
    save_file({"c.lora_A.weight": torch.ones(shape_A), "c.lora_B.weight": torch.ones(shape_B)}, path)
    assert refusal(folder) == (
        f"{path}: c has A {shape_A}, B {shape_B}, a convolution's; fedlora takes linear and embedding layers only"
    )


def test_lora_on_bare_parameters_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | {"target_parameters": ["experts.up"]}))
    assert refusal(folder) == (
        f"{folder / 'adapter_config.json'}: target_parameters is ['experts.up']; fedlora takes LoRA on modules only, "
        "named in target_modules"
    )


@pytest.mark.parametrize("name", ["lora_B.bias", "lora_magnitude_vector"])
def test_a_vector_that_does_not_fit_its_b_is_refused(folder: Path, name: str) -> None:
    path = folder / "adapter_model.safetensors"
    pair = {"q.lora_A.weight": torch.ones(4, 6), "q.lora_B.weight": torch.ones(5, 4)}
    save_file(pair | {f"q.{name}": torch.ones(1)}, path)
    assert refusal(folder) == f"{path}: q has {name} (1,); expected (5,), the rows of its B"


def test_numbers_of_a_type_without_arithmetic_are_refused(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    save_file({"q.lora_A.weight": torch.ones(4, 6).to(torch.float8_e4m3fn)}, path)
    assert refusal(folder) == f"{path}: numbers of the type 'F8_E4M3'; expected floating-point tensors"


@pytest.mark.parametrize("alpha", [0, float("nan"), float("inf"), 10**400])
def test_an_alpha_without_a_usable_scaling_is_refused(folder: Path, alpha: float) -> None:
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | {"lora_alpha": alpha}))
    assert f"{folder / 'adapter_model.safetensors'}: q " in refusal(folder)
    assert f"'lora_alpha': {alpha}" in refusal(folder)


def test_an_alpha_that_is_no_number_is_refused_with_what_was_found(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | {"lora_alpha": "16"}))
    assert "q has no scaling from {'lora_alpha': '16', " in refusal(folder)


def test_a_folder_that_cannot_be_written_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"cannot write .*adapter_config\.json"):
        save_adapter(ADAPTER, tmp_path / "file" / "adapter")
