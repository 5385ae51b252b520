"""A round whose sums over the clients are noised: the global adapter tells of one client no more than epsilon says.

McMahan, Ramage, Talwar, Zhang: "Learning Differentially Private Recurrent Language Models", ICLR 2018, arXiv
1710.06963, with a fixed denominator, over the phases of a method: each is a sum over the clients, of which each term is
clipped to a norm of its own, and each sum is a release. The sums are divided by the number of clients that were asked,
whatever came of them: how many updates counted would tell of one.

Neighbours, which epsilon bounds the difference of, are two runs that ask the same clients, in one of which nothing that
one client sends counts, in any round. One term more or less moves a sum by the clip's norm, which the noise multiplier
is over. Where neighbours are two runs in which the client has other examples it is twice as much, and epsilon that of
half the noise multiplier.

A factor that nobody trains, and a counter, stay as they are, without noise.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch

from fedlora.adapters import Adapter, LoraLayer
from fedlora.methods import Method
from fedlora.methods.method import Factor
from fedlora.privacy.noise import with_noise
from fedlora.secure_sums.adapter_sums import AdapterSums, num_sums, trained_paths

# A norm that clipping has left may be a rounding above the clip; this is more than all roundings.
_ROOM = 1 - 1e-6


@dataclass(frozen=True, eq=False)
class PrivateRound:
    """What the round's updates became.

    Attributes:
        adapter: the global one, which may be released.
        num_clipped: by sum, of how many clients the term was longer than its clip. No noise protects it.
    """

    adapter: Adapter
    num_clipped: tuple[int, ...]


def sums_of(method: Method) -> int:
    """Return how many sums, and so releases, a round of the method has."""
    pair = LoraLayer(A=torch.eye(2, 3), B=torch.eye(3, 2), scaling=1.0)
    return num_sums(method, Adapter({"layer": pair}))


def private_round(
    updates: Mapping[str, Adapter],
    *,
    start: Adapter,
    method: Method,
    trains: Collection[Factor],
    num_asked: int,
    clips: Sequence[float],
    noise_multiplier: float,
) -> PrivateRound:
    """Return the next global adapter, from the accepted updates by client name.

    Args:
        start: the adapter that the round started from, which may be known.
        trains: the factors that the clients have trained.
        num_asked: the clients that were asked for an update.
        clips: by sum, the norm to which each client's term is cut.
        noise_multiplier: the noise's standard deviation over the clip.

    Raises:
        ValueError: the method takes another number of sums than there are clips.
    """
    sums, num_clipped = AdapterSums(method, start, only=trained_paths(start, trains)), []
    for place, clip in enumerate(clips):
        if sums.is_over:
            raise ValueError(f"{len(clips)} clips; expected {place}, as many as {method.name} takes sums")
        # The last number of the first sum is of the weights, which are known.
        size = sum(sums.sizes()) - (place == 0)
        total, longer = torch.zeros(size, dtype=torch.float64), 0
        for _, update in sorted(updates.items()):
            term = sums.term(update)[:size].double()
            norm = float(torch.linalg.vector_norm(term))
            # What is not finite adds nothing: it has no norm to be cut to.
            if 0 < norm < math.inf:
                total += term * min(1.0, _ROOM * clip / norm)
            longer += not norm <= clip
        noisy = with_noise(total, standard_deviation=noise_multiplier * clip)
        num_clipped.append(longer)
        sums.take(torch.cat([noisy, torch.full((1,), float(num_asked))]) if place == 0 else noisy)
    if not sums.is_over:
        raise ValueError(f"{len(clips)} clips; expected more, as many as {method.name} takes sums")
    return PrivateRound(sums.result(), tuple(num_clipped))
