"""Random updates, and the dense formulas that the factored ones must equal."""

from collections.abc import Callable, Mapping
from typing import Protocol

import pytest
import torch
from torch import Tensor

from fedlora.adapters import Adapter, LoraLayer

LAYER = "q_proj"


class MakeUpdates(Protocol):
    def __call__(
        self,
        seed: int = 0,
        num_clients: int = 4,
        *,
        out_features: int = 12,
        in_features: int = 9,
        rank: int = 3,
        spread: float = 1.0,
        dtype: torch.dtype = torch.float64,
    ) -> dict[str, Adapter]:
        """Return clients at a relative distance of `spread` from one common pair, with one layer, `q_proj`."""


@pytest.fixture(scope="session")
def make_updates() -> MakeUpdates:
    def make(
        seed: int = 0,
        num_clients: int = 4,
        *,
        out_features: int = 12,
        in_features: int = 9,
        rank: int = 3,
        spread: float = 1.0,
        dtype: torch.dtype = torch.float64,
    ) -> dict[str, Adapter]:
        generator = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=torch.float64, generator=generator)

        A, B = random(rank, in_features), random(out_features, rank)
        updates = {}
        for client in range(num_clients):
            pair = (
                (A + spread * random(rank, in_features)).to(dtype),
                (B + spread * random(out_features, rank)).to(dtype),
            )
            updates[f"client-{client:02}"] = Adapter({LAYER: LoraLayer(*pair, scaling=2.0)})
        return updates

    return make


@pytest.fixture(scope="session")
def dense_mean() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Return M = sum p_i B_i A_i, mean_A and mean_B in float64, from the formulas."""

    def mean(updates: Mapping[str, Adapter], p: Mapping[str, float] | None = None) -> tuple[Tensor, Tensor, Tensor]:
        weights = p or dict.fromkeys(updates, 1 / len(updates))
        pairs = [
            (weights[client], adapter.layers[LAYER].A.double(), adapter.layers[LAYER].B.double())
            for client, adapter in updates.items()
        ]
        M = sum((weight * B @ A for weight, A, B in pairs), torch.zeros(()))
        mean_A = sum((weight * A for weight, A, _ in pairs), torch.zeros(()))
        mean_B = sum((weight * B for weight, _, B in pairs), torch.zeros(()))
        return M, mean_A, mean_B

    return mean


@pytest.fixture(scope="session")
def uneven_p() -> Callable[[Mapping[str, Adapter]], dict[str, float]]:
    """Return weights with sum 1, in proportion to 1, 2, 3 and so on."""

    def weights(updates: Mapping[str, Adapter]) -> dict[str, float]:
        total = len(updates) * (len(updates) + 1) / 2
        return {client: (index + 1) / total for index, client in enumerate(updates)}

    return weights
