"""Client momentum and LoRA+: each step against one written by hand, and what leaves training as it is."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedlora.adapters import Adapter, pack
from fedlora.adapters.keys import to_state_dict
from fedlora.common.config import RunConfig, TrainSection
from fedlora.common.errors import AdapterError
from fedlora.models.base_model import load_base_model
from fedlora.training.data import load_federated_data
from fedlora.training.local_optimizer import local_optimizer, set_rate
from fedlora.training.peft_bridge import add_lora
from fedlora.training.schedule import learning_rate_factor
from fedlora.training.trainer import LocalTrainer

MakeRun = Callable[..., RunConfig]
CPU = torch.device("cpu")
STEPS = 4
# All examples in every step, so that their order does not matter.
WHOLE = {"steps": STEPS, "batch_size": 1000, "max_grad_norm": 0.5}


class Bench:
    """A trainer over a client's examples, and two global adapters of consecutive rounds."""

    def __init__(self, config: RunConfig) -> None:
        torch.manual_seed(0)
        data = load_federated_data(config)
        base = load_base_model(config, data.labels)
        self.resident = add_lora(base.module, config.lora, heads=base.heads, name="tiny")
        self.former = self.resident.read()
        self.adapter = moved(self.former)
        self.settings = config.train
        self.prepared = base.task.prepare(data.clients["chalk"].training)
        self.batch = base.task.collate(self.prepared, np.arange(len(self.prepared)))
        self.trainer: LocalTrainer[Any] = LocalTrainer(self.resident, base.task, config.train, device=CPU)

    def trained(self, *, has_former: bool = True, trains: str = "AB") -> Adapter:
        """Return the adapter after a round, which goes on with the change since the former one."""
        self.resident.load(self.adapter, trains=trains)
        changes = self.resident.change_since(self.former) if has_former else ()
        self.trainer.train(self.prepared, progress=(0.4, 0.8), batch_seed=1, dropout_seed=1, changes=changes)
        return self.resident.read()

    def gradients(self, parameters: list[nn.Parameter], starts: list[Tensor]) -> None:
        """Leave the clipped gradients of the loss over all examples, pulled to the starts, in the parameters."""
        for parameter in parameters:
            parameter.grad = None
        loss = functional.cross_entropy(self.resident.peft_model(**self.batch.inputs), self.batch.targets)
        loss.backward()  # type: ignore[no-untyped-call]
        for parameter, start in zip(parameters, starts, strict=True):
            assert parameter.grad is not None
            parameter.grad += self.settings.proximal_mu * (parameter.detach() - start)
        torch.nn.utils.clip_grad_norm_(parameters, self.settings.max_grad_norm)

    def rates(self) -> Iterator[float]:
        """Yield the learning rate of each step."""
        for step in range(STEPS):
            progress = 0.4 + 0.4 * (step + 0.5) / STEPS
            factor = learning_rate_factor(progress, schedule=self.settings.schedule, warmup=self.settings.warmup)
            yield self.settings.learning_rate * factor


@pytest.fixture
def bench(vision_run: MakeRun) -> Callable[..., Bench]:
    """Return a function that gives a bench with other settings of [train], and other sections."""
    return lambda train, **sections: Bench(vision_run(train={**WHOLE, **train}, **sections))


def moved(adapter: Adapter) -> Adapter:
    """Return an adapter some way from another, in each of its tensors."""
    draw = torch.Generator().manual_seed(7)

    def near(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor + 0.05 * torch.randn(tensor.shape, generator=draw)

    layers: dict[str, Any] = {
        path: replace(layer, **{part: near(getattr(layer, part)) for part in ("A", "B", "magnitude")})
        for path, layer in adapter.layers.items()
    }
    return replace(adapter, layers=layers, dense={path: near(tensor) for path, tensor in adapter.dense.items()})  # type: ignore[misc]


def distance(one: Adapter, other: Adapter) -> float:
    """Return the largest difference of any two numbers."""
    left, right = to_state_dict(one), to_state_dict(other)
    assert left.keys() == right.keys()
    return max(float((tensor - right[name]).abs().max()) for name, tensor in left.items())


@pytest.mark.parametrize(
    ("train", "lora"),
    [
        ({"optimizer": "sgd", "learning_rate": 0.1, "schedule": "linear"}, {}),
        ({"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.1, "proximal_mu": 2.0}, {}),
        ({"weight_decay": 0.1, "schedule": "cosine", "warmup": 0.5}, {}),
        ({}, {"use_dora": True}),
    ],
    ids=str,
)
def test_a_step_goes_on_with_the_last_change_and_is_the_optimisers_own_for_the_rest(
    bench: Callable[..., Bench], train: dict[str, Any], lora: dict[str, Any]
) -> None:
    ours = bench({**train, "client_momentum": 0.3}, lora=lora)
    found = ours.trained()

    ours.resident.load(ours.adapter)
    settings, named = ours.settings, ours.resident.trained()
    parameters, before, after = list(named.values()), to_state_dict(ours.former), to_state_dict(ours.adapter)
    starts = [parameter.detach().clone() for parameter in parameters]
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(parameters, weight_decay=settings.weight_decay)
    if settings.optimizer == "sgd":
        optimizer = torch.optim.SGD(parameters, momentum=settings.momentum, weight_decay=settings.weight_decay)
    ours.resident.peft_model.train()
    for rate in ours.rates():
        optimizer.param_groups[0]["lr"] = rate
        ours.gradients(parameters, starts)
        at = {name: parameter.detach().clone() for name, parameter in named.items()}
        optimizer.step()
        with torch.no_grad():
            for name, parameter in named.items():
                step = parameter - at[name]
                parameter.copy_(at[name] + 0.7 * step + 0.3 / STEPS * (after[name] - before[name]))
    by_hand = ours.resident.read()

    assert distance(found, by_hand) < 2e-6
    assert distance(found, ours.trained(has_former=False)) > 1e-3


def test_without_a_round_before_and_without_momentum_steps_are_the_same_bits(bench: Callable[..., Bench]) -> None:
    plain = pack(bench({}).trained(has_former=False))
    assert pack(bench({"client_momentum": 0.5}).trained(has_former=False)) == plain
    assert pack(bench({}).trained(has_former=True)) == plain
    assert pack(bench({"b_learning_rate_ratio": 1.0}).trained()) == plain


def test_a_factor_that_is_not_trained_is_not_moved_on(bench: Callable[..., Bench]) -> None:
    ours = bench({"client_momentum": 0.5})
    trained = ours.trained(trains="B")
    assert all(torch.equal(layer.A, ours.adapter.layers[path].A) for path, layer in trained.layers.items())
    plain = ours.trained(has_former=False, trains="B")
    assert all(not torch.equal(layer.B, plain.layers[path].B) for path, layer in trained.layers.items())


def test_a_client_of_a_smaller_rank_goes_on_within_it(bench: Callable[..., Bench]) -> None:
    ours = bench({"client_momentum": 0.5})

    def cut(adapter: Adapter) -> Adapter:
        layers = {
            path: replace(layer, A=layer.A[:2].contiguous(), B=layer.B[:, :2].contiguous())
            for path, layer in adapter.layers.items()
        }
        return replace(adapter, layers=layers, config={**adapter.config, "r": 2, "lora_alpha": 8})

    ours.former, ours.adapter = cut(ours.former), cut(ours.adapter)
    trained = ours.trained()
    assert {layer.rank for layer in trained.layers.values()} == {2}
    assert distance(trained, ours.trained(has_former=False)) > 1e-3
    assert all(not parameter[2:].any() for name, parameter in ours.resident.trained().items() if "lora_A" in name)


def test_a_former_adapter_of_another_shape_is_refused_by_name(bench: Callable[..., Bench]) -> None:
    ours = bench({"client_momentum": 0.5})
    ours.resident.load(ours.adapter)
    path, layer = next(iter(ours.former.layers.items()))
    other = replace(layer, A=layer.A[:, :-1])
    with pytest.raises(AdapterError, match=r"the former adapter has .*lora_A.weight \(4, 31\); expected \(4, 32\)"):
        ours.resident.change_since(replace(ours.former, layers={**ours.former.layers, path: other}))
    with pytest.raises(AdapterError, match=r"the former adapter has no .*; expected"):
        ours.resident.change_since(replace(ours.former, dense={}))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_b_learns_so_many_times_as_fast_and_all_else_at_the_plain_rate(
    bench: Callable[..., Bench], optimizer: str
) -> None:
    ours = bench({"optimizer": optimizer, "b_learning_rate_ratio": 4.0, "momentum": 0.0}, lora={"use_dora": True})
    found = ours.trained(has_former=False)
    ours.resident.load(ours.adapter)
    ours.resident.peft_model.train()
    named = ours.resident.trained()
    separate: dict[str, torch.optim.Optimizer] = {
        name: torch.optim.SGD([parameter]) if optimizer == "sgd" else torch.optim.AdamW([parameter], weight_decay=0.0)
        for name, parameter in named.items()
    }
    assert {name.partition("lora_")[2] for name in named} == {"", "A.weight", "B.weight", "magnitude_vector"}
    starts = [parameter.detach().clone() for parameter in named.values()]
    for rate in ours.rates():
        ours.gradients(list(named.values()), starts)
        for name, one in separate.items():
            one.param_groups[0]["lr"] = rate * (4.0 if name.endswith("lora_B.weight") else 1.0)
            one.step()
    assert distance(found, ours.resident.read()) < 2e-6


def test_the_factors_of_an_embedding_learn_alike() -> None:
    names = ("layer.lora_A.weight", "layer.lora_B.weight", "words.lora_embedding_A", "words.lora_embedding_B", "head")
    trained = {name: nn.Parameter(torch.ones(1)) for name in names}
    optimizer = local_optimizer(trained, TrainSection(b_learning_rate_ratio=8.0))
    set_rate(optimizer, 0.5)
    rates = {id(one): group["lr"] for group in optimizer.param_groups for one in group["params"]}
    assert [rates[id(trained[name])] for name in names] == [0.5, 4.0, 0.5, 0.5, 0.5]
