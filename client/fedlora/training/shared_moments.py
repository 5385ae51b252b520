"""The federation's moments for a client's optimiser, and the client's own for the federation.

In a resident model a pair of a smaller rank fills the first rows of A and columns of B; what is shared is that part.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedlora.adapters.fit import Misfit
from fedlora.adapters.moments import (
    STEPS,
    Form,
    Moments,
    examine_moments,
    filled_by,
    moment_key,
    owner_and_name,
    unpack_moments,
)
from fedlora.common.errors import AdapterError


@dataclass(frozen=True, eq=False)
class SharedMoments:
    """What a client and the federation share of an optimiser in one round.

    Attributes:
        trained: by key, what the round trains, in the client's own rank; only shapes are asked.
        form: what is shared of each.
        given: what the federation sent, of some of these or of all; nothing in the first round.
    """

    trained: Mapping[str, Tensor]
    form: Form
    given: Moments

    def expanded(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """Return what was given as an optimiser over the model's parameters has it, in float32.

        One number becomes that of each element, and what is beyond a smaller rank is zero.
        """
        found: dict[str, Tensor] = {}
        for full, moment in self.given.items():
            key, name = owner_and_name(full)
            if name == STEPS:
                found[full] = moment
            elif not moment.dim():
                found[full] = torch.full(parameters[key].shape, float(moment))
            else:
                found[full] = torch.zeros(parameters[key].shape)
                found[full][filled_by(moment.shape)] = moment.float()
        return found

    def condensed(self, moments: Moments) -> dict[str, Tensor]:
        """Return what the client shares of its optimiser's moments after the round, in float32.

        Of a tensor that got no gradient these are what was given, and zero where nothing was: a mean over clients
        counts those without a gradient, as that over all of their examples would.
        """
        found: dict[str, Tensor] = {}
        for key, tensor in self.trained.items():
            place = filled_by(tensor.shape)
            for name, is_whole in self.form.items():
                full = moment_key(key, name)
                moment = moments.get(full)
                if moment is None:
                    found[full] = self.given.get(full, torch.zeros(tensor.shape if is_whole else ())).float()
                elif is_whole:
                    found[full] = moment[place].float().contiguous()
                else:
                    found[full] = moment[place].double().mean().float() if moment.dim() else moment.float()
        return found


def shared_moments(packed: bytes, trained: Mapping[str, Tensor], form: Form) -> SharedMoments:
    """Return what is shared in a round whose request brought these moments, packed; no bytes in the first round.

    Raises:
        AdapterError: they are no moments of what is trained.
    """
    given = unpack_moments(packed) if packed else {}
    found = examine_moments(given, trained, form, most_steps=math.inf)
    if isinstance(found, Misfit):
        raise AdapterError(f"the federation's moments do not fit: {found}")
    return SharedMoments(trained, form, given)
