"""Every method for three rounds of Flower on one resident model, against dense formulas in float64."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord
from lora_apps import ALPHA, PATHS, RANK, base_model, examples, lora_config, make_model, num_examples
from peft import get_peft_model_state_dict
from torch import Tensor, nn

from fedlora.aggregation import METHODS
from fedlora.flower import LoraFairStrategy
from fedlora.simulation.inprocess import InProcessGrid

NUM_NODES, NUM_ROUNDS = 4, 3
SCALING = ALPHA / RANK
EXACT = {"rtol": 1e-4, "atol": 1e-6}  # float32 results against float64 formulas


@dataclass(frozen=True)
class Round:
    """What the clients were sent, what they sent back, and what came of it, in float64."""

    trains: str
    before: Mapping[str, Tensor]
    start: Mapping[str, Tensor]
    updates: list[tuple[float, Mapping[str, Tensor]]]
    end: Mapping[str, Tensor]

    def mean(self, key: str) -> Tensor:
        return sum((p * update[key] for p, update in self.updates), torch.zeros(()))

    def ideal(self, path: str) -> Tensor:
        """Return the mean of what the updates add to the weight."""
        return sum((p * product(update, path) for p, update in self.updates), torch.zeros(()))


class Recording(LoraFairStrategy):
    """The strategy, and all that passes it."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: object, grid: object
    ) -> Iterable[Message]:
        self.before = float64(arrays)
        self.messages = list(super().configure_train(server_round, arrays, config, grid))  # type: ignore[arg-type]
        return self.messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        replies = list(replies)
        arrays, metrics = super().aggregate_train(server_round, replies)
        assert arrays is not None
        total = sum(num_examples(partition) for partition in range(NUM_NODES))
        updates = [
            (
                reply.content.metric_records["metrics"]["num-examples"] / total,  # type: ignore[operator]
                float64(reply.content.array_records["arrays"]),
            )
            for reply in replies
        ]
        sent = self.messages[0].content
        trains = str(sent.config_records["config"]["lora-trains"])
        start = float64(sent.array_records["arrays"])
        self.__dict__.setdefault("rounds", []).append(Round(trains, self.before, start, updates, float64(arrays)))
        return arrays, metrics


def float64(arrays: ArrayRecord) -> dict[str, Tensor]:
    return {key: tensor.double() for key, tensor in arrays.to_torch_state_dict().items()}


def key_of(path: str, factor: str) -> str:
    return f"base_model.model.{path}.lora_{factor}.weight"


def product(tensors: Mapping[str, Tensor], path: str) -> Tensor:
    return SCALING * tensors[key_of(path, "B")] @ tensors[key_of(path, "A")]


def change(tensors: Mapping[str, Tensor], path: str) -> Tensor:
    if f"base_change.{path}.A" not in tensors:
        return torch.zeros((), dtype=torch.float64)
    return tensors[f"base_change.{path}.B"] @ tensors[f"base_change.{path}.A"]


def dense_loss(tensors: Mapping[str, Tensor]) -> float:
    """Return the mean loss of all partitions' examples, of a plain model with all changes in its weights."""
    model = base_model().double()
    with torch.no_grad():
        for path in PATHS:
            model.get_submodule(path).weight += change(tensors, path) + product(tensors, path)
        for name in ("weight", "bias"):
            getattr(model.get_submodule("head"), name).copy_(tensors[f"base_model.model.head.{name}"])
        squares = []
        for partition in range(NUM_NODES):
            inputs, targets = examples(partition)
            squares.append((model(inputs.double()) - targets.double()).square())
    return float(torch.cat(squares).mean())


def check_fedit(now: Round, path: str) -> None:
    for factor in "AB":
        torch.testing.assert_close(now.end[key_of(path, factor)], now.mean(key_of(path, factor)), **EXACT)


def check_ffa_lora(now: Round, path: str) -> None:
    assert now.trains == "B"
    assert torch.equal(now.end[key_of(path, "A")], now.before[key_of(path, "A")])
    torch.testing.assert_close(product(now.end, path), now.ideal(path), **EXACT)


def check_rolora(now: Round, path: str) -> None:
    frozen = {"A": "B", "B": "A"}[now.trains]
    assert torch.equal(now.end[key_of(path, frozen)], now.before[key_of(path, frozen)])
    assert not torch.equal(now.end[key_of(path, now.trains)], now.before[key_of(path, now.trains)])
    torch.testing.assert_close(product(now.end, path), now.ideal(path), **EXACT)


def check_flora(now: Round, path: str) -> None:
    A = now.start[key_of(path, "A")]
    assert not now.start[key_of(path, "B")].any()
    assert 0.5 < float(A.abs().max()) * A.shape[1] ** 0.5 <= 1  # PEFT's range
    assert not torch.equal(A, now.before[key_of(path, "A")])
    assert not now.end[key_of(path, "B")].any()
    torch.testing.assert_close(change(now.end, path) - change(now.start, path), now.ideal(path), **EXACT)


def check_fedex_lora(now: Round, path: str) -> None:
    check_fedit(now, path)
    moved = change(now.end, path) - change(now.start, path) + product(now.end, path)
    torch.testing.assert_close(moved, now.ideal(path), **EXACT)


def check_flex_lora(now: Round, path: str) -> None:
    left, values, right = torch.linalg.svd(now.ideal(path), full_matrices=False)
    best = left[:, :RANK] * values[:RANK] @ right[:RANK]
    torch.testing.assert_close(product(now.end, path), best, **EXACT)


def check_lora_fair(now: Round, path: str) -> None:
    A, B = now.mean(key_of(path, "A")), now.mean(key_of(path, "B"))
    gram = A @ A.T
    ridge = 0.03 * gram.trace() / RANK * torch.eye(RANK, dtype=A.dtype)
    dB = torch.linalg.solve(gram + ridge, ((now.ideal(path) / SCALING - B @ A) @ A.T).T).T
    torch.testing.assert_close(now.end[key_of(path, "A")], A, **EXACT)
    torch.testing.assert_close(now.end[key_of(path, "B")], B + dB, **EXACT)


def check_lora_fair_cosine(now: Round, path: str) -> None:
    A, B = now.mean(key_of(path, "A")), now.mean(key_of(path, "B"))
    torch.testing.assert_close(now.end[key_of(path, "A")], A, **EXACT)
    ideal = now.ideal(path).flatten()
    found, averaged = product(now.end, path).flatten(), (B @ A).flatten()
    cosine = nn.functional.cosine_similarity
    assert cosine(found, ideal, dim=0) >= cosine(averaged, ideal, dim=0) - 1e-9


def check_lora_fair_two_sided(now: Round, path: str) -> None:
    A, B = now.mean(key_of(path, "A")), now.mean(key_of(path, "B"))
    before, after = SCALING * B @ A - now.ideal(path), product(now.end, path) - now.ideal(path)
    floor = torch.linalg.svdvals(now.ideal(path))[RANK:].norm()
    assert floor * (1 - 1e-5) <= after.norm() < before.norm()


CHECKS = {
    "fedit": check_fedit,
    "ffa_lora": check_ffa_lora,
    "flora": check_flora,
    "flex_lora": check_flex_lora,
    "fedex_lora": check_fedex_lora,
    "rolora": check_rolora,
    "lora_fair": check_lora_fair,
    "lora_fair_cosine": check_lora_fair_cosine,
    "lora_fair_two_sided": check_lora_fair_two_sided,
}


@pytest.mark.parametrize("name", METHODS)
def test_three_rounds_of_every_method_are_what_the_dense_formulas_say_and_improve_the_model(
    grid: InProcessGrid, name: str
) -> None:
    strategy = Recording(lora_config=lora_config(), method=METHODS[name](), min_available_nodes=4, min_train_nodes=4)
    first = ArrayRecord(get_peft_model_state_dict(make_model()))
    result = strategy.start(grid, first, num_rounds=NUM_ROUNDS, timeout=60)
    losses = [dense_loss(float64(first))]
    rounds: list[Round] = strategy.rounds
    assert len(rounds) == NUM_ROUNDS
    for number, now in enumerate(rounds, 1):
        assert strategy.reports[number].refused == ()
        for path in PATHS:
            CHECKS[name](now, path)
        for part in ("weight", "bias"):
            head = f"base_model.model.head.{part}"
            torch.testing.assert_close(now.end[head], now.mean(head), **EXACT)
        losses.append(dense_loss(now.end))
        # The clients, which keep one model for all rounds, judge the same weights.
        assert result.evaluate_metrics_clientapp[number]["loss"] == pytest.approx(losses[-1], rel=1e-4)
    assert all(after < before for before, after in pairwise(losses)), losses


def test_what_flora_draws_depends_on_the_seed_and_the_round_alone(grid: InProcessGrid) -> None:
    def starts(seed: int) -> list[Mapping[str, Tensor]]:
        settings = {"min_available_nodes": 4, "min_train_nodes": 4, "fraction_evaluate": 0.0}
        strategy = Recording(lora_config=lora_config(), method=METHODS["flora"](), seed=seed, **settings)  # type: ignore[arg-type]
        strategy.start(grid, ArrayRecord(get_peft_model_state_dict(make_model())), num_rounds=2, timeout=60)
        return [now.start for now in strategy.rounds]

    key = key_of("first", "A")
    one, again, other = starts(0), starts(0), starts(1)
    assert torch.equal(one[0][key], again[0][key])
    assert torch.equal(one[1][key], again[1][key])
    assert not torch.equal(one[0][key], one[1][key])
    assert not torch.equal(one[0][key], other[0][key])
