"""The gate: honest updates pass, all others are refused with a typed reason, and nothing that is sent can end a run."""

import json
import math
import pickle
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor

from fedlora.adapters import Adapter, LoraLayer, pack
from fedlora.adapters.fit import MAX_VALUE, Misfit, bad_value, other_form
from fedlora.adapters.keys import named_tensors, to_state_dict
from fedlora.aggregation import FedIT, LoraFair, aggregate
from fedlora.common.messages import LOSS_NOT_FINITE, OK, TrainReceipt, TrainRequest
from fedlora.server.rounds.admission import Admitted, Refusal, admit, examine, outliers

few = settings(derandomize=True, database=None, deadline=None, max_examples=100)

CONFIG = {"peft_type": "LORA", "lora_alpha": 8, "alpha_pattern": {}}
NUM_EXAMPLES = 50
REQUEST = TrainRequest(run="run", round=3, attempt=1, seed=0, num_rounds=10, validation_examples=0)
PREFIX = "base_model.model."
A_NAME, B_NAME, HEAD_NAME = f"{PREFIX}q.lora_A.weight", f"{PREFIX}q.lora_B.weight", f"{PREFIX}head.bias"


def adapter(offset: float = 0.0) -> Adapter:
    A = torch.linspace(-1, 1, 24).view(4, 6) + offset
    B = torch.linspace(0, 1, 20).view(5, 4) + offset
    return Adapter({"q": LoraLayer(A, B, 2.0), "v": LoraLayer(A + 1, B + 1, 2.0)}, {"head.bias": torch.ones(3)}, CONFIG)


REFERENCE = adapter()
UPDATE = adapter(0.1)


def receipt(packed: bytes = pack(UPDATE), **fields: Any) -> TrainReceipt:
    return replace(
        TrainReceipt("run", 3, 1, "site", OK, num_examples=NUM_EXAMPLES, num_steps=8, loss=0.5, adapter=packed),
        **fields,
    )


def packed_with(changes: Mapping[str, Tensor | None] = {}, config: object = CONFIG) -> bytes:
    """Return the honest update with other tensors, None for one that is left out, or another configuration."""
    tensors = to_state_dict(UPDATE) | changes
    return save({name: t for name, t in tensors.items() if t is not None}, {"adapter_config": json.dumps(config)})


def verdict(given: TrainReceipt, *, client: str = "site") -> Admitted | Refusal:
    return admit(given, request=REQUEST, client=client, num_examples=NUM_EXAMPLES, reference=REFERENCE)


def test_an_honest_update_is_admitted_bit_for_bit() -> None:
    admitted = verdict(receipt())
    assert isinstance(admitted, Admitted)
    assert pack(admitted.update) == pack(UPDATE)


def test_an_update_that_changed_nothing_is_admitted() -> None:
    assert isinstance(found := verdict(receipt(pack(REFERENCE))), Admitted)
    assert found.is_unchanged


def test_an_update_weighs_by_what_its_site_described_and_by_nothing_else() -> None:
    for described in (1, 10**9):
        given = receipt(num_examples=described)
        found = admit(given, request=REQUEST, client="site", num_examples=described, reference=REFERENCE)
        assert isinstance(found, Admitted)
    assert str(verdict(receipt(num_examples=51))) == "num_examples: 51; expected 50, as it described itself"
    none = admit(receipt(num_examples=0), request=REQUEST, client="site", num_examples=0, reference=REFERENCE)
    assert str(none) == "num_examples: 0; expected 1 or more"


def spoiled(value: float) -> Tensor:
    tensor = torch.zeros(4, 6)
    tensor[2, 3] = value
    return tensor


FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"run": "other"}, "wrong_request"),
    ({"round": 2}, "wrong_request"),
    ({"attempt": 0}, "wrong_request"),
    ({"client": "other"}, "wrong_request"),
    ({"status": LOSS_NOT_FINITE, "adapter": b""}, LOSS_NOT_FINITE),
    ({"status": "out_of_memory"}, "out_of_memory"),
    ({"status": "<script>" * 1000}, "internal"),
    ({"num_examples": 0}, "num_examples"),
    ({"num_examples": -5}, "num_examples"),
    ({"num_examples": 10**12}, "num_examples"),
    ({"loss": math.nan}, LOSS_NOT_FINITE),
    ({"loss": math.inf}, LOSS_NOT_FINITE),
    ({"adapter": b""}, "unreadable"),
    ({"adapter": pickle.dumps(["tensors"])}, "unreadable"),
    ({"adapter": pack(UPDATE)[:-1]}, "unreadable"),
    ({"adapter": pack(UPDATE) + b"\0"}, "unreadable"),
    ({"adapter": (2**40).to_bytes(8, "little") + b"{}"}, "unreadable"),
    ({"adapter": packed_with(config=[1])}, "unreadable"),
    ({"adapter": packed_with({B_NAME: None})}, "unreadable"),
]


@pytest.mark.parametrize(("fields", "code"), FIELDS, ids=[f"{(*fields,)}-{code}" for fields, code in FIELDS])
def test_an_answer_that_does_not_fit_the_request_is_refused(fields: dict[str, Any], code: str) -> None:
    refusal = verdict(receipt(**fields))
    assert isinstance(refusal, Refusal)
    assert refusal.code == code


TENSORS: list[tuple[dict[str, Tensor | None], str, str]] = [
    ({A_NAME: spoiled(math.nan)}, "not_finite", A_NAME),
    ({A_NAME: spoiled(-math.inf)}, "not_finite", A_NAME),
    ({HEAD_NAME: torch.tensor([0.0, math.nan, 0.0])}, "not_finite", HEAD_NAME),
    ({A_NAME: spoiled(-1e7)}, "too_large", "holds 1e+07; expected at most 1e+06"),
    ({A_NAME: None, B_NAME: None}, "missing_layer", A_NAME),
    ({HEAD_NAME: None}, "missing_layer", HEAD_NAME),
    ({f"{PREFIX}head.extra": torch.ones(3)}, "unexpected_layer", "head.extra"),
    (
        {f"{PREFIX}k.lora_A.weight": torch.ones(4, 6), f"{PREFIX}k.lora_B.weight": torch.ones(5, 4)},
        "unexpected_layer",
        f"{PREFIX}k.lora_A.weight",
    ),
    ({A_NAME: torch.ones(4, 7)}, "shape", f"{A_NAME} (4, 7); expected (4, 6)"),
    ({A_NAME: torch.ones(4, 1)}, "shape", f"{A_NAME} (4, 1); expected (4, 6)"),
    ({A_NAME: torch.ones(1, 6), B_NAME: torch.ones(5, 1)}, "shape", f"{A_NAME} (1, 6); expected (4, 6)"),
    ({A_NAME: torch.ones(8, 6), B_NAME: torch.ones(5, 8)}, "shape", f"{A_NAME} (8, 6); expected (4, 6)"),
    ({HEAD_NAME: torch.ones(1)}, "shape", f"{HEAD_NAME} (1,); expected (3,)"),
    ({HEAD_NAME: torch.tensor(1.0)}, "shape", f"{HEAD_NAME} (); expected (3,)"),
    ({A_NAME: torch.ones(4, 6, dtype=torch.float16)}, "dtype", f"{A_NAME} torch.float16; expected torch.float32"),
    ({A_NAME: torch.ones(4, 6, dtype=torch.float64)}, "dtype", f"{A_NAME} torch.float64; expected torch.float32"),
    ({A_NAME: torch.ones(4, 6, dtype=torch.int32)}, "dtype", f"{A_NAME} torch.int32; expected torch.float32"),
    ({A_NAME: torch.ones(4, 6, dtype=torch.bool)}, "dtype", f"{A_NAME} torch.bool; expected torch.float32"),
]


@pytest.mark.parametrize(("changes", "code", "found"), TENSORS)
def test_tensors_that_do_not_fit_are_refused_by_name(changes: dict[str, Tensor], code: str, found: str) -> None:
    refusal = verdict(receipt(packed_with(changes)))
    assert isinstance(refusal, Refusal)
    assert refusal.code == code
    assert found in str(refusal)


@pytest.mark.parametrize(
    "settings",
    [
        {"lora_alpha": 16},
        {"lora_alpha": math.nan},
        {"lora_alpha": "8"},
        {"use_rslora": True},
        {"alpha_pattern": {"q": 16}},
        {"alpha_pattern": {"(": 16}},
        {"alpha_pattern": {"(.*.*)*" * 20 + "x": 1}},  # matching it would take for ever
        {"alpha_pattern": [1]},
    ],
)
def test_another_lora_scaling_is_refused_before_it_is_used(settings: dict[str, object]) -> None:
    refusal = verdict(receipt(packed_with(config=CONFIG | settings)))
    assert isinstance(refusal, Refusal)
    assert refusal.code == "configuration"


def test_another_way_to_write_the_same_scaling_is_admitted() -> None:
    same = {"lora_alpha": 8.0, "alpha_pattern": None, "use_rslora": False, "peft_version": "9"}
    assert isinstance(verdict(receipt(packed_with(config=CONFIG | same))), Admitted)


def test_a_refusal_is_one_short_line_whatever_the_peer_named_its_layers() -> None:
    refusal = verdict(receipt(packed_with({f"{PREFIX}{'x' * 100_000}": torch.ones(1)})))
    assert len(str(refusal)) < 400


@few
@given(st.integers(0, len(pack(UPDATE)) - 1), st.integers(1, 255))
def test_whatever_byte_is_changed_the_verdict_is_an_update_or_a_refusal(place: int, change: int) -> None:
    raw = bytearray(pack(UPDATE))
    raw[place] ^= change
    assert isinstance(verdict(receipt(bytes(raw))), Admitted | Refusal)


def moved_by(distance: float) -> Adapter:
    bias = REFERENCE.dense["head.bias"] + torch.tensor([distance, 0.0, 0.0])
    return Adapter(REFERENCE.layers, {"head.bias": bias}, CONFIG)


def found_far(
    updates: Mapping[str, Adapter], reference: Adapter, *, norm_limit: float = 100.0, by_factors: bool = True
) -> dict[str, Refusal]:
    found = {client: examine(update, reference) for client, update in updates.items()}
    admitted = {client: each for client, each in found.items() if isinstance(each, Admitted)}
    assert admitted.keys() == updates.keys()
    return outliers(admitted, norm_limit=norm_limit, by_factors=by_factors)


def far_ones(distances: Mapping[str, float], norm_limit: float = 100.0) -> dict[str, Refusal]:
    updates = {client: moved_by(distance) for client, distance in distances.items()}
    return found_far(updates, REFERENCE, norm_limit=norm_limit)


def test_an_update_a_thousand_times_larger_than_its_rounds_median_is_refused() -> None:
    refused = far_ones({"a": 1, "b": 1, "c": 1, "d": 1000})
    assert [*refused] == ["d"]
    assert refused["d"] == Refusal("norm", "moved by 1e+03, the round's median is 1")


def test_the_limit_is_a_factor_on_the_median() -> None:
    assert far_ones({"a": 1, "b": 1, "c": 9}, norm_limit=10) == {}
    assert [*far_ones({"a": 1, "b": 1, "c": 11}, norm_limit=10)] == ["c"]


def test_several_far_ones_are_refused_together() -> None:
    assert [*far_ones({"a": 1, "b": 2, "c": 3, "d": 5000, "e": 9000})] == ["d", "e"]


def test_the_movement_of_a_and_b_counts_too() -> None:
    far = Adapter(REFERENCE.layers | {"v": LoraLayer(torch.full((4, 6), 900.0), torch.ones(5, 4), 2.0)}, {}, CONFIG)
    updates = {"a": moved_by(1), "b": moved_by(1), "c": replace(far, dense=REFERENCE.dense)}
    assert [*found_far(updates, REFERENCE)] == ["c"]


def test_without_a_median_to_speak_of_none_is_refused() -> None:
    assert far_ones({}) == {}
    assert far_ones({"a": 1, "b": 1e5}) == {}
    assert far_ones({"a": 0, "b": 0, "c": 1}) == {}
    assert far_ones({"a": 0, "b": 0, "c": 0}) == {}


@pytest.mark.parametrize("method", [FedIT(), LoraFair()])
def test_the_largest_values_that_are_admitted_do_not_overflow_the_aggregation(method: FedIT | LoraFair) -> None:
    huge = torch.full((8, 4096), MAX_VALUE)
    updates = {
        "a": Adapter({"q": LoraLayer(huge, huge.T, 2.0)}),
        "b": Adapter({"q": LoraLayer(-huge, huge.T, 2.0)}),
        "c": Adapter({"q": LoraLayer(huge, -huge.T, 2.0)}),
    }
    report = aggregate(updates, method=method).report
    assert math.isfinite(report.error_before)


def test_a_given_start_is_judged_by_the_same_rules() -> None:
    assert other_form(UPDATE, REFERENCE) is None
    assert bad_value(named_tensors(UPDATE)) is None
    other = Adapter({path: LoraLayer(layer.A, layer.B, 4.0) for path, layer in UPDATE.layers.items()}, UPDATE.dense)
    assert other_form(other, REFERENCE) == Misfit("configuration", "q scales by 4; expected 2")


ONLY_B = replace(REQUEST, trains=("B",))


def test_an_update_of_one_factor_is_completed_with_the_other_from_the_rounds_start() -> None:
    update = receipt(pack(UPDATE, without="A"))
    admitted = admit(update, request=ONLY_B, client="site", num_examples=NUM_EXAMPLES, reference=REFERENCE)
    assert isinstance(admitted, Admitted)
    assert torch.equal(admitted.update.layers["q"].A, REFERENCE.layers["q"].A)
    assert torch.equal(admitted.update.layers["q"].B, UPDATE.layers["q"].B)


def test_a_factor_that_was_not_to_be_trained_is_refused() -> None:
    refusal = admit(receipt(), request=ONLY_B, client="site", num_examples=NUM_EXAMPLES, reference=REFERENCE)
    assert isinstance(refusal, Refusal)
    assert refusal.code == "unreadable"
    assert "q.lora_A.weight, of a factor that was not to be trained or sent" in refusal.found


def test_a_missing_factor_that_was_to_be_trained_is_refused() -> None:
    refusal = verdict(receipt(pack(UPDATE, without="A")))
    assert isinstance(refusal, Refusal)
    assert "q has no lora_A" in refusal.found


def test_a_change_of_the_base_weights_is_the_servers_and_refused_from_a_client() -> None:
    change = {"q": LoraLayer(torch.ones(1, 6), torch.ones(5, 1), 1.0)}
    reference = replace(REFERENCE, base_change=change)
    assert isinstance(
        admit(receipt(), request=REQUEST, client="site", num_examples=NUM_EXAMPLES, reference=reference), Admitted
    )
    refusal = verdict(receipt(pack(replace(UPDATE, base_change=change))))
    assert isinstance(refusal, Refusal)
    assert refusal.code == "unexpected_layer"


def test_a_product_far_from_the_others_is_refused_also_where_its_factors_are_near() -> None:
    """Where B is large, a small step of A is a large one of the product."""
    layer = REFERENCE.layers["q"]
    large = Adapter({"q": replace(layer, B=1e4 * layer.B)}, REFERENCE.dense, CONFIG)

    def stepped(A: float, head: float) -> Adapter:
        dense = {"head.bias": REFERENCE.dense["head.bias"] + head}
        return Adapter({"q": replace(large.layers["q"], A=layer.A + A)}, dense, CONFIG)

    updates = {"a": stepped(0, 1), "b": stepped(0, 1), "c": stepped(0.05, 1)}
    assert [*found_far(updates, large)] == ["c"]


def test_another_gauge_is_far_only_where_nobody_undoes_it() -> None:
    turned = {path: replace(layer, A=1e4 * layer.A, B=1e-4 * layer.B) for path, layer in moved_by(1).layers.items()}
    updates = {"a": moved_by(1), "b": moved_by(1), "c": replace(moved_by(1), layers=turned)}
    assert [*found_far(updates, REFERENCE)] == ["c"]
    assert found_far(updates, REFERENCE, by_factors=False) == {}


@pytest.mark.parametrize("names", [("A", "B"), ("B",)])
def test_case_15_an_update_that_does_nothing_is_flagged(names: tuple[str, ...]) -> None:
    zeros = {path: replace(layer, **{name: getattr(layer, name) * 0 for name in names})
             for path, layer in UPDATE.layers.items()}  # fmt: skip
    dense = {path: torch.zeros_like(tensor) for path, tensor in UPDATE.dense.items()}
    found = verdict(receipt(pack(replace(UPDATE, layers=zeros, dense=dense))))
    assert isinstance(found, Admitted)
    assert found.flag == "zero"
    only_one = {**UPDATE.layers, "q": zeros["q"]}
    found = verdict(receipt(pack(replace(UPDATE, layers=only_one, dense=dense))))
    assert isinstance(found, Admitted)
    assert found.flag == ""
