"""A run that starts from a given adapter: what a run wrote comes back as it was, and nothing is dropped unsaid."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedlora.adapters import Adapter, LoraLayer, load_adapter, save_adapter, with_base_change_inside
from fedlora.adapters.keys import to_state_dict
from fedlora.common.errors import AdapterError
from fedlora.server.rounds.given_start import Room, given_start

STAYS, CHANGES, FRESH = Room(False, False), Room(False, True), Room(True, True)


def config_of(**settings: object) -> dict[str, object]:
    return {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"], **settings}


def made(seed: int = 0, **parts: Any) -> Adapter:
    draw = torch.Generator().manual_seed(seed)

    def of(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    rank = parts.get("rank", 2)
    layer = LoraLayer(
        of(rank, 6),
        of(8, rank),
        2.0,
        of(8) if parts.get("bias") else None,
        of(8) if parts.get("magnitude") else None,
        bool(parts.get("is_embedding")),
    )
    dense = {"head.weight": of(3, 8), **({"q.bias": of(8)} if parts.get("biases") else {})}
    config = config_of(r=rank, lora_alpha=2 * rank, **parts.get("config", {}))
    return Adapter({"x.q": layer}, dense if parts.get("head", True) else {}, config)


PARTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "DoRA": {"magnitude": True, "config": {"use_dora": True}},
    "the bias of B": {"bias": True, "config": {"lora_bias": True}},
    "biases": {"biases": True, "config": {"bias": "all"}},
    "an embedding": {"is_embedding": True},
}


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS.keys())
@pytest.mark.parametrize("room", [STAYS, CHANGES], ids=["plain", "changes the base"])
def test_what_a_run_wrote_is_what_the_next_one_starts_from(parts: dict[str, Any], room: Room, tmp_path: Path) -> None:
    written, like = made(1, **parts), made(2, **parts)
    save_adapter(written, tmp_path / "adapter")
    start = given_start(str(tmp_path / "adapter"), like=like, room=room)
    found, expected = to_state_dict(start), to_state_dict(written)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)
    assert start.layers["x.q"].is_embedding == written.layers["x.q"].is_embedding
    assert start.config == like.config


@pytest.mark.parametrize("name", [name for name in PARTS if name != "plain"])
def test_what_the_run_does_not_train_is_refused_and_not_dropped(name: str, tmp_path: Path) -> None:
    save_adapter(made(1, **PARTS[name]), tmp_path / "adapter")
    with pytest.raises(AdapterError, match=r"federation.start_from: .*/adapter does not fit this run: "):
        given_start(str(tmp_path / "adapter"), like=made(2), room=STAYS)


def test_an_adapter_that_is_added_to_other_weights_is_refused(tmp_path: Path) -> None:
    save_adapter(made(1), tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"init_lora_weights": "pissa"}))
    with pytest.raises(AdapterError, match=r"init_lora_weights is 'pissa'; expected True: PEFT would load it onto"):
        given_start(str(tmp_path / "adapter"), like=made(2), room=STAYS)


def test_the_change_of_the_base_weights_that_a_run_saved_inside_its_pairs_comes_out_again(tmp_path: Path) -> None:
    change = {"x.q": LoraLayer(torch.randn(3, 6), torch.randn(8, 3), 1.0)}
    written = replace(made(1), base_change=change)
    save_adapter(written, tmp_path / "adapter")
    assert load_adapter(tmp_path / "adapter").layers["x.q"].rank == 5
    start = given_start(str(tmp_path / "adapter"), like=made(2), room=CHANGES)
    assert torch.equal(start.layers["x.q"].A, written.layers["x.q"].A)
    assert torch.equal(start.layers["x.q"].B, written.layers["x.q"].B)
    assert torch.equal(start.base_change["x.q"].A, change["x.q"].A)
    torch.testing.assert_close(start.base_change["x.q"].B, change["x.q"].B)
    with pytest.raises(AdapterError, match=r"rank is 5, the run's 2: set lora.rank = 5 .* aggregate --rank 2"):
        given_start(str(tmp_path / "adapter"), like=made(2), room=STAYS)


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_where_the_first_round_starts_from_fresh_pairs_the_given_one_goes_into_the_base_weights(
    rank: int, tmp_path: Path
) -> None:
    written, like = made(1, rank=rank), made(2)
    like.layers["x.q"].B.zero_()
    save_adapter(written, tmp_path / "adapter")
    start = given_start(str(tmp_path / "adapter"), like=like, room=FRESH)
    assert torch.equal(start.layers["x.q"].A, like.layers["x.q"].A)
    inside = with_base_change_inside(start).layers["x.q"]
    layer = written.layers["x.q"]
    torch.testing.assert_close(inside.scaling * inside.B @ inside.A, layer.scaling * layer.B @ layer.A)


def test_a_missing_head_starts_fresh_and_that_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_adapter(made(1, head=False), tmp_path / "adapter")
    like = made(2)
    with caplog.at_level(logging.WARNING):
        start = given_start(str(tmp_path / "adapter"), like=like, room=STAYS)
    assert torch.equal(start.dense["head.weight"], like.dense["head.weight"])
    assert "adapter has no head.weight; the run's starts fresh" in caplog.text


def test_a_runs_folder_is_answered_with_the_adapters_in_it(tmp_path: Path) -> None:
    for name in ("adapter", "best"):
        save_adapter(made(1), tmp_path / "run" / name)
    with pytest.raises(AdapterError, match=r"give the folder that holds the adapter: .*/run/adapter, .*/run/best"):
        given_start(str(tmp_path / "run"), like=made(2), room=STAYS)
