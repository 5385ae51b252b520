"""How adapters travel: exact where whole, within a rounding step otherwise, nothing lost over the rounds."""

import io
import json
import pickle
import resource
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from fedlora.adapters import Adapter, LoraLayer, pack
from fedlora.adapters.differences import Precision, decode_file, encode_file, max_encoded_bytes
from fedlora.adapters.packed import packed_config, packed_metadata
from fedlora.adapters.tensor_writer import tensor_bytes, writing_tensors
from fedlora.common.errors import AdapterError, StoreError
from fedlora.common.files import sha256_of

few = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

CONFIG = {"peft_type": "LORA", "lora_alpha": 8, "note": 'größer "x" \\ \x01\x7f\u2028'}
TEXT = json.dumps(CONFIG)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
MOST = torch.finfo(torch.float32).max
SPECIAL = [0.0, -0.0, 1e-45, -1e-40, 1.1754944e-38, 65504.0, MOST, -MOST, 1.0, -1 / 3]


def packed(tensors: Mapping[str, Tensor]) -> bytes:
    return tensor_bytes(tensors, packed_metadata(TEXT))


def written(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    path.write_bytes(packed(tensors))
    return path


def travelled(
    folder: Path,
    source: Mapping[str, Tensor],
    reference: Mapping[str, Tensor],
    precision: Precision,
    *,
    feedback: bool = False,
) -> dict[str, Tensor]:
    """Return what the receiver gets; with feedback the residual is in the folder, before and after."""
    paths = written(folder / "source", source), folder / "encoded"
    held = written(folder / "reference", reference)
    residual = folder / "residual" if feedback else None
    encode_file(*paths, reference=held, precision=precision, residual=residual, new_residual=residual)
    decode_file(folder / "encoded", folder / "decoded", reference=held)
    return load((folder / "decoded").read_bytes())


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@st.composite
def tensors(draw: st.DrawFn, dtypes: Iterable[torch.dtype] = FLOATS) -> Tensor:
    shape = draw(st.lists(st.integers(0, 7), max_size=3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    tensor = torch.randn(shape, generator=generator) * 10.0 ** draw(st.integers(-44, 37))
    if tensor.numel() and draw(st.booleans()):
        tensor.view(-1)[draw(st.integers(0, tensor.numel() - 1))] = draw(st.sampled_from(SPECIAL))
    return tensor.to(draw(st.sampled_from(list(dtypes))))


adapters = st.dictionaries(st.text('ab.é😀"\\\n', min_size=1, max_size=6), tensors(), max_size=5)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return a source and a reference in float32 that share some names and shapes."""
    source = draw(st.dictionaries(st.text("abc", min_size=1), tensors([torch.float32]), max_size=5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    size = 10.0 ** draw(st.integers(-44, 37))
    reference = {
        name: tensor + torch.randn(tensor.shape, generator=generator) * size if draw(st.booleans()) else tensor[..., :0]
        for name, tensor in source.items()
        if tensor.dim()
    }
    return source, reference


@few
@given(adapters, adapters)
def test_in_float32_every_byte_comes_back(
    tmp_path: Path, source: dict[str, Tensor], reference: dict[str, Tensor]
) -> None:
    travelled(tmp_path, source, reference, "float32")
    assert (tmp_path / "decoded").read_bytes() == packed(source)
    decode_file(tmp_path / "encoded", tmp_path / "decoded", reference=None)
    assert (tmp_path / "decoded").read_bytes() == packed(source)


def test_what_pack_writes_comes_back_and_its_configuration_can_be_read_on_the_way(tmp_path: Path) -> None:
    layers = {"q": LoraLayer(torch.ones(4, 6), torch.ones(5, 4, dtype=torch.bfloat16), 2.0, bias=torch.ones(5))}
    dense = {"step": torch.tensor(3), "mask": torch.tensor([True]), "a": torch.ones(2, dtype=torch.uint8)}
    raw = pack(Adapter(layers, dense, CONFIG, {"q": LoraLayer(torch.ones(2, 6), torch.ones(5, 2), 1.0)}))
    (tmp_path / "source").write_bytes(raw)
    for precision in PRECISIONS:
        encode_file(tmp_path / "source", tmp_path / "encoded", reference=None, precision=precision)
        assert packed_config(tmp_path / "encoded") == CONFIG
        decode_file(tmp_path / "encoded", tmp_path / "decoded", reference=None)
        assert (tmp_path / "decoded").read_bytes() == raw


@few
@given(adapters, adapters, st.sampled_from(PRECISIONS))
def test_what_is_decoded_is_as_pack_would_write_it_and_no_larger_than_the_bound(
    tmp_path: Path, source: dict[str, Tensor], reference: dict[str, Tensor], precision: Precision
) -> None:
    found = travelled(tmp_path, source, reference | source, precision)
    assert (tmp_path / "decoded").read_bytes() == packed(found)
    size = (tmp_path / "encoded").stat().st_size
    assert size <= max_encoded_bytes(tmp_path / "source") <= max_encoded_bytes(len(packed(source)))
    for name, tensor in found.items():
        assert tensor.shape == source[name].shape
        if precision != "float32" and tensor.dtype != source[name].dtype:
            assert tensor.dtype == torch.float32


@few
@given(pairs())
def test_bfloat16_is_within_a_256th_of_the_difference(
    tmp_path: Path, pair: tuple[dict[str, Tensor], dict[str, Tensor]]
) -> None:
    source, reference = pair
    for name, tensor in travelled(tmp_path, source, reference, "bfloat16").items():
        if name not in reference or reference[name].shape != tensor.shape:
            assert torch.equal(tensor, source[name])
            continue
        exact, base = source[name].double(), reference[name].double()
        # The difference, its rounding and the sum are rounded to float32, the second also to 8 bits.
        bound = (exact - base).abs() * (2**-8 + 2**-20) + exact.abs() * 2**-23 + 2**-133
        assert bool(((tensor.double() - exact).abs() <= bound).all())


@few
@given(pairs())
def test_int8_is_within_half_a_step_of_the_row(
    tmp_path: Path, pair: tuple[dict[str, Tensor], dict[str, Tensor]]
) -> None:
    source, reference = pair
    for name, tensor in travelled(tmp_path, source, reference, "int8").items():
        if name not in reference or reference[name].shape != tensor.shape or not tensor.numel():
            assert torch.equal(tensor, source[name])
            continue
        exact, base = source[name].double(), reference[name].double()
        largest = (exact - base).abs().amax(-1, keepdim=True)
        bound = largest / 254 * (1 + 2**-20) + exact.abs() * 2**-22 + 64 * 2**-149 + 2**-133
        assert bool(((tensor.double() - exact).abs() <= bound).all())


def test_int8_takes_a_byte_for_each_number_and_a_scale_for_each_row_where_that_is_less(tmp_path: Path) -> None:
    shapes: dict[str, tuple[int, ...]] = {
        "wide": (3, 50), "narrow": (50, 4), "cube": (2, 3, 5), "vector": (9,), "short": (4,), "one": (), "none": (5, 0)
    }  # fmt: skip
    source = {name: torch.ones(shape) for name, shape in shapes.items()}
    source["wide"][1] = 0
    travelled(tmp_path, source, {name: torch.zeros(shape) for name, shape in shapes.items()}, "int8")
    encoded = load((tmp_path / "encoded").read_bytes())
    assert {key: tuple(tensor.shape) for key, tensor in encoded.items() if key.startswith("scale")} == {
        "scale.wide": (3,), "scale.cube": (2, 3), "scale.vector": ()
    }  # fmt: skip
    assert {name for name in shapes if encoded[f"difference.{name}"].dtype == torch.bfloat16} == {
        "narrow", "short", "one", "none"
    }  # fmt: skip
    assert encoded["scale.wide"].tolist() == pytest.approx([1 / 127, 0, 1 / 127])
    assert set(encoded["difference.wide"].view(-1).tolist()) == {0, 127}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_so(precision: Precision, value: float, tmp_path: Path) -> None:
    source = {"q": torch.ones(4, 20), "v": torch.ones(4, 20)}
    source["q"][2, 3] = value
    reference = {name: torch.zeros(4, 20) for name in source}
    for _ in range(2):
        found = travelled(tmp_path, source, reference, precision, feedback=True)
        torch.testing.assert_close(found["q"], source["q"], rtol=0, atol=0, equal_nan=True)
    left = load((tmp_path / "residual").read_bytes())
    assert all(tensor.isfinite().all() for tensor in left.values())
    # Where the reference holds what is not finite, what is sent comes out nevertheless.
    assert torch.equal(travelled(tmp_path, reference, source, precision)["q"], reference["q"])


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_finite_numbers_stay_finite_also_at_the_end_of_their_range(precision: Precision, tmp_path: Path) -> None:
    for source, reference in [(MOST, -MOST), (MOST, 0.0), (MOST, 9e37), (9.9e37, -9.9e37), (0.0, MOST)]:
        found = travelled(tmp_path, {"q": torch.full((9,), source)}, {"q": torch.full((9,), reference)}, precision)
        assert found["q"].tolist() == pytest.approx([source] * 9, rel=0.01, abs=1e30)


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_with_feedback_nothing_is_lost_over_fifty_rounds_and_without_it_is(
    precision: Precision, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    steady = torch.randn(6, 40) * 1e-3
    steady[:, 0] = 1.0  # A large number in the row, beside which int8 does not see the others.
    sums = {feedback: torch.zeros(6, 40, dtype=torch.float64) for feedback in (True, False)}
    true = torch.zeros(6, 40, dtype=torch.float64)
    for place in range(50):
        base = torch.randn(6, 40, generator=torch.Generator().manual_seed(place))
        source = base + steady
        true += source.double() - base.double()
        for feedback in sums:
            found = travelled(tmp_path, {"q": source}, {"q": base}, precision, feedback=feedback)
            sums[feedback] += found["q"].double() - base.double()
    # One step: of int8 a 127th of the row's largest, of bfloat16 a 256th of each number; and of float32 its own at 4.
    step = torch.full_like(true, 1.1 / 127) if precision == "int8" else steady.double().abs() / 256 * 1.1
    assert bool(((sums[True] - true).abs() <= step + 2**-21).all())
    assert not bool(((sums[False] - true).abs() <= step + 2**-21).all())
    left = load((tmp_path / "residual").read_bytes())["q"].double()
    torch.testing.assert_close(true - sums[True], left, rtol=1e-3, atol=1e-6)


def test_updates_too_small_for_the_receivers_sum_arrive_together(tmp_path: Path) -> None:
    base, total = torch.ones(10), torch.zeros(10)
    small = {"q": torch.full((10,), 3e-8)}  # Half of what 1 + x shows in float32 is 6e-8.
    (tmp_path / "residual").write_bytes(save(small))
    for _ in range(4):
        total += travelled(tmp_path, {"q": base}, {"q": base}, "bfloat16", feedback=True)["q"] - base
        left = load((tmp_path / "residual").read_bytes())["q"]
        (tmp_path / "residual").write_bytes(save({"q": left + small["q"]}))
    torch.testing.assert_close(total.double() + left, torch.full((10,), 12e-8).double(), rtol=1e-3, atol=0)
    assert bool((total > 0).all())


def test_the_residual_of_a_tensor_that_goes_whole_is_kept_and_that_of_another_shape_is_not(tmp_path: Path) -> None:
    (tmp_path / "residual").write_bytes(save({"q": torch.ones(3), "v": torch.ones(4), "gone": torch.ones(3)}))
    source = {"q": torch.zeros(3), "v": torch.zeros(3)}
    found = travelled(tmp_path, source, {}, "bfloat16", feedback=True)
    assert torch.equal(found["q"], source["q"])
    left = load((tmp_path / "residual").read_bytes())
    assert list(left) == ["q"]
    assert torch.equal(left["q"], torch.ones(3))


def test_a_correction_of_a_ten_thousandth_arrives_as_a_difference_and_is_lost_in_a_rounded_factor(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    B = torch.randn(64, 8)
    D = 1e-4 * torch.randn(64, 8)
    found = travelled(tmp_path, {"B": B + D}, {"B": B}, "bfloat16")["B"] - B
    assert torch.linalg.norm(found - D) < 0.01 * torch.linalg.norm(D)
    rounded = (B + D).bfloat16().float() - B
    assert torch.linalg.norm(rounded - D) > 5 * torch.linalg.norm(D)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_same_files_give_the_same_bytes_in_any_number_of_threads(precision: Precision, tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = {str(place): torch.randn(300, 200) for place in range(3)}
    reference = {name: torch.randn(300, 200) for name in source}
    seen = set()
    before = torch.get_num_threads()
    try:
        for num_threads in (1, 2, 4):
            torch.set_num_threads(num_threads)
            travelled(tmp_path, source, reference, precision, feedback=True)
            seen.add(tuple(sha256_of([tmp_path / name]) for name in ("encoded", "decoded", "residual")))
            (tmp_path / "residual").unlink()
    finally:
        torch.set_num_threads(before)
    assert len(seen) == 1


PEAK = """
import resource, sys
from pathlib import Path
from fedlora.adapters.differences import decode_file, encode_file

def travel(folder):
    for precision in ("bfloat16", "int8", "float32"):
        encode_file(
            folder / "source", folder / "encoded", reference=folder / "reference", precision=precision,
            residual=folder / "residual", new_residual=folder / "residual",
        )
        decode_file(folder / "encoded", folder / "decoded", reference=folder / "reference")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

print(travel(Path(sys.argv[1])), travel(Path(sys.argv[2])))
"""


def test_memory_does_not_grow_with_the_number_of_layers(tmp_path: Path) -> None:
    for name, num_layers in (("small", 2), ("large", 20)):
        (tmp_path / name).mkdir()
        for file in ("source", "reference"):
            written(tmp_path / name / file, {str(place): torch.full((1000, 500), 0.5) for place in range(num_layers)})
    command = [sys.executable, "-c", PEAK, str(tmp_path / "small"), str(tmp_path / "large")]
    small, large = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout.split()
    # One tensor has 2 MB, all of them 40.
    assert (int(large) - int(small)) * (1 if sys.platform == "darwin" else 1024) < 10e6


REFERENCE = {"q": torch.ones(3, 20), "step": torch.tensor([1])}


@pytest.fixture
def held(tmp_path: Path) -> Path:
    return written(tmp_path / "reference", REFERENCE)


def encoded(held: Path, tensors: Mapping[str, Tensor], **metadata: str) -> bytes:
    """Return an encoded file of these tensors; safetensors gives its metadata any order, which does not matter here."""
    known = {"adapter_config": TEXT, "precision": "int8", "reference": sha256_of([held])}
    return save(dict(tensors), {key: text for key, text in (known | metadata).items() if text != "absent"})


GOOD = {"difference.q": torch.ones(3, 20, dtype=torch.int8), "scale.q": torch.ones(3)}
BF16 = torch.ones(3, 20, dtype=torch.bfloat16)


def refused(raw: bytes, held: Path | None, folder: Path, message: str) -> None:
    folder = folder / "refused"
    folder.mkdir()
    (folder / "encoded").write_bytes(raw)
    with pytest.raises(AdapterError, match=message) as caught:
        decode_file(folder / "encoded", folder / "decoded", reference=held)
    assert "\n" not in str(caught.value)
    assert entries(folder) == ["encoded"]


def test_a_file_made_by_hand_is_decoded(held: Path, tmp_path: Path) -> None:
    (tmp_path / "encoded").write_bytes(encoded(held, GOOD))
    for known in (None, sha256_of([held])):
        decode_file(tmp_path / "encoded", tmp_path / "decoded", reference=held, reference_sha256=known)
        assert (tmp_path / "decoded").read_bytes() == packed({"q": torch.full((3, 20), 2.0)})


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        (GOOD, {"precision": "int4"}, "in the precision 'int4'; expected one of float32, bfloat16, int8"),
        (GOOD, {"precision": "absent"}, "in the precision ''"),
        (GOOD, {"precision": "bfloat16"}, r"difference\.q \(3, 20\) in int8; expected bfloat16"),
        (GOOD, {"precision": "float32"}, r"difference\.q \(3, 20\) in int8; expected float32"),
        (GOOD, {"reference": "absent"}, r"difference\.q \(3, 20\) to no reference"),
        (GOOD, {"reference": "0" * 64}, "a difference to the adapter '0{64}'; held here is [0-9a-f]{64}$"),
        (GOOD, {"reference": "a\nb"}, r"a difference to the adapter 'a\\nb'; held here"),
        (GOOD, {"adapter_config": "absent"}, "without the header of a packed adapter"),
        (GOOD | {"delta.q": BF16}, {}, r"tensor delta\.q; expected whole\.NAME, difference\.NAME or scale\.NAME"),
        (GOOD | {"whole.": BF16}, {}, r"tensor whole\.; expected"),
        (GOOD | {"whole.__metadata__": BF16}, {}, r"tensor whole\.__metadata__; expected"),
        (GOOD | {"whole.q": BF16}, {}, "q is there whole and as a difference"),
        ({"whole.q": BF16, "scale.q": torch.ones(3)}, {}, "q is there whole and as a difference"),
        ({"scale.q": torch.ones(3)}, {}, r"scale\.q without its difference\.q"),
        ({"difference.q": GOOD["difference.q"]}, {}, r"with the scale none; torch\.float32 \(3,\) fits"),
        ({"difference.q": BF16, "scale.q": torch.ones(3)}, {}, r"with the scale torch\.float32 \(3,\); none fits"),
        (GOOD | {"scale.q": torch.ones(3, 1)}, {}, r"scale torch\.float32 \(3, 1\); torch\.float32 \(3,\) fits"),
        (GOOD | {"scale.q": torch.ones(())}, {}, r"with the scale torch\.float32 \(\); torch\.float32 \(3,\) fits"),
        (GOOD | {"scale.q": torch.ones(3).double()}, {}, r"with the scale torch\.float64 \(3,\)"),
        (GOOD | {"scale.q": torch.tensor([1, float("nan"), 1])}, {}, r"scale\.q is not finite"),
        (GOOD | {"scale.q": torch.tensor([1, float("inf"), 1])}, {}, r"scale\.q is not finite"),
        ({"difference.q": BF16.half()}, {}, r"difference\.q \(3, 20\) in torch\.float16; expected int8"),
        ({"difference.q": BF16[:2].contiguous()}, {}, r"\(2, 20\) to \(3, 20\) in the reference"),
        ({"difference.v": BF16}, {}, r"difference\.v \(3, 20\) to no such tensor in the reference"),
        ({"difference.step": BF16[0, :1].clone()}, {}, r"difference\.step \(1,\) to \(1,\) in the reference"),
        ({"difference.q": torch.tensor(1, dtype=torch.int8), "scale.q": torch.ones(())}, {}, "expected int8 and"),
    ],
)
def test_what_makes_no_adapter_of_the_reference_is_refused_and_nothing_is_written(
    tensors: dict[str, Tensor], metadata: dict[str, str], message: str, held: Path, tmp_path: Path
) -> None:
    refused(encoded(held, tensors, **metadata), held, tmp_path, message)


def test_a_difference_is_refused_where_there_is_no_reference(held: Path, tmp_path: Path) -> None:
    refused(encoded(held, GOOD), None, tmp_path, "a difference to the adapter '[0-9a-f]{64}', which is not held here")


def test_another_reference_is_refused(held: Path, tmp_path: Path) -> None:
    other = written(tmp_path / "other", REFERENCE | {"q": torch.zeros(3, 20)})
    refused(encoded(held, GOOD), other, tmp_path, "held here is")


@pytest.mark.parametrize(
    ("dtype", "shape", "size"),
    [
        ("F32", [2**40], 2**42), ("F32", [2**40], 16), ("BF16", [2**20, 2**20], 2**41), ("F32", [2**63, 2], 16),
        ("F32", [-4], 16), ("F33", [4], 16), ("F32", [2**63, 0], 0), ("F32", [0, 2**63 - 1, 4], 0),
        ("F8_E4M3", [16], 16),
    ],
)  # fmt: skip
def test_a_header_that_claims_what_is_not_there_is_refused_before_memory_is_taken(
    dtype: str, shape: list[int], size: int, held: Path, tmp_path: Path
) -> None:
    header = {
        "__metadata__": {"adapter_config": TEXT, "precision": "bfloat16", "reference": sha256_of([held])},
        "difference.q" if dtype == "BF16" else "whole.q": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]},
    }
    text = json.dumps(header).encode()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(
        len(text).to_bytes(8, "little") + text + b"\0" * min(size, 16),
        held,
        tmp_path,
        "not a safetensors file|which torch cannot hold|numbers of the type",
    )
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < (2**26 if sys.platform == "darwin" else 2**16)


def test_bytes_cut_anywhere_garbage_and_pickles_are_refused(held: Path, tmp_path: Path) -> None:
    whole, buffer, path = encoded(held, GOOD), io.BytesIO(), tmp_path / "encoded"
    torch.save({"q": torch.ones(3)}, buffer)
    cut = [whole[:length] for length in {*range(0, len(whole), 7), len(whole) - 1}]
    for raw in (*cut, whole + b"\0", pickle.dumps(GOOD), buffer.getvalue(), b"\xff" * 100, b" " * 3):
        path.write_bytes(raw)
        with pytest.raises(AdapterError):
            decode_file(path, tmp_path / "decoded", reference=held)
    path.unlink()
    with pytest.raises(AdapterError, match=r"encoded: cannot be read \(No such file or directory\)"):
        decode_file(path, tmp_path / "decoded", reference=held)
    assert entries(tmp_path) == ["reference"]


@few
@given(st.integers(0, 1500), st.integers(1, 255))
def test_a_changed_byte_is_a_changed_value_or_refused(tmp_path: Path, place: int, change: int) -> None:
    held = written(tmp_path / "reference", REFERENCE)
    raw = bytearray(encoded(held, GOOD))
    raw[place % len(raw)] ^= change
    (tmp_path / "encoded").write_bytes(raw)
    try:
        decode_file(tmp_path / "encoded", tmp_path / "decoded", reference=held)
    except AdapterError:
        return
    load((tmp_path / "decoded").read_bytes())


def test_a_source_or_residual_that_is_no_safetensors_file_is_refused(held: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.write_bytes(save(REFERENCE))
    with pytest.raises(AdapterError, match="bad: a file without the header of a packed adapter"):
        encode_file(bad, tmp_path / "encoded", reference=held, precision="int8")
    bad.write_bytes(b"x" * 50)
    with pytest.raises(AdapterError, match="bad: not a safetensors file"):
        encode_file(held, tmp_path / "encoded", reference=held, precision="int8", residual=bad)
    with pytest.raises(AdapterError, match="bad: not a safetensors file"):
        encode_file(held, tmp_path / "encoded", reference=bad, precision="int8")
    assert entries(tmp_path) == ["bad", "reference"]


def test_tensors_that_are_not_as_announced_or_do_not_come_leave_no_file(tmp_path: Path) -> None:
    def write(outline: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
        with writing_tensors(tmp_path / "file", outline, {}) as write_tensor:
            for key, tensor in tensors.items():
                write_tensor(key, tensor)

    with pytest.raises(ValueError, match="1 tensors were announced and not written, among them q"):
        write({"q": BF16}, {})
    with pytest.raises(ValueError, match=r"q is torch\.bfloat16 \(3, 20\), announced as torch\.float32 \(3, 20\)"):
        write({"q": torch.ones(3, 20)}, {"q": BF16})
    with pytest.raises(AdapterError, match="70,000 tensors would take a header of"):
        write({f"{place:0100d}": torch.empty(0) for place in range(70_000)}, {})
    assert entries(tmp_path) == []


def test_where_no_file_can_be_the_reason_is_said(held: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"cannot write .* bytes\): (Not a directory|File exists); free some space"):
        encode_file(held, held / "encoded", reference=None, precision="int8")
    assert entries(tmp_path) == ["reference"]


@few
@given(st.integers(1, 100), st.integers(1, 12), st.sampled_from(PRECISIONS))
def test_an_encoding_is_within_the_bound_also_with_many_small_tensors(
    tmp_path: Path, num_tensors: int, length: int, precision: Precision
) -> None:
    source = {str(place): torch.ones(length) for place in range(num_tensors)}
    travelled(tmp_path, source, source, precision)
    size, packed_size = (tmp_path / "encoded").stat().st_size, (tmp_path / "source").stat().st_size
    assert size <= max_encoded_bytes(tmp_path / "source") <= max_encoded_bytes(packed_size)


def test_the_bound_of_a_large_adapter_is_its_size_and_that_of_some_headers(tmp_path: Path) -> None:
    assert max_encoded_bytes(10**9) == 10**9 + 30_000_256
    path = written(tmp_path / "source", {"q": torch.ones(1000, 1000)})
    assert max_encoded_bytes(path) < 4_003_000
