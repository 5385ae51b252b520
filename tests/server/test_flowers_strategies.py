"""Flower's own strategies, unmodified, over sites that know this project's requests alone."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvg, FedMedian

sys.path.append(str(Path(__file__).parent))

from peers import CONFIG, Peer, failing, honest, make_grid, small_adapter

from fedlora.adapters.keys import to_state_dict
from fedlora.common.errors import FedloraError
from fedlora.common.flower_privates import assume_identity
from fedlora.server.sites.grpc.flowers_words import ADAPTER_CONFIG_KEY
from fedlora.server.sites.grpc.grid import GrpcGrid

NAMES = ("a", "b", "c")
STEP = {name: 0.01 * (1 + sum(name.encode()) % 7) for name in NAMES}


@pytest.fixture
def grid(tmp_path: Path) -> Iterator[GrpcGrid]:
    give_back = assume_identity()
    grid, exchange = make_grid(tmp_path, lambda _event: None)
    grid.peers = [Peer(grid, exchange, name, honest) for name in NAMES]  # type: ignore[attr-defined]
    yield grid
    give_back()


def first_arrays() -> ArrayRecord:
    return ArrayRecord({key: Array(tensor) for key, tensor in to_state_dict(small_adapter()).items()})


def config() -> ConfigRecord:
    return ConfigRecord({ADAPTER_CONFIG_KEY: json.dumps(CONFIG)})


def test_fedavg_runs_over_our_grid_and_averages_what_the_sites_have_trained(grid: GrpcGrid) -> None:
    result = FedAvg(min_available_nodes=3).start(
        grid, first_arrays(), num_rounds=2, timeout=60, train_config=config(), evaluate_config=config()
    )
    start = to_state_dict(small_adapter())
    moved = 2 * sum(STEP.values()) / 3
    for key, tensor in result.arrays.to_torch_state_dict().items():
        expected = start[key] + (moved if "lora_B" in key else 0)
        assert torch.allclose(tensor, expected, atol=1e-6), key
    assert result.train_metrics_clientapp[2]["loss"] == pytest.approx(0.5)
    assert result.evaluate_metrics_clientapp[2]["metric"] == pytest.approx(0.75)
    for peer in grid.peers:  # type: ignore[attr-defined]
        assert [request.train.round for request in peer.received if request.HasField("train")] == [1, 2]
        assert peer.acknowledged == [""] * 4


@pytest.mark.parametrize("strategy", [FedAdam, FedMedian])
def test_other_strategies_of_flower_run_too(grid: GrpcGrid, strategy: type[FedAvg]) -> None:
    result = strategy(fraction_evaluate=0.0).start(
        grid, first_arrays(), num_rounds=1, timeout=60, train_config=config()
    )
    assert result.train_metrics_clientapp[1]["loss"] == 0.5
    assert result.arrays.keys() == first_arrays().keys()


def test_a_site_that_fails_is_an_error_that_fedavg_goes_on_without(grid: GrpcGrid) -> None:
    grid.peers[1].behaviour = failing("out_of_memory")  # type: ignore[attr-defined]
    result = FedAvg(fraction_evaluate=0.0).start(grid, first_arrays(), num_rounds=1, timeout=60, train_config=config())
    moved = (STEP["a"] + STEP["c"]) / 2
    (key,) = [key for key in result.arrays if "lora_B" in key]
    found = result.arrays.to_torch_state_dict()[key] - to_state_dict(small_adapter())[key]
    assert torch.allclose(found, torch.full_like(found, moved), atol=1e-6)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"arrays": first_arrays(), "config": ConfigRecord()}, "expected adapter-config in the config"),
        ({"arrays": first_arrays()}, "1 ArrayRecords and 0 ConfigRecords"),
        ({"arrays": ArrayRecord({"x": Array(torch.ones(2))}), "config": config()}, "no LoRA layer"),
        ({"arrays": first_arrays(), "config": ConfigRecord({ADAPTER_CONFIG_KEY: "{"})}, "no adapter"),
        (
            {"arrays": first_arrays(), "config": ConfigRecord({**config(), "seed": "x"})},
            "seed is 'x'; expected a whole number",
        ),
    ],
)
def test_a_message_that_no_site_can_be_asked_is_refused_in_words(
    grid: GrpcGrid, content: dict[str, ArrayRecord | ConfigRecord], words: str
) -> None:
    message = grid.create_message(RecordDict(content), "train", next(iter(grid.get_node_ids())), "1")
    with pytest.raises(FedloraError, match=words):
        list(grid.push_messages([message]))
