"""Moments on their way: what they may be, and how they are packed, cut and rounded for the wire."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedlora.adapters import Adapter, LoraLayer, pack, unpack
from fedlora.adapters.differences import Precision, decode_file, encode_file
from fedlora.adapters.fit import Misfit
from fedlora.adapters.keys import to_state_dict
from fedlora.adapters.moments import (
    cut_moments,
    examine_moments,
    open_moments,
    pack_moments,
    trained_tensors,
    unpack_moments,
)
from fedlora.adapters.packed import open_packed
from fedlora.common.errors import AdapterError

WHOLE = {"exp_avg": True, "exp_avg_sq": True, "step": False}
SCALAR = {"exp_avg": True, "exp_avg_sq": False, "step": False}
SGD = {"momentum_buffer": True}
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
A = "base_model.model.q.lora_A.weight"
B = "base_model.model.q.lora_B.weight"
HEAD = "base_model.model.head.weight"


def adapter(seed: int = 0) -> Adapter:
    draw = torch.Generator().manual_seed(seed)
    pair = torch.randn(2, 6, generator=draw), torch.randn(4, 2, generator=draw)
    return Adapter({"q": LoraLayer(*pair, 2.0)}, {"head.weight": torch.randn(3, generator=draw)}, CONFIG)


LIKE = to_state_dict(adapter())


def moments(num_steps: int = 5, seed: int = 1) -> dict[str, Tensor]:
    """Return what AdamW keeps of some steps with random gradients."""
    draw = torch.Generator().manual_seed(seed)
    parameters = {key: torch.nn.Parameter(tensor.clone()) for key, tensor in LIKE.items()}
    optimizer = torch.optim.AdamW(parameters.values())
    for number in range(num_steps):
        for parameter in parameters.values():
            # Of very different sizes, as early and late gradients are.
            parameter.grad = torch.randn(parameter.shape, generator=draw) * 10.0 ** (number % 3 - 2)
        optimizer.step()
    return {f"{key}/{name}": value for key, p in parameters.items() for name, value in optimizer.state[p].items()}


def scalars(found: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.mean() if key.endswith("_sq") else value for key, value in found.items()}


def verdict(found: dict[str, Tensor], form: dict[str, bool] = WHOLE, **more: Any) -> Misfit | dict[str, float]:
    return examine_moments(found, LIKE, form, **{"most_steps": 5, "required": (A, B)} | more)


def test_those_of_an_optimiser_fit_and_their_sizes_are_told() -> None:
    for num_steps in (1, 2, 5):
        found = moments(num_steps)
        sizes = verdict(found)
        assert isinstance(sizes, dict)
        firsts, seconds = (torch.cat([found[f"{k}/{name}"].reshape(-1) for k in LIKE]) for name in list(WHOLE)[:2])
        assert sizes["exp_avg"] == pytest.approx(float(firsts.norm()), rel=1e-6)
        assert sizes["exp_avg_sq"] == pytest.approx(math.sqrt(float(seconds.sum())), rel=1e-6)
        assert verdict(scalars(found), SCALAR) == pytest.approx(sizes, rel=1e-6)


def test_of_what_is_not_a_pair_they_may_be_missing() -> None:
    pairs = {key: value for key, value in moments().items() if not key.startswith(HEAD)}
    assert isinstance(verdict(pairs), dict)
    assert isinstance(verdict({}, required=()), dict)


def with_value(value: float) -> Tensor:
    tensor = moments()[f"{A}/exp_avg_sq"].clone()
    tensor[1, 2] = value
    return tensor


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({f"{A}/exp_avg_sq": with_value(-1e-30)}, "moments", "exp_avg_sq holds -1e-30; expected 0 or more"),
        ({f"{A}/exp_avg_sq": with_value(math.nan)}, "not_finite", "exp_avg_sq has values that are not finite"),
        ({f"{A}/exp_avg_sq": with_value(math.inf)}, "not_finite", "exp_avg_sq has values that are not finite"),
        ({f"{A}/exp_avg_sq": with_value(1e13)}, "too_large", "exp_avg_sq holds 1e+13"),
        ({f"{A}/exp_avg_sq": with_value(0.0)}, "moments", "exp_avg is larger than any gradients make it beside"),
        ({f"{A}/exp_avg": torch.full((2, 6), 1e7)}, "too_large", "exp_avg holds 1e+07"),
        ({f"{A}/exp_avg": torch.full((2, 6), 1.0)}, "moments", "exp_avg is larger than any gradients make it"),
        ({f"{A}/exp_avg": torch.zeros(6, 2)}, "moments", "exp_avg is (6, 2) in torch.float32; expected (2, 6) in"),
        ({f"{A}/exp_avg": torch.zeros(1, 6)}, "moments", "exp_avg is (1, 6) in torch.float32; expected (2, 6) in"),
        ({f"{A}/exp_avg": torch.zeros(2, 6).double()}, "moments", "in torch.float64; expected (2, 6) in float32 or"),
        ({f"{A}/exp_avg_sq": torch.tensor(1.0)}, "moments", "exp_avg_sq is () in torch.float32; expected (2, 6)"),
        ({f"{A}/step": torch.tensor(6.0)}, "moments", "step counts 6 steps; expected at most 5"),
        ({f"{A}/step": torch.tensor(-1.0)}, "moments", "step holds -1; expected 0 or more"),
        ({f"{A}/step": torch.tensor(math.nan)}, "not_finite", "step has values that are not finite"),
        ({f"{A}/step": torch.ones(2)}, "moments", "step is (2,) in torch.float32; expected () in float32"),
        ({f"{A}/exp_avg": None}, "moments", f"{A}/exp_avg is missing"),
        ({f"{B}/{name}": None for name in WHOLE}, "moments", f"{B}/exp_avg is missing"),
        ({f"{HEAD}/step": None}, "moments", f"{HEAD}/step is missing"),
        ({f"{A}/max_exp_avg_sq": torch.ones(2, 6)}, "moments", f"{A}/max_exp_avg_sq is not among those"),
        ({"base_model.model.v.lora_A.weight/step": torch.tensor(1.0)}, "moments", "v.lora_A.weight/step is not among"),
    ],
)
def test_what_no_optimiser_keeps_is_refused_by_name(changes: dict[str, Tensor | None], code: str, words: str) -> None:
    changed = {key: value for key, value in (moments() | changes).items() if value is not None}  # type: ignore[operator]
    found = verdict(changed)
    assert isinstance(found, Misfit)
    assert found.code == code
    assert words in found.found


def test_a_buffer_of_sgd_has_no_second_moments_to_be_measured_by() -> None:
    buffers = {f"{key}/momentum_buffer": 3 * tensor for key, tensor in LIKE.items()}
    sizes = examine_moments(buffers, LIKE, SGD, required=(A, B), most_steps=5)
    assert sizes == {
        "momentum_buffer": pytest.approx(3 * math.sqrt(sum(float(t.square().sum()) for t in LIKE.values())))
    }


def test_they_go_beside_an_adapter_that_is_read_as_without_them(tmp_path: Path) -> None:
    update, found = adapter(), moments()
    packed = pack(update, moments=found)
    (tmp_path / "update").write_bytes(packed)
    for read in (unpack(packed, beside_moments=True), open_packed(tmp_path / "update", beside_moments=True)):
        assert pack(read) == pack(update)
    for read_moments in (
        unpack_moments(packed),
        open_moments(tmp_path / "update"),
        unpack_moments(pack_moments(found)),
    ):
        assert read_moments.keys() == found.keys()
        assert all(torch.equal(read_moments[key], found[key]) for key in found)


def test_where_none_are_expected_they_are_refused(tmp_path: Path) -> None:
    packed = pack(adapter(), moments=moments())
    (tmp_path / "update").write_bytes(packed)
    for read in (lambda: unpack(packed), lambda: open_packed(tmp_path / "update")):
        with pytest.raises(AdapterError, match=r"lora_A\.weight/exp_avg is not part of a linear"):
            read()


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_on_the_wire_they_are_whole_and_rounded_to_bfloat16_at_most(tmp_path: Path, precision: Precision) -> None:
    reference, source, encoded, decoded = (tmp_path / name for name in ("reference", "source", "encoded", "decoded"))
    found = moments()
    # The same tensors as in the reference but for a third of second moments: their differences are negative.
    reference.write_bytes(pack(adapter(), moments=found))
    less = {key: value / 1000 if key.endswith("_sq") else value / 40 for key, value in found.items()}
    less |= {key: value for key, value in found.items() if key.endswith("step")}
    source.write_bytes(pack(adapter(1), moments=less))
    encode_file(source, encoded, reference=reference, precision=precision)
    decode_file(encoded, decoded, reference=reference)
    arrived = open_moments(decoded)
    for key, value in less.items():
        is_rounded = precision != "float32" and not key.endswith("step")
        assert torch.equal(arrived[key], value.bfloat16() if is_rounded else value), key
    assert isinstance(examine_moments(arrived, LIKE, WHOLE, most_steps=5), dict)


def test_a_client_of_a_smaller_rank_gets_the_first_rows_of_A_and_columns_of_B() -> None:
    found, whole = moments(), {name: dict(LIKE)[name] for name in LIKE}
    small = whole | {A: whole[A][:1], B: whole[B][:, :1]}
    cut = cut_moments(found, small, WHOLE)
    assert torch.equal(cut[f"{A}/exp_avg_sq"], found[f"{A}/exp_avg_sq"][:1])
    assert torch.equal(cut[f"{B}/exp_avg"], found[f"{B}/exp_avg"][:, :1])
    assert torch.equal(cut[f"{HEAD}/exp_avg"], found[f"{HEAD}/exp_avg"])
    assert isinstance(examine_moments(cut, small, WHOLE, required=(A, B), most_steps=5), dict)
    only_B = cut_moments(found, trained_tensors(small, ("B",)), WHOLE)
    assert {key.rpartition("/")[0] for key in only_B} == {B, HEAD}
