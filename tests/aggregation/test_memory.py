"""What an aggregation may hold in memory: never the full update, and where it streams, never all clients."""

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedlora.adapters import Adapter, open_adapter, save_adapter
from fedlora.aggregation import (
    FedExLora,
    FedIT,
    FfaLora,
    FlexLora,
    Flora,
    LoraFair,
    LoraFairCosine,
    LoraFairTwoSided,
    RoLora,
    ServerOptimizer,
    aggregate,
)

STREAMING = [
    FedIT(),
    FfaLora(),
    RoLora(),
    LoraFair(),
    LoraFair(ridge=0),
    LoraFair(corrects="A"),
    LoraFairTwoSided(),
]
PAIR_BYTES = 4 * 2 * (240 + 200)


class Allocations(TorchDispatchMode):
    """Records the largest tensor that any operation returns, in values, and the most bytes alive at one time."""

    def __init__(self):
        super().__init__()
        self.num_values = 0
        self.peak_bytes = 0
        self._alive = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.device.type != "meta":
                self.num_values = max(self.num_values, leaf.numel())
                storage = leaf.untyped_storage()
                reference = StorageWeakRef(storage)
                self._alive[reference.cdata] = (reference, storage.nbytes())
        self._alive = {key: alive for key, alive in self._alive.items() if not alive[0].expired()}
        self.peak_bytes = max(self.peak_bytes, sum(num_bytes for _, num_bytes in self._alive.values()))
        return result


@pytest.mark.parametrize("measure", [False, True])
@pytest.mark.parametrize("ranks", [[2] * 3, [2, 1, 2]], ids=["one rank", "mixed ranks"])
def test_no_tensor_is_larger_than_the_stacked_updates(make_updates, any_method, ranks, measure):
    updates = make_updates(ranks=ranks, in_features=700, out_features=900)
    with Allocations() as allocations:
        aggregate(updates, method=any_method, measure=measure)
    # To measure, the means, the deviations, the movement and a change of the base weights are set side by side.
    rank = sum(ranks) if not measure else 2 * sum(ranks) + 2 * max(ranks)
    if not measure and any_method in STREAMING:
        rank = max(ranks)
    assert 0 < allocations.num_values <= rank * max(700, 900)


@pytest.mark.parametrize("kind", ["momentum", "adam"])
@pytest.mark.parametrize("acts_on", ["factors", "product"])
def test_a_server_optimiser_forms_no_product(make_updates, kind, acts_on):
    updates = make_updates(rank=2, in_features=700, out_features=900)
    start, optimizer = updates["client-00"], ServerOptimizer(kind, acts_on)
    state = {}
    with Allocations() as allocations:
        for _ in range(3):
            result = aggregate(
                updates, method=FedIT(), reference=start, state=state, server_optimizer=optimizer, measure=False
            )
            start, state = result.adapter, result.state
    # The round's start, the method's pair and twice their rank of earlier rounds are set side by side.
    assert 0 < allocations.num_values <= (8 if acts_on == "product" else 4) * 900


@pytest.fixture
def on_disk(tmp_path, make_updates):
    """Return a function that gives that many clients whose tensors are read whenever they are asked for."""

    def make(num_clients, ranks):
        updates = make_updates(
            ranks=[ranks[index % len(ranks)] for index in range(num_clients)],
            out_features=240,
            in_features=200,
            dtype=torch.float32,
        )
        for name, update in updates.items():
            layer = update.layers["q_proj"]
            config = {"peft_type": "LORA", "r": layer.rank, "lora_alpha": 2 * layer.rank}
            save_adapter(
                Adapter({"q_proj": layer}, {"head": torch.ones(3)}, config), tmp_path / str(num_clients) / name
            )
        return {name: open_adapter(tmp_path / str(num_clients) / name) for name in updates}

    return make


def peak_bytes(updates, method, **options):
    with Allocations() as allocations:
        aggregate(updates, method=method, **options)
    return allocations.peak_bytes


@pytest.mark.parametrize("ranks", [[2], [2, 1]], ids=["one rank", "mixed ranks"])
@pytest.mark.parametrize("method", STREAMING, ids=str)
def test_streaming_methods_hold_no_more_of_many_clients_than_of_few(on_disk, method, ranks):
    few, many = (peak_bytes(on_disk(num_clients, ranks), method, measure=False) for num_clients in (4, 40))
    assert many == few
    assert few < 8 * PAIR_BYTES


@pytest.mark.parametrize(
    "method",
    [FlexLora(power_iterations=1), FedExLora(residual_rank=4, power_iterations=1)],
    ids=lambda method: method.name,
)
@pytest.mark.parametrize("ranks", [[2], [2, 1]], ids=["one rank", "mixed ranks"])
def test_a_sketch_holds_no_more_of_many_clients_than_of_few(on_disk, method, ranks):
    # So many that their products have more rank together than the sketch.
    reference = aggregate(on_disk(3, [2]), method=FedExLora(residual_rank=4)).adapter
    few, many = (
        peak_bytes(on_disk(num_clients, ranks), method, reference=reference, measure=False) for num_clients in (20, 40)
    )
    assert many == few


@pytest.mark.parametrize("method", [FedIT(), LoraFairTwoSided()], ids=lambda method: method.name)
@pytest.mark.parametrize("measure", [False, True])
def test_what_is_kept_between_passes_takes_no_more_than_it_may(on_disk, method, measure):
    updates, kept_bytes = on_disk(40, [2, 1]), 10 * PAIR_BYTES
    without, with_some = (peak_bytes(updates, method, measure=measure, kept_bytes=number) for number in (0, kept_bytes))
    assert 0 < with_some - without <= kept_bytes


@pytest.mark.parametrize(
    ("method", "times"),
    [(Flora(), 2), (FedExLora(), 2), (LoraFairCosine(), 1), (FlexLora(), 3)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_other_methods_hold_all_clients_pairs_once_or_a_few_times(on_disk, method, times):
    few, many = (peak_bytes(on_disk(num_clients, [2]), method, measure=False) for num_clients in (4, 14))
    assert 0 < many - few <= times * 10 * PAIR_BYTES
