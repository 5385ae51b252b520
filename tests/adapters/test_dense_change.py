"""A change of the base weights that is one matrix: stored and sent without its identity, and refused where damaged."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load as read_tensors
from safetensors.torch import save as write_tensors

from fedlora.adapters import Adapter, LoraLayer, pack, unpack
from fedlora.adapters.dense_change import dense_of, dense_pair
from fedlora.adapters.differences import decode_file, encode_file
from fedlora.adapters.packed import METADATA_KEY, open_packed
from fedlora.common.errors import AdapterError

CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}


def adapter_with(change: LoraLayer) -> Adapter:
    generator = torch.Generator().manual_seed(0)
    shape = change.B.shape[0], change.A.shape[1]
    layer = LoraLayer(torch.randn(2, shape[1], generator=generator), torch.randn(shape[0], 2, generator=generator), 2.0)
    # A path that ends like the tensor's own name.
    return Adapter({"output.dense": layer}, {}, CONFIG, {"output.dense": change})


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (6, 6), (1, 3)])
@pytest.mark.parametrize("is_embedding", [False, True])
def test_a_dense_change_is_stored_as_one_matrix_and_read_back(
    shape: tuple[int, int], is_embedding: bool, tmp_path: Path
) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    raw = pack(adapter_with(dense_pair(matrix, is_embedding=is_embedding)))
    name = f"base_change.output.dense.{'embedding_' if is_embedding else ''}dense"
    assert torch.equal(read_tensors(raw)[name], matrix)
    assert sum("base_change" in key for key in read_tensors(raw)) == 1
    (tmp_path / "packed").write_bytes(raw)
    for found in (unpack(raw), open_packed(tmp_path / "packed")):
        change = found.base_change["output.dense"]
        assert torch.equal(change.B @ change.A, matrix)
        assert (change.scaling, change.is_embedding) == (1.0, is_embedding)
        assert pack(found) == raw


def test_a_pair_of_factors_is_no_dense_change() -> None:
    A, B = torch.randn(3, 3, generator=torch.Generator().manual_seed(0)), torch.ones(5, 3)
    assert dense_of(LoraLayer(A, B, 1.0)) is None
    assert dense_of(LoraLayer(torch.ones(3, 3), B, 1.0)) is None
    assert dense_of(LoraLayer(A[:2], B[:, :2], 1.0)) is None
    assert set(read_tensors(pack(adapter_with(LoraLayer(A, B, 1.0))))) >= {
        "base_change.output.dense.A",
        "base_change.output.dense.B",
    }


def test_a_dense_change_goes_as_a_difference_to_the_one_before(tmp_path: Path) -> None:
    matrix = torch.randn(40, 30, generator=torch.Generator().manual_seed(1))
    for name, change in (("before", matrix), ("after", 1.001 * matrix)):
        (tmp_path / name).write_bytes(pack(adapter_with(dense_pair(change, is_embedding=False))))
    encode_file(tmp_path / "after", tmp_path / "encoded", reference=tmp_path / "before", precision="bfloat16")
    assert (tmp_path / "encoded").stat().st_size < 0.6 * (tmp_path / "after").stat().st_size
    decode_file(tmp_path / "encoded", tmp_path / "found", reference=tmp_path / "before")
    found = open_packed(tmp_path / "found").base_change["output.dense"]
    torch.testing.assert_close(found.B, 1.001 * matrix, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("damaged", "answer"),
    [
        ({"dense": torch.ones(3)}, r"the first of them \(3,\); expected A and B, or one matrix"),
        ({"dense": torch.ones(0, 3)}, r"expected A and B, or one matrix"),
        ({"dense": torch.ones(5, 3), "A": torch.ones(1, 3)}, r"weight is A, dense, .*expected A and B, or one matrix"),
        ({"B": torch.ones(5, 3)}, "has no lora_A"),
    ],
)
def test_what_is_no_dense_change_is_refused(damaged: dict[str, torch.Tensor], answer: str) -> None:
    tensors = {f"base_change.q.{part}": tensor for part, tensor in damaged.items()}
    with pytest.raises(AdapterError, match=answer):
        unpack(write_tensors(tensors, metadata={METADATA_KEY: json.dumps(CONFIG)}))
