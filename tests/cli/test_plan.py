"""`fedlora plan`: what it prints, what it refuses, and that its bytes are those that travel."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedlora.adapters import Adapter, LoraLayer, pack
from fedlora.adapters.differences import Precision, encode_file
from fedlora.aggregation import METHODS, FedExLora, ServerOptimizer, aggregate
from fedlora.common.config import RunConfig
from fedlora.planning.plan import too_large
from fedlora.planning.server_cost import server_cost
from fedlora.planning.traffic import traffic_of
from fedlora.training.footprint.live_bytes import LiveBytes
from fedlora.training.footprint.step import StepCost

RANK, IN_FEATURES, OUT_FEATURES, NUM_LAYERS = 4, 96, 160, 3


@pytest.fixture
def run_file(tmp_path: Path, tiny_language_model: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(
        f'[run]\nname = "plans"\n[model]\nname = "{tiny_language_model}"\n'
        '[task]\nkind = "causal_lm"\nmax_length = 64\n[data]\npath = "nowhere.jsonl"\n'
        '[partition]\nby = "iid"\nnum_clients = 7\n[train]\nsteps = 3\nbatch_size = 2\n'
    )
    return path


def adapter_of(seed: int) -> Adapter:
    draw = torch.Generator().manual_seed(seed)
    layers = {
        f"model.layers.{place}.q_proj": LoraLayer(
            torch.randn(RANK, IN_FEATURES, generator=draw), torch.randn(OUT_FEATURES, RANK, generator=draw), 2.0
        )
        for place in range(NUM_LAYERS)
    }
    dense = {"head.weight": torch.randn(5, OUT_FEATURES, generator=draw)}
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK}
    return Adapter(layers, dense, config)


def test_a_plan_names_memory_bytes_and_seconds_and_writes_nothing(
    fedlora: Callable[..., Any], run_file: Path, tmp_path: Path
) -> None:
    done = fedlora("plan", run_file)
    assert (done.code, done.err) == (0, "")
    for word in ("weights", "adapter", "gradients", "optimizer", "activations", "of the server", "10 Mbit/s", *METHODS):
        assert word in done.out
    assert "7 clients a round" in done.out
    assert all(len(line) <= 100 for line in done.out.splitlines())
    assert list(tmp_path.iterdir()) == [run_file]


def test_a_plan_as_json_has_the_same_for_a_program(fedlora: Callable[..., Any], run_file: Path) -> None:
    done = fedlora("plan", run_file, "--json", "--set", "aggregation.method=ffa_lora", "--set", "federation.cohort=3")
    plan = json.loads(done.out)
    assert (done.code, plan["device"] in ("cpu", "cuda"), plan["num_clients"]) == (0, True, 3)
    assert plan["step"]["training"]["weights"] > 4 * plan["num_parameters"]
    assert plan["traffic"][0]["method"] == "ffa_lora"
    assert {traffic["method"] for traffic in plan["traffic"]} == set(METHODS)
    assert plan["traffic"][0]["up"] < plan["traffic"][0]["down"]
    assert plan["server"]["seconds"] > 0
    assert plan["training_seconds"] > 0


def plan_with(fedlora: Callable[..., Any], run_file: Path, *overrides: str) -> dict[str, Any]:
    """Return the plan of a run with overrides."""
    done = fedlora("plan", run_file, "--json", *(part for override in overrides for part in ("--set", override)))
    assert (done.code, done.err) == (0, "")
    return dict(json.loads(done.out))


def test_the_clients_of_a_simulation_are_counted_by_the_groups_of_its_data(
    fedlora: Callable[..., Any], run_file: Path, tiny_chats: Path
) -> None:
    by_group = ["partition.by=group", "data.group=language", f"data.path={tiny_chats}"]
    plan = plan_with(fedlora, run_file, *by_group)
    groups = {json.loads(line)["language"] for line in tiny_chats.read_text().splitlines()}
    assert plan["num_clients"] == len(groups) > 1
    assert plan["notes"][0].startswith(f"{len(groups)} clients, by the groups of {tiny_chats}; the largest, ")
    assert (
        f"a deployment begins with {7 + len(groups)} (federation.sites)"
        in (plan_with(fedlora, run_file, *by_group, f"federation.sites={7 + len(groups)}")["notes"][0])
    )
    assert plan_with(fedlora, run_file, *by_group, "federation.cohort=1")["num_clients"] == 1


def test_a_plan_whose_data_are_not_here_says_by_what_it_counts(fedlora: Callable[..., Any], run_file: Path) -> None:
    plan = plan_with(fedlora, run_file, "partition.by=group", "data.group=language", "federation.sites=3")
    assert plan["num_clients"] == 3
    assert plan["notes"][0].startswith("3 clients, by federation.sites: nowhere.jsonl: no such file or folder")
    run_file.write_text(run_file.read_text().replace('path = "nowhere.jsonl"', 'group = "language"'))
    deployment = plan_with(fedlora, run_file, "partition.by=group", "federation.sites=3")
    assert deployment["notes"][0].endswith("the run file names no data.path, so they are each site's own")


def test_a_plan_has_a_time_with_epochs_too(
    fedlora: Callable[..., Any], run_file: Path, tiny_chats: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedlora.training.footprint.speed.measured_flops_per_second", lambda *_given: 1e9)

    def seconds(*overrides: str) -> float:
        plan = plan_with(fedlora, run_file, "train.device=cpu", *overrides)
        return float(plan["training_seconds"])

    # 1,000 examples in steps of 2; so many in all as the data have, in the 7 equal parts of the partition.
    assert seconds("train.epochs=1") == pytest.approx(seconds("train.steps=500"))
    largest = plan_with(fedlora, run_file, "train.epochs=1", f"data.path={tiny_chats}")["notes"][0]
    num_examples = int(re.search(r"trains on ([\d,]+) examples", largest)[1].replace(",", ""))  # type: ignore[index]
    steps = round(2 * num_examples / 2)
    assert seconds("train.epochs=2", f"data.path={tiny_chats}") == pytest.approx(seconds(f"train.steps={steps}"))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["lora.rank=500"], "lora.rank is 500"),
        (["task.max_length=100000"], "at most 256 tokens"),
        (["model.name=/nowhere"], "no folder /nowhere"),
        (["task.kind=own"], "cannot be planned"),
        (["train.micro_batch_size=50"], "train.micro_batch_size is 50"),
    ],
)
def test_what_cannot_work_is_one_line_and_exit_1(
    fedlora: Callable[..., Any], run_file: Path, overrides: list[str], words: str
) -> None:
    done = fedlora("plan", run_file, *(part for override in overrides for part in ("--set", override)))
    assert (done.code, done.out) == (1, "")
    assert len(done.err.splitlines()) == 1
    assert done.err.startswith("error: ")
    assert words in done.err


@pytest.mark.skipif(torch.cuda.is_available(), reason="for a machine without CUDA")
def test_without_cuda_quantised_weights_are_planned_for_it_with_a_warning(
    fedlora: Callable[..., Any], run_file: Path
) -> None:
    plan = json.loads(fedlora("plan", run_file, "--json", "--set", "model.quantization=4bit").out)
    assert plan["device"] == "cuda"
    assert plan["training_seconds"] is None
    assert any("planned for CUDA" in note and note.startswith("WARNING") for note in plan["notes"])
    assert plan["step"]["training"]["workspace"] > 0


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("name", ["fedit", "ffa_lora", "rolora"])
def test_the_bytes_are_those_of_the_encoded_files(tmp_path: Path, precision: Precision, name: str) -> None:
    method, start, update = METHODS[name](), adapter_of(0), adapter_of(1)
    traffic = traffic_of(start, method, num_clients=2, num_rounds=5, precision=precision, init_changes_base=False)
    frozen = {"A", "B"} - set(method.plan(1).trains)

    def encoded_bytes(without: str) -> int:
        for file, adapter in (("start", start), ("update", update)):
            (tmp_path / file).write_bytes(pack(adapter, without=without))
        encode_file(tmp_path / "update", tmp_path / "encoded", reference=tmp_path / "start", precision=precision)
        return (tmp_path / "encoded").stat().st_size

    assert traffic.up == pytest.approx(encoded_bytes("".join(frozen)), rel=0.03)
    assert traffic.down == traffic.down_last == pytest.approx(encoded_bytes(""), rel=0.03)


@pytest.mark.parametrize("name", ["flora", "fedex_lora"])
@pytest.mark.parametrize("num_rounds", [2, 3, 40])
def test_a_change_of_the_base_weights_grows_as_the_aggregation_makes_it_grow(name: str, num_rounds: int) -> None:
    method, adapter = METHODS[name](), adapter_of(0)
    start = adapter
    for number in range(1, num_rounds):
        updates = {str(place): adapter_of(3 * number + place) for place in range(3)}
        start = aggregate(updates, method=method, reference=start, measure=False).adapter
    traffic = traffic_of(
        adapter, method, num_clients=3, num_rounds=num_rounds, precision="float32", init_changes_base=False
    )
    assert traffic.down_last == pytest.approx(len(pack(start)), rel=0.03)
    assert traffic.down < traffic.down_last


@pytest.mark.parametrize("residual_rank", [4, 10_000])
@pytest.mark.parametrize("num_rounds", [1, 2, 3, 40])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_a_bounded_or_dense_change_takes_what_its_encoded_file_takes(
    tmp_path: Path, residual_rank: int, num_rounds: int, precision: Precision
) -> None:
    method, starts = FedExLora(residual_rank=residual_rank), [adapter_of(0)]
    for number in range(1, num_rounds):
        updates = {str(place): adapter_of(3 * number + place) for place in range(3)}
        starts.append(aggregate(updates, method=method, reference=starts[-1], measure=False).adapter)
    traffic = traffic_of(
        starts[0], method, num_clients=3, num_rounds=num_rounds, precision=precision, init_changes_base=False
    )
    for name, adapter in (("before", starts[max(0, num_rounds - 2)]), ("last", starts[-1])):
        (tmp_path / name).write_bytes(pack(adapter))
    encode_file(tmp_path / "last", tmp_path / "encoded", reference=tmp_path / "before", precision=precision)
    # The names of the change's tensors are not counted, and these layers are tiny.
    assert traffic.down_last == pytest.approx((tmp_path / "encoded").stat().st_size, rel=0.08)


def test_pairs_out_of_the_base_weights_take_a_change_of_their_rank_along() -> None:
    adapter = adapter_of(0)
    plain, taken = (
        traffic_of(
            adapter, METHODS["fedit"](), num_clients=3, num_rounds=5, precision="bfloat16", init_changes_base=is_taken
        )
        for is_taken in (False, True)
    )
    assert taken.up == plain.up
    assert taken.down - plain.down == 4 * NUM_LAYERS * RANK * (IN_FEATURES + OUT_FEATURES)


def test_who_sat_out_a_round_is_sent_the_former_adapter_whole_where_steps_go_on_with_its_change() -> None:
    settings = {"num_clients": 3, "num_rounds": 3, "precision": "int8", "init_changes_base": False}
    adapter = adapter_of(0)

    def former(name: str, *, needs_former: bool = True) -> int:
        return traffic_of(adapter, METHODS[name](), **settings, needs_former=needs_former).former  # type: ignore[arg-type]

    assert former("fedit") == pytest.approx(len(pack(adapter)), rel=0.03)
    starts = [adapter]
    for number in (1, 2):
        updates = {str(place): adapter_of(3 * number + place) for place in range(3)}
        starts.append(aggregate(updates, method=METHODS["fedex_lora"](), reference=starts[-1], measure=False).adapter)
    assert former("fedex_lora") == pytest.approx(len(pack(starts[1])), rel=0.03)
    assert [former("fedit", needs_former=False), former("flora"), former("rolora")] == [0, 0, 0]


@pytest.mark.parametrize("name", ["fedit", "lora_fair", "flex_lora", "flora"])
def test_the_servers_memory_for_many_clients_follows_from_few(name: str) -> None:
    method, updates = METHODS[name](), {str(seed): adapter_of(seed) for seed in range(40)}
    one = {client: Adapter({"layer": next(iter(update.layers.values()))}, {}, {}) for client, update in updates.items()}
    with LiveBytes() as live:
        aggregate(one, method=method, reference=one["0"])
    cost = server_cost(updates["0"], method, num_clients=40)
    assert cost.working == pytest.approx(sum(live.peak.values()), rel=0.15)  # of small layers too much
    assert cost.adapters == 3 * updates["0"].size_bytes()
    assert server_cost(updates["0"], method, num_clients=2, keeps_former=True).adapters == 4 * updates["0"].size_bytes()
    assert cost.updates == 40 * updates["0"].size_bytes()


@pytest.mark.parametrize(("kind", "acts_on", "moments"), [("momentum", "factors", 1), ("yogi", "factors", 2)])
def test_what_the_servers_optimiser_keeps_counts_in_its_memory(kind: Any, acts_on: Any, moments: int) -> None:
    adapter = adapter_of(0)
    plain, stepping = (
        server_cost(adapter, METHODS["fedit"](), num_clients=4, server_optimizer=optimizer)
        for optimizer in (None, ServerOptimizer(kind, acts_on))
    )
    assert plain.kept == 0
    assert stepping.kept == pytest.approx(3 * moments * adapter.size_bytes(), rel=0.01)


def test_a_gpu_that_is_too_small_is_refused_with_what_to_change() -> None:
    config = RunConfig()
    cost = StepCost({"weights": 20 * 10**9, "activations": 10 * 10**9}, {"weights": 20 * 10**9}, 1)
    assert too_large(cost, config, 80 * 10**9) == ""
    refusal = too_large(cost, config, 24 * 10**9)
    assert "training would take 30.0 GB of this GPU's 24.0 GB" in refusal
    for remedy in ("gradient_checkpointing = true", "micro_batch_size below 16", 'quantization = "4bit"'):
        assert remedy in refusal
    judging = too_large(replace(cost, evaluation={"activations": 90 * 10**9}), config, 80 * 10**9)
    assert judging.startswith("judging would take 90.0 GB")
    assert "evaluation.batch_size below 16" in judging


def test_the_epsilon_of_all_rounds_is_told_before_the_run(fedlora: Callable[..., Any], run_file: Path) -> None:
    private = ("federation.weighting=uniform", "privacy.unit=client", "privacy.clip=1.0", "privacy.epsilon=4.0")
    plan = plan_with(fedlora, run_file, "aggregation.method=fedit", *private)
    assert 3.99 < plan["epsilon"] <= 4.0
    assert "epsilon 4.00 of each client at delta 1e-05, by the adapters of 10 of 10 rounds" in plan["notes"][0]
    assert plan_with(fedlora, run_file)["epsilon"] is None
