"""Shared moments: the clients' optimisers go on from the mean of their moments, as if they were one optimiser.

After a round each moment of a tensor becomes the mean over the clients of it, with the weights of their updates; where
ranks differ, row by row of A and column by column of B over those who have it. What none of them has, such as the
moments of the factor that a round did not train, stays. The count of steps, by which Adam corrects its moments' bias,
is averaged in the same way: that is exact where all have taken as many, and else to first order, as 1 - b^t is about
t (1 - b).

Sent are m, v and t (3 times the bytes of an update), or m, t and the mean of v over each tensor (twice the bytes).
FedAdamW (arXiv 2510.27486) sends blocks' means of v alone. Means keep m^2 <= 53 v, so that what admission asks of a
client's moments holds of those that it is sent.

The mean is of the clients' own optimisers: neither the method's correction nor a server's optimiser is part of it.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from fedlora.adapters.moments import Form, Moments, filled_by, moment_key, owner_and_name
from fedlora.methods import MethodState

# A path of a base model has no slash: what is kept here never stands where a method's own state does.
_PREFIX = "shared_moments/"


@torch.no_grad()
def mean_moments(
    clients: Mapping[str, Moments], *, p: Mapping[str, float], former: Moments, like: Mapping[str, Tensor], form: Form
) -> dict[str, Tensor]:
    """Return the moments that the clients of the next round go on with, in float32.

    The clients are read one by one, moment by moment, in the order of `p`.

    Args:
        clients: the moments by client name, in float32 or bfloat16.
        p: the weights with which updates have counted; other clients do not count here either.
        former: what the round before has left.
        like: by key, the global adapter's tensors, of which only the shapes are asked.
        form: what is shared.
    """
    found: dict[str, Tensor] = {}
    for key, tensor in like.items():
        for name, is_whole in form.items():
            known, shape = former.get(moment_key(key, name)), tensor.shape if is_whole else torch.Size([])
            total, weight = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
            for share, moment in _of_clients(clients, p, moment_key(key, name)):
                place = filled_by(moment.shape)
                total[place] += share * moment.double()
                weight[place] += share
            if weight.any():
                rest = torch.zeros(shape) if known is None else known
                found[moment_key(key, name)] = torch.where(weight > 0, total / weight, rest.double()).float()
            elif known is not None:
                found[moment_key(key, name)] = known
    return found


def moments_in(state: MethodState) -> dict[str, Tensor]:
    """Return the shared moments among what is kept from round to round."""
    return {
        moment_key(path.removeprefix(_PREFIX), name): tensor
        for path, tensors in state.items()
        if path.startswith(_PREFIX)
        for name, tensor in tensors.items()
    }


def with_moments(state: MethodState, moments: Moments) -> MethodState:
    """Return what is kept from round to round with these shared moments, in place of those that are there."""
    kept = {path: tensors for path, tensors in state.items() if not path.startswith(_PREFIX)}
    by_key: dict[str, dict[str, Tensor]] = {}
    for full, tensor in moments.items():
        key, name = owner_and_name(full)
        by_key.setdefault(_PREFIX + key, {})[name] = tensor
    return kept | by_key


def _of_clients(clients: Mapping[str, Moments], p: Mapping[str, float], key: str) -> Iterator[tuple[float, Tensor]]:
    for client, share in p.items():
        if key in clients.get(client, {}):
            yield share, clients[client][key]
