"""Moments that a peer sends beside its update: admitted as an optimiser keeps them, else refused with the reason."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedlora.adapters import Adapter, LoraLayer, pack
from fedlora.adapters.keys import to_state_dict
from fedlora.adapters.moments import Sharing
from fedlora.aggregation import FedIT, Robust
from fedlora.aggregation.shared_moments import moments_in
from fedlora.common.messages import OK, TrainReceipt, TrainRequest
from fedlora.common.packed_file import PackedFile
from fedlora.server.rounds.admission import Admitted, Refusal, admit, outliers
from fedlora.server.rounds.completion import complete

CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
WHOLE = {"exp_avg": True, "exp_avg_sq": True, "step": False}
SHARING = Sharing(WHOLE, most_steps=8)
REQUEST = TrainRequest(run="run", round=2, attempt=0, seed=0, num_rounds=10, validation_examples=0)
ONLY_B = replace(REQUEST, trains=("B",))
FIRST = "base_model.model.q.lora_A.weight"


def adapter(seed: int = 0) -> Adapter:
    draw = torch.Generator().manual_seed(seed)
    pair = torch.randn(2, 6, generator=draw), torch.randn(4, 2, generator=draw)
    # A count, as batch norms have it, is no parameter.
    dense = {"head.weight": torch.randn(3, generator=draw), "norm.num_batches": torch.tensor(3)}
    return Adapter({"q": LoraLayer(*pair, 2.0)}, dense, CONFIG)


def moments(size: float = 1.0) -> dict[str, Tensor]:
    found = {}
    for key, tensor in to_state_dict(adapter(1)).items():
        if tensor.is_floating_point():
            found |= {f"{key}/exp_avg": size * tensor, f"{key}/exp_avg_sq": size**2 * tensor.square()}
            found[f"{key}/step"] = torch.tensor(16.0)
    return found


def verdict(
    sent: Mapping[str, Tensor], *, sharing: Sharing | None = SHARING, request: TrainRequest = REQUEST
) -> Admitted | Refusal:
    packed = pack(adapter(2), without=request.frozen_factor, moments=sent)
    receipt = TrainReceipt("run", request.round, 0, "site", OK, num_examples=5, num_steps=8, loss=0.5, adapter=packed)
    return admit(receipt, request=request, client="site", num_examples=5, reference=adapter(), sharing=sharing)


def test_honest_ones_are_admitted_with_the_update_in_bytes_and_in_a_file(tmp_path: Path) -> None:
    found = verdict(moments())
    assert isinstance(found, Admitted)
    assert pack(found.update) == pack(adapter(2))
    path = tmp_path / "update"
    path.write_bytes(pack(adapter(2), moments=moments()))
    receipt = TrainReceipt("run", 2, 0, "site", OK, num_examples=5, loss=0.5, adapter=PackedFile(path, 1))
    filed = admit(receipt, request=REQUEST, client="site", num_examples=5, reference=adapter(), sharing=SHARING)
    assert isinstance(filed, Admitted)
    for admitted in (found, filed):
        assert admitted.moments.keys() == moments().keys()
        assert all(torch.equal(admitted.moments[key], tensor) for key, tensor in moments().items())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {f"{FIRST}/exp_avg_sq": torch.full((2, 6), -1.0)},
            f"moments: {FIRST}/exp_avg_sq holds -1; expected 0 or more",
        ),
        ({f"{FIRST}/exp_avg_sq": torch.full((2, 6), math.nan)}, "not_finite: "),
        (
            {f"{FIRST}/exp_avg": torch.zeros(4, 6)},
            f"moments: {FIRST}/exp_avg is (4, 6) in torch.float32; expected (2, 6)",
        ),
        ({f"{FIRST}/exp_avg": None}, f"moments: {FIRST}/exp_avg is missing"),
        ({f"{FIRST}/exp_avg": torch.full((2, 6), 100.0)}, f"moments: {FIRST}/exp_avg is larger than any gradients"),
        ({f"{FIRST}/step": torch.tensor(17.0)}, f"moments: {FIRST}/step counts 17 steps; expected at most 16"),
        ({"base_model.model.norm.num_batches/step": torch.tensor(1.0)}, "moments: base_model.model.norm.num_batches/"),
        (dict.fromkeys(moments()), f"moments: {FIRST}/exp_avg is missing"),
    ],
)
def test_what_no_optimiser_keeps_is_refused_with_its_reason(changes: Mapping[str, Tensor | None], reason: str) -> None:
    sent = {key: tensor for key, tensor in {**moments(), **changes}.items() if tensor is not None}
    found = verdict(sent)
    assert isinstance(found, Refusal)
    assert str(found).startswith(reason)


def test_a_run_that_shares_none_takes_none() -> None:
    found = verdict(moments(), sharing=None)
    assert isinstance(found, Refusal)
    assert found.code == "unreadable"
    assert isinstance(verdict({}, sharing=None), Admitted)


def test_those_of_a_factor_that_was_not_trained_are_refused() -> None:
    found = verdict(moments(), request=ONLY_B)
    assert isinstance(found, Refusal)
    assert str(found) == f"moments: {FIRST}/exp_avg is not among those that are shared"
    of_B = {key: tensor for key, tensor in moments().items() if not key.startswith(FIRST)}
    assert isinstance(verdict(of_B, request=ONLY_B), Admitted)


def test_those_very_much_larger_than_the_others_are_outliers() -> None:
    admitted = {name: found for name in "abc" if isinstance(found := verdict(moments()), Admitted)}
    assert outliers(admitted, norm_limit=100) == {}
    huge = verdict(moments(size=1e4))
    assert isinstance(huge, Admitted)
    refused = outliers({**admitted, "d": huge}, norm_limit=100)
    assert list(refused) == ["d"]
    assert str(refused["d"]).startswith("norm: its exp_avg")
    # By either alone: second moments so large that all steps vanish need no first ones.
    sizes = {"exp_avg": 0.0, "exp_avg_sq": 1e4 * admitted["a"].moment_sizes["exp_avg_sq"]}
    assert list(outliers({**admitted, "d": replace(admitted["a"], moment_sizes=sizes)}, norm_limit=100)) == ["d"]


def test_moments_count_by_what_robust_aggregation_makes_of_the_weights() -> None:
    updates = {name: adapter(1) for name in "abcd"}
    far = adapter(7)
    layers = {path: replace(layer, B=layer.B * 50) for path, layer in far.layers.items()}
    updates["e"] = replace(far, layers=layers)
    sent = {name: moments(size=1.0 if name != "e" else 2.0) for name in updates}
    everyone, selected = (
        complete(
            updates,
            start=adapter(),
            weights=dict.fromkeys(updates, 1.0),
            method=FedIT(),
            robust=robust,
            moments=sent,
            form=WHOLE,
        )
        for robust in (None, Robust(select="multi_krum", attackers=1))
    )
    assert "e" not in selected.p
    key = f"{FIRST}/exp_avg"
    torch.testing.assert_close(moments_in(selected.state)[key], moments()[key])
    torch.testing.assert_close(moments_in(everyone.state)[key], 1.2 * moments()[key])
