"""The strategy in real rounds: what one bad client does to Flower's FedAvg and not to ours, and the bookkeeping."""

import logging
import random
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.exception import InconsistentMessageReplies
from flwr.serverapp.strategy import FedAvg, Result
from lora_apps import FIRST_A, HEAD, base_model, examples, lora_config, make_model, num_examples
from peft import LoraConfig, PeftModel, get_peft_model_state_dict

from fedlora.adapters import save_adapter
from fedlora.aggregation import FedExLora, FedIT, FfaLora, LoraFair, Robust, ServerOptimizer
from fedlora.common.errors import AdapterError
from fedlora.flower import LoraFairStrategy
from fedlora.flower.replies import Update, in_fixed_order
from fedlora.simulation.inprocess import InProcessGrid
from fedlora.training.flower_round import load_round

# What the first node does, and what the reason against it says.
REASONS = {
    "nan": f"{HEAD} has values that are not finite",
    "infinity": f"{FIRST_A} has values that are not finite",
    "huge": f"{HEAD} holds 1e+07; expected at most 1e+06",
    "broadcastable": f"{FIRST_A} has shape (1, 6); expected (2, 6)",
    "transposed": f"{HEAD} has shape (8, 2); expected (2, 8)",
    "half": f"{HEAD} is float16; expected float32",
    "big-endian": f"{HEAD} is >f4; expected float32",
    "lie": f"{HEAD} has shape (1048576, 1048576); expected (2, 8)",
    "cut": f"{HEAD} has 60 bytes of numbers; expected 64",
    "pickle": f"{HEAD} is serialised as torch.save; expected numpy.ndarray",
    "scribble": f"{HEAD} is no array of numpy",
    "extra": "1 extra keys, the first base_model.model.third.lora_A.weight",
    "alias": "1 extra keys, the first base_model.model.first.lora_A.default.weight",
    "base-change": "1 extra keys, the first base_change.first.A",
    "missing": f"1 keys missing, the first {HEAD}",
    "two-records": "2 ArrayRecords; expected one",
    "no-metrics": "0 MetricRecords; expected one",
    "no-weight": "num-examples is None; expected a number",
    "list-weight": "num-examples is [3.0]; expected a number",
    "zero-weight": "num-examples is 0; expected more than 0",
    "negative-weight": "num-examples is -15; expected more than 0",
    "nan-weight": "num-examples is nan; expected more than 0",
    "infinite-weight": "num-examples is inf; expected more than 0",
    "takeover": "num-examples is 1e+12; expected more than 0, at most 1e+09",
    "error": "error 2: ValueError: out of memory",
}

ALLOWED = ("boast", "list-metric", "config", "fortran")
EVERYBODY = {"min_available_nodes": 4, "min_train_nodes": 4, "min_evaluate_nodes": 4}


def first_arrays(config: LoraConfig | None = None) -> ArrayRecord:
    return ArrayRecord(get_peft_model_state_dict(make_model(config)))


def strategy_of(**settings: object) -> LoraFairStrategy:
    return LoraFairStrategy(**{"lora_config": lora_config(), **EVERYBODY, **settings})  # type: ignore[arg-type]


def run(grid: InProcessGrid, strategy: FedAvg, *, num_rounds: int = 1, **train_config: str | bool) -> Result:
    return strategy.start(
        grid, first_arrays(), num_rounds=num_rounds, timeout=60, train_config=ConfigRecord({**train_config})
    )


def data(arrays: ArrayRecord) -> dict[str, bytes]:
    return {key: array.data for key, array in arrays.items()}


@pytest.fixture(scope="module")
def without_the_first(grid: InProcessGrid) -> dict[str, bytes]:
    """Return the arrays after a round that the first node answers with an error."""
    return data(run(grid, strategy_of(), misdeed="error").arrays)


@pytest.fixture(scope="module")
def with_all(grid: InProcessGrid) -> Result:
    return run(grid, strategy_of())


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Return what Flower's logger, which users see, has heard of."""
    logger = logging.getLogger("flwr")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


@pytest.mark.parametrize("misdeed", REASONS)
def test_a_bad_reply_is_refused_with_its_reason_and_the_others_count(
    grid: InProcessGrid,
    warnings: pytest.LogCaptureFixture,
    without_the_first: Mapping[str, bytes],
    with_all: Result,
    misdeed: str,
) -> None:
    strategy = strategy_of()
    result = run(grid, strategy, misdeed=misdeed)
    assert data(result.arrays) == without_the_first != data(with_all.arrays)
    report = strategy.reports[1]
    (refused,) = report.refused
    assert refused.node_id == 1
    assert refused.reason.startswith(REASONS[misdeed])
    assert sorted(report.accepted) == [2, 3, 4]
    assert result.train_metrics_clientapp[1]["num-refused"] == 1
    assert f"node 1 is left out: {REASONS[misdeed]}" in warnings.text


@pytest.mark.parametrize("misdeed", ALLOWED)
def test_an_odd_reply_that_does_no_harm_counts(grid: InProcessGrid, with_all: Result, misdeed: str) -> None:
    strategy = strategy_of()
    result = run(grid, strategy, misdeed=misdeed)
    assert strategy.reports[1].refused == ()
    assert data(result.arrays) == data(with_all.arrays)
    expected = {"num-refused", "lora-error-before", "lora-error-after"} | (
        set() if misdeed == "list-metric" else {"loss"}
    )
    assert set(result.train_metrics_clientapp[1]) == expected


@pytest.mark.parametrize(
    ("misdeed", "broken"),
    [
        ("nan", lambda array: np.isnan(array).any()),
        ("takeover", lambda array: np.allclose(array, 7)),
        ("huge", lambda array: np.abs(array).max() > 1e5),
    ],
)
def test_flowers_fedavg_swallows_a_reply_that_breaks_the_model(
    grid: InProcessGrid, misdeed: str, broken: object
) -> None:
    result = run(grid, FedAvg(**EVERYBODY), misdeed=misdeed)  # type: ignore[arg-type]
    assert broken(result.arrays[HEAD].numpy())  # type: ignore[operator]


@pytest.mark.parametrize("misdeed", ["broadcastable", "negative-weight"])
def test_flowers_fedavg_averages_what_has_no_average(grid: InProcessGrid, misdeed: str) -> None:
    messages = FedAvg(**EVERYBODY).configure_train(1, first_arrays(), ConfigRecord({"misdeed": misdeed}), grid)  # type: ignore[arg-type]
    replies = sorted(grid.send_and_receive(messages, timeout=60), key=lambda reply: -reply.metadata.src_node_id)
    arrays, _ = FedAvg().aggregate_train(1, replies)
    assert arrays is not None
    assert arrays[FIRST_A].shape == (2, 6)
    honest = run(grid, strategy_of(method=FedIT()), misdeed=misdeed)
    assert not np.allclose(arrays[FIRST_A].numpy(), honest.arrays[FIRST_A].numpy(), atol=1e-3)


def test_flowers_fedavg_ends_the_run_over_one_extra_key(grid: InProcessGrid) -> None:
    with pytest.raises(InconsistentMessageReplies):
        run(grid, FedAvg(**EVERYBODY), misdeed="extra")  # type: ignore[arg-type]


def test_under_fedit_without_a_bad_reply_the_arrays_are_those_of_flowers_fedavg(grid: InProcessGrid) -> None:
    ours, flowers = run(grid, strategy_of(method=FedIT())), run(grid, FedAvg(**EVERYBODY))  # type: ignore[arg-type]
    assert ours.arrays.keys() == flowers.arrays.keys()
    for key in ours.arrays:
        np.testing.assert_allclose(ours.arrays[key].numpy(), flowers.arrays[key].numpy(), atol=1e-6)
    assert ours.train_metrics_clientapp[1]["loss"] == pytest.approx(flowers.train_metrics_clientapp[1]["loss"])
    assert ours.evaluate_metrics_clientapp[1]["loss"] == pytest.approx(
        flowers.evaluate_metrics_clientapp[1]["loss"], rel=1e-5
    )


def test_plain_flower_clients_get_the_same_as_those_that_use_load_round(grid: InProcessGrid) -> None:
    assert data(run(grid, strategy_of(), num_rounds=2, plain=True).arrays) == data(
        run(grid, strategy_of(), num_rounds=2).arrays
    )


def test_a_plain_client_that_trains_a_frozen_factor_is_refused_and_told_what_to_use(grid: InProcessGrid) -> None:
    strategy = strategy_of(method=FfaLora())
    result = run(grid, strategy, num_rounds=2, plain=True)
    assert len(result.arrays) == 0
    assert [len(report.refused) for report in strategy.reports.values()] == [4, 4]
    reason = strategy.reports[1].refused[0].reason
    assert reason.startswith(f"{FIRST_A} has changed, and this round trains B only")
    assert "fedlora.training.flower_round.load_round" in reason


def test_when_all_are_refused_the_arrays_stay_and_the_run_goes_on(grid: InProcessGrid) -> None:
    strategy = strategy_of(max_weight=10)
    result = run(grid, strategy, num_rounds=2)
    assert result.train_metrics_clientapp == {1: {"num-refused": 4}, 2: {"num-refused": 4}}
    assert strategy.reports[2].aggregation is None
    before, after = result.evaluate_metrics_clientapp[1], result.evaluate_metrics_clientapp[2]
    assert before == after == {"num-refused": 4}
    assert torch.equal(strategy.adapter.dense["head.weight"], first_arrays().to_torch_state_dict()[HEAD])


def test_robust_aggregation_is_told_which_node_it_tamed(grid: InProcessGrid) -> None:
    key = "base_model.model.first.lora_B.weight"
    tamed, wild = strategy_of(robust=Robust(clip=1.5)), strategy_of()
    tame_arrays, wild_arrays = (run(grid, strategy, misdeed="loud").arrays for strategy in (tamed, wild))
    assert np.abs(tame_arrays[key].numpy()).max() < np.abs(wild_arrays[key].numpy()).max() / 50
    report = tamed.reports[1].aggregation
    assert report is not None
    assert any("(node 1)" in note for note in report.notes)


def test_when_too_few_are_left_for_the_robust_choice_the_arrays_stay_and_the_run_goes_on(
    grid: InProcessGrid, warnings: pytest.LogCaptureFixture
) -> None:
    strategy = strategy_of(robust=Robust(select="multi_krum", attackers=3))
    result = run(grid, strategy, num_rounds=2)
    assert len(result.arrays) == 0
    assert set(result.train_metrics_clientapp[2]) == {"loss", "num-refused"}
    assert [(report.aggregation, len(report.accepted)) for report in strategy.reports.values()] == [(None, 4)] * 2
    assert strategy.reports[1].failure
    assert f"the arrays stay as they are: {strategy.reports[1].failure}" in warnings.text


def test_a_bad_reply_to_an_evaluation_is_left_out_too(grid: InProcessGrid) -> None:
    config = ConfigRecord({"misdeed": "nan"})
    result = strategy_of().start(grid, first_arrays(), num_rounds=1, timeout=60, evaluate_config=config)
    honest = run(grid, strategy_of())
    metrics = result.evaluate_metrics_clientapp[1]
    assert metrics["num-refused"] == 1
    assert metrics["loss"] != honest.evaluate_metrics_clientapp[1]["loss"]
    assert np.isfinite(metrics["loss"])


def test_a_metric_that_is_nan_at_one_node_is_the_others_mean_and_told_of(
    grid: InProcessGrid, warnings: pytest.LogCaptureFixture, with_all: Result
) -> None:
    config = ConfigRecord({"misdeed": "nan-metric"})
    strategy = strategy_of()
    result = strategy.start(grid, first_arrays(), num_rounds=1, timeout=60, train_config=config, evaluate_config=config)
    assert data(result.arrays) == data(with_all.arrays)
    for metrics in (result.train_metrics_clientapp[1], result.evaluate_metrics_clientapp[1]):
        assert np.isfinite(metrics["loss"])
        assert metrics["num-refused"] == 0
    assert "aggregate_train: loss of node 1 is nan, and is left out of the mean" in warnings.text
    assert "aggregate_evaluate: loss of node 1 is nan, and is left out of the mean" in warnings.text


def test_a_node_that_does_not_answer_is_named(grid: InProcessGrid) -> None:
    strategy = strategy_of()
    messages = list(strategy.configure_train(1, first_arrays(), ConfigRecord(), grid))
    replies = [reply for reply in grid.send_and_receive(messages, timeout=60) if reply.metadata.src_node_id != 3]
    strategy.aggregate_train(1, replies)
    assert [(refused.node_id, refused.reason) for refused in strategy.reports[1].refused] == [
        (3, "no reply before the timeout")
    ]


def test_a_reply_counts_once_and_an_error_is_told_of_the_node_that_was_asked(grid: InProcessGrid) -> None:
    strategy = strategy_of()
    messages = list(strategy.configure_train(1, first_arrays(), ConfigRecord(), grid))
    replies = list(grid.send_and_receive(messages, timeout=60))
    gone = Message(Error(5, "the node is unavailable"), reply_to=messages[0])
    gone.metadata.__dict__["_src_node_id"] = 1  # As the SuperLink answers for a node that is gone.
    kept = [reply for reply in replies if reply.metadata.src_node_id != messages[0].metadata.dst_node_id]
    strategy.aggregate_train(1, [*kept, kept[0], gone])
    reasons = {refused.node_id: refused.reason for refused in strategy.reports[1].refused}
    assert reasons == {
        kept[0].metadata.src_node_id: "a second reply to one message; the first counts",
        messages[0].metadata.dst_node_id: "error 5: the node is unavailable",
    }


def test_neither_the_order_of_replies_nor_the_nodes_ids_have_an_effect_on_any_bit(grid: InProcessGrid) -> None:
    found = []
    for seed in range(3):
        strategy = strategy_of()
        messages = list(strategy.configure_train(1, first_arrays(), ConfigRecord(), grid))
        replies = list(grid.send_and_receive(messages, timeout=60))
        random.Random(seed).shuffle(replies)
        arrays, _ = strategy.aggregate_train(1, replies)
        assert arrays is not None
        found.append(data(arrays))
    assert found[0] == found[1] == found[2]
    one, other = (
        Update(1.0, {"x": torch.empty(0)}, RecordDict({"a": ArrayRecord({"x": Array(np.full(2, value))})}))
        for value in (1.0, 2.0)
    )
    assert [update for _, update in in_fixed_order({5: one, 9: other})] == [
        update for _, update in in_fixed_order({5: other, 9: one})
    ]


def test_everything_travels_as_float32_under_pefts_names_and_is_a_peft_folder_at_the_end(
    grid: InProcessGrid, tmp_path: Path
) -> None:
    strategy = strategy_of(method=FedExLora())
    result = run(grid, strategy, num_rounds=2)
    own = get_peft_model_state_dict(make_model())
    change = {f"base_change.{path}.{factor}" for path in ("first", "second") for factor in "AB"}
    assert set(result.arrays) == own.keys() | change
    assert {array.dtype for array in result.arrays.values()} == {"float32"}
    save_adapter(strategy.adapter, tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(base_model(), str(tmp_path / "adapter"))  # type: ignore[arg-type]
    by_round = make_model()
    load_round(by_round, result.arrays)
    inputs, _ = examples(2)
    torch.testing.assert_close(loaded(inputs), by_round(inputs), atol=1e-6, rtol=1e-5)


def test_the_functions_for_metrics_are_the_callers(grid: InProcessGrid) -> None:
    def first_loss(contents: list[RecordDict], weighted_by: str) -> MetricRecord:
        assert weighted_by == "num-examples"
        return MetricRecord({"most": max(int(content["metrics"][weighted_by]) for content in contents)})  # type: ignore

    strategy = strategy_of(train_metrics_aggr_fn=first_loss, evaluate_metrics_aggr_fn=first_loss)
    result = run(grid, strategy)
    assert result.train_metrics_clientapp[1]["most"] == num_examples(3)
    assert result.evaluate_metrics_clientapp[1] == {"most": num_examples(3), "num-refused": 0}


def test_a_server_optimiser_goes_on_from_round_to_round(grid: InProcessGrid, with_all: Result) -> None:
    still = strategy_of(server_optimizer=ServerOptimizer(momentum=0.0))
    assert data(run(grid, still).arrays) == data(with_all.arrays)
    strategy = strategy_of(server_optimizer=ServerOptimizer(momentum=0.5))
    run(grid, strategy, num_rounds=2)
    reached = [report.aggregation and report.aggregation.server_step for report in strategy.reports.values()]
    assert [step and step.reach == pytest.approx(1.0) for step in reached] == [True, False]
    with pytest.raises(ValueError, match="a server optimiser does not go with fedex_lora"):
        strategy_of(method=FedExLora(), server_optimizer=ServerOptimizer())


def test_without_training_nothing_is_aggregated(grid: InProcessGrid) -> None:
    strategy = strategy_of(fraction_train=0.0)
    result = run(grid, strategy)
    assert result.train_metrics_clientapp == {}
    assert strategy.reports == {}
    assert set(result.evaluate_metrics_clientapp[1]) == {"loss", "num-refused"}


def test_first_arrays_of_another_rank_than_the_configuration_are_refused(grid: InProcessGrid) -> None:
    with pytest.raises(AdapterError, match=r"pairs of rank \[2\], and lora_config says r = 4"):
        run(grid, strategy_of(lora_config=lora_config(rank=4)))


def test_first_arrays_under_other_names_than_pefts_are_refused(grid: InProcessGrid) -> None:
    live = {key: tensor for key, tensor in make_model().state_dict().items() if "lora_" in key}
    with pytest.raises(AdapterError, match=r"keys that are not PEFT's .*get_peft_model_state_dict"):
        strategy_of().start(grid, ArrayRecord(live), num_rounds=1)


def test_first_arrays_in_half_precision_are_refused(grid: InProcessGrid) -> None:
    half = {key: tensor.half() for key, tensor in get_peft_model_state_dict(make_model()).items()}
    with pytest.raises(AdapterError, match=r"is float16; expected float32"):
        strategy_of().start(grid, ArrayRecord(half), num_rounds=1)


def test_dora_is_refused_at_once_under_a_method_that_changes_the_base_weights() -> None:
    config = LoraConfig(r=2, target_modules=["first"], use_dora=True)
    with pytest.raises(AdapterError, match=r"use_dora, and fedex_lora cannot"):
        LoraFairStrategy(lora_config=config, method=FedExLora())
    assert LoraFairStrategy(lora_config=config.to_dict(), method=LoraFair()).lora_config["use_dora"]


def test_the_reports_have_the_errors_of_averaging_and_of_the_method(grid: InProcessGrid) -> None:
    strategy = strategy_of(method=LoraFair(ridge=1e-6))
    metrics = run(grid, strategy, num_rounds=2).train_metrics_clientapp
    for round_number, report in strategy.reports.items():
        assert report.aggregation is not None
        assert 0 < report.aggregation.error_after < report.aggregation.error_before
        assert metrics[round_number]["lora-error-before"] == report.aggregation.error_before
        assert metrics[round_number]["lora-error-after"] == report.aggregation.error_after
