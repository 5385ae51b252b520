"""The optimiser of a round's steps: by how much each factor learns, and what steps keep of the federation's last move.

LoRA+ (arXiv 2402.12354): the B of a linear layer learns `b_learning_rate_ratio` times as fast as its A, whose product
with wide inputs moves by itself in proportion to their width. All else learns at the plain rate: heads and what is
trained whole, biases and DoRA's magnitudes; and both factors of an embedding, whose A is looked up and not multiplied
with anything wide.

Client momentum (FedCM, arXiv 2106.10874, carried over to adapters): with a = `client_momentum`, K the client's steps in
the round and G_t what it starts from, each step is

    (1 - a) * the optimiser's own step + a / K * (G_t - G_{t-1})

for every tensor that is trained in the round, A, B and whatever is beside them, as the client was sent them, so at its
own rank. Unlike in the paper the optimiser's step is whatever it is, weight decay included, and not the gradient alone;
and in the first round, which has no change before it, steps are the optimiser's own, unscaled: a mean over the past
begins with its first value. Schedule, clipping, FedProx's pull and kept moments act on the optimiser's step alone, so a
full round adds a * (G_t - G_{t-1}) to it whatever they are. A change of the base weights is no part of G.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fedlora.adapters.keys import factor_of, is_embedding_key
from fedlora.common.config import TrainSection


def local_optimizer(trained: Mapping[str, nn.Parameter], settings: TrainSection) -> torch.optim.Optimizer:
    """Return the optimiser over what is trained, by PEFT's names; `set_rate` sets its learning rates."""
    by_ratio: dict[float, list[nn.Parameter]] = {}
    for name, parameter in trained.items():
        is_faster = factor_of(name) == "B" and not is_embedding_key(name)
        by_ratio.setdefault(settings.b_learning_rate_ratio if is_faster else 1.0, []).append(parameter)
    groups = [{"params": parameters, "ratio": ratio} for ratio, parameters in by_ratio.items()]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            groups,
            lr=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
    return torch.optim.AdamW(groups, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Have the next step at `rate`, and in each group at its own ratio to that.

    The steps of both optimisers are proportional to it, decay included: a share of the rate is that share of the step.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate * group["ratio"]


@torch.no_grad()
def move_on(parameters: Sequence[nn.Parameter], changes: Sequence[Tensor], share: float) -> None:
    """Add a share of its change to each parameter; without `changes`, leave them as they are."""
    for parameter, change in zip(parameters, changes, strict=False):
        parameter.add_(change, alpha=share)
