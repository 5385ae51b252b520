"""Random updates, every method, and the dense formulas that the factored ones must equal."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import pytest
import torch
from torch import Tensor

from fedlora.adapters import Adapter, LoraLayer
from fedlora.aggregation import METHODS, Aggregate, LoraFair, LoraFairCosine, Method

LAYER = "q_proj"

ALL_METHODS: dict[str, Method] = {
    **{name: make() for name, make in METHODS.items()},
    "lora_fair, ridge 0": LoraFair(ridge=0),
    "lora_fair, A": LoraFair(corrects="A"),
    "lora_fair_cosine, scaled": LoraFairCosine(repairs_scale=True),
}


@pytest.fixture(params=list(ALL_METHODS.values()), ids=list(ALL_METHODS))
def any_method(request: pytest.FixtureRequest) -> Method:
    """Every registered method with its defaults, and those whose settings take another way through the code."""
    method: Method = request.param
    return method


class MakeUpdates(Protocol):
    def __call__(
        self,
        seed: int = 0,
        num_clients: int = 4,
        *,
        out_features: int = 12,
        in_features: int = 9,
        rank: int = 3,
        ranks: Sequence[int] | None = None,
        spread: float = 1.0,
        dtype: torch.dtype = torch.float64,
    ) -> dict[str, Adapter]:
        """Return clients at a relative distance of `spread` from one common pair, with one layer, `q_proj`.

        With `ranks`, one for each client, each has that many of the first rows of the pair.
        """


@pytest.fixture(scope="session")
def make_updates() -> MakeUpdates:
    def make(
        seed: int = 0,
        num_clients: int = 4,
        *,
        out_features: int = 12,
        in_features: int = 9,
        rank: int = 3,
        ranks: Sequence[int] | None = None,
        spread: float = 1.0,
        dtype: torch.dtype = torch.float64,
    ) -> dict[str, Adapter]:
        generator = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=torch.float64, generator=generator)

        ranks = ranks or [rank] * num_clients
        A, B = random(max(ranks), in_features), random(out_features, max(ranks))
        updates = {}
        for client, rank in enumerate(ranks):
            pair = (
                (A[:rank] + spread * random(rank, in_features)).to(dtype),
                (B[:, :rank] + spread * random(out_features, rank)).to(dtype),
            )
            updates[f"client-{client:02}"] = Adapter({LAYER: LoraLayer(*pair, scaling=2.0)})
        return updates

    return make


@pytest.fixture(scope="session")
def dense_mean() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Return M = sum p_i B_i A_i, mean_A and mean_B in float64, from the formulas.

    Where ranks differ, B_i is padded with zeros, and a row of mean_A is the mean over the clients that have it.
    """

    def mean(updates: Mapping[str, Adapter], p: Mapping[str, float] | None = None) -> tuple[Tensor, Tensor, Tensor]:
        weights = p or dict.fromkeys(updates, 1 / len(updates))
        largest = max((adapter.layers[LAYER] for adapter in updates.values()), key=lambda layer: layer.rank)
        mean_A, mean_B = torch.zeros_like(largest.A, dtype=torch.float64), torch.zeros_like(largest.B).double()
        M, mass = mean_B @ mean_A, torch.zeros(largest.rank, 1, dtype=torch.float64)
        for client, adapter in updates.items():
            A, B, rank = adapter.layers[LAYER].A.double(), adapter.layers[LAYER].B.double(), adapter.layers[LAYER].rank
            M += weights[client] * B @ A
            mean_A[:rank] += weights[client] * A
            mean_B[:, :rank] += weights[client] * B
            mass[:rank] += weights[client]
        return M, mean_A / mass, mean_B

    return mean


@pytest.fixture(scope="session")
def uneven_p() -> Callable[[Mapping[str, Adapter]], dict[str, float]]:
    """Return weights with sum 1, in proportion to 1, 2, 3 and so on."""

    def weights(updates: Mapping[str, Adapter]) -> dict[str, float]:
        total = len(updates) * (len(updates) + 1) / 2
        return {client: (index + 1) / total for index, client in enumerate(updates)}

    return weights


@pytest.fixture(scope="session")
def whole_change() -> Callable[[Aggregate | Adapter], Tensor]:
    """Return how a result changes the layer's weight, in float64: by its pair, and by its change of the base."""

    def change(result: Aggregate | Adapter) -> Tensor:
        adapter = result.adapter if isinstance(result, Aggregate) else result
        pairs = [pairs[LAYER] for pairs in (adapter.layers, adapter.base_change) if LAYER in pairs]
        return sum((pair.scaling * pair.B.double() @ pair.A.double() for pair in pairs), torch.zeros(()))

    return change
