"""`fedlora aggregate` at its ends: updates that are zero, ranks that are more than there is, very many adapters."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedlora.aggregation import METHODS
from fedlora.aggregation.updates import shares_of
from fedlora.algebra.dead_directions import dead_directions

TENSORS = "adapter_model.safetensors"


def with_zero_b(folder: Path) -> Path:
    tensors = load_file(folder / TENSORS)
    save_file(
        {key: torch.zeros_like(one) if "lora_B" in key else one for key, one in tensors.items()}, folder / TENSORS
    )
    return folder


def pairs_in(folder: Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    tensors = load_file(folder / TENSORS)
    return [(one, tensors[key.replace("lora_A", "lora_B")]) for key, one in tensors.items() if "lora_A" in key]


@pytest.mark.parametrize("limit", [(), ("--rank", 2)], ids=["whole", "cut"])
@pytest.mark.parametrize("method", METHODS)
def test_adapters_that_learned_nothing_become_one_that_can_still_learn(
    method: str, limit: tuple[object, ...], tiny: Any, fedlora: Any
) -> None:
    folders = [with_zero_b(folder) for folder in tiny.save_clients({}, {}, {})]
    done = fedlora("aggregate", "--method", method, *map(str, limit), "--out", tiny.folder / "out", *folders)
    assert (done.code, done.err) == (0, "")
    pairs = pairs_in(tiny.folder / "out")
    assert pairs
    for A, B in pairs:
        assert A.shape[0] == (2 if limit else 4)
        assert not B.any()
        assert not dead_directions(A, B).shape[1]
    torch.testing.assert_close(tiny.logits(tiny.load(tiny.folder / "out")), tiny.logits(tiny.base()))


def test_a_rank_limit_keeps_directions_that_a_product_of_smaller_rank_does_not_need(tiny: Any, fedlora: Any) -> None:
    folders = tiny.save_clients({}, {})
    for folder in folders:
        tensors = load_file(folder / TENSORS)
        save_file(
            {key: one[:, :1] @ one[:1, :] if "lora_B" in key else one for key, one in tensors.items()}, folder / TENSORS
        )
    done = fedlora("aggregate", "--method", "fedit", "--rank", "3", "--json", "--out", tiny.folder / "out", *folders)
    whole = fedlora("aggregate", "--method", "fedit", "--out", tiny.folder / "whole", *folders)
    assert whole.code == done.code == 0
    assert json.loads(done.out)["rank_limit"]["lost"] < 1e-5
    for (A, B), (whole_A, whole_B) in zip(pairs_in(tiny.folder / "out"), pairs_in(tiny.folder / "whole"), strict=True):
        assert not dead_directions(A, B).shape[1]
        torch.testing.assert_close(B @ A, whole_B @ whole_A, rtol=1e-4, atol=1e-5)


def test_a_residual_rank_bounds_the_written_rank_and_its_error_is_shown(tiny: Any, fedlora: Any) -> None:
    folders = tiny.save_clients({"r": 2}, {"r": 2}, {"r": 2})
    whole = fedlora(
        "aggregate", "--method", "fedex_lora", "--set", "residual_rank=none", "--out", tiny.folder / "whole", *folders
    )
    done = fedlora(
        "aggregate", "--method", "fedex_lora", "--set", "residual_rank=1", "--out", tiny.folder / "out", *folders
    )
    assert (whole.code, done.code) == (0, 0)
    assert {len(A) for A, _ in pairs_in(tiny.folder / "whole")} == {2 + 4}
    assert {len(A) for A, _ in pairs_in(tiny.folder / "out")} == {2 + 1}
    assert whole.out.splitlines()[0].startswith("fedex_lora (residual_rank=none, power_iterations=none) over ")
    assert "the change of the base weights included, exactly" in whole.out
    assert "the change of the base weights included, at most rank 1" in done.out
    assert "all layers: the change of the base weights is the best of rank 1; the error after is the rest" in done.out


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        ("0", "--set residual_rank=0: input should be greater than or equal to 1"),
        ("two", "--set residual_rank=two: input should be a valid integer"),
        ("1.5", "--set residual_rank=1.5: input should be a valid integer"),
    ],
)
def test_a_residual_rank_that_is_none_is_refused_in_one_line(value: str, answer: str, tiny: Any, fedlora: Any) -> None:
    folders = tiny.save_clients({}, {})
    done = fedlora(
        "aggregate", "--method", "fedex_lora", "--set", f"residual_rank={value}", "--out", tiny.folder / "out", *folders
    )
    assert done.code == 1
    assert answer in done.err
    assert done.err.count("\n") == 1


def test_the_shares_of_very_many_adapters_take_no_time() -> None:
    # A loop within a loop over these would take minutes.
    shares = shares_of([1e308, *[1.0] * 99_999])
    assert shares[0] == 1.0
    assert sum(shares_of([3, 1, 2])) == pytest.approx(1)
    assert shares_of([3, 1, 2])[0] == 0.5
