"""For ClientApps of your own beside fedlora.flower.LoraFairStrategy: what a round sends, put into a PEFT model.

    load_round(model, message.content["arrays"], trains=message.content["config"]["lora-trains"])
    optimizer = AdamW(parameter for parameter in model.parameters() if parameter.requires_grad)
    ...                                                                  # train
    arrays = ArrayRecord(get_peft_model_state_dict(model))               # the reply, as for FedAvg

It is needed for the methods that train one factor at a time or change the base weights, and does for the others what
PEFT's `set_peft_model_state_dict` does, with checks.
"""

import re
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor

from fedlora.adapters.peft_format import from_state_dict
from fedlora.adapters.settings import plain_config
from fedlora.common.errors import AdapterError
from fedlora.models.base_weights import BaseWeights

_TRAINS = ("A,B", "A", "B")
# On the model itself, because its base weights are untouched only before the first round: a copy of the model in
# memory takes this along.
_ATTRIBUTE = "_fedlora_base_weights"


@runtime_checkable
class HasTorchStateDict(Protocol):
    """Flower's ArrayRecord."""

    def to_torch_state_dict(self) -> Mapping[str, Tensor]: ...


@torch.no_grad()
def load_round(model: PeftModel, arrays: HasTorchStateDict | Mapping[str, Tensor], *, trains: object = "A,B") -> None:
    """Make `model` what the round starts from, or what is to be evaluated.

    A, B and what is trained whole are copied into it. A change of the base weights is added to these as they were
    before the first call, so that a client that sat out some rounds, or keeps its model from round to round, has the
    right ones. Then the factors in `trains` have gradients, and the other has none.

    Args:
        arrays: the message's ArrayRecord, or tensors by the same names.
        trains: what the train ConfigRecord has under "lora-trains".

    Raises:
        AdapterError: `arrays` are not of this model: keys or shapes differ.
        ModelError: there is a change of base weights that are quantised.
    """
    if trains not in _TRAINS:
        raise ValueError(f"trains is {trains!r}; expected one of {', '.join(map(repr, _TRAINS))}")
    tensors = arrays.to_torch_state_dict() if isinstance(arrays, HasTorchStateDict) else arrays
    name = model.active_adapter
    config = plain_config(model.peft_config[name].to_dict())
    changes = from_state_dict(tensors, config, origin="the round's arrays").base_change
    # Views of the live tensors, by the names that PEFT saves them with. Where it collects them by itself, it takes the
    # biases of `lora_bias` for damaged factors, and warns.
    own = get_peft_model_state_dict(
        model, state_dict=model.state_dict(), adapter_name=name, save_embedding_layers=False
    )
    pairs = {key: tensor for key, tensor in tensors.items() if not key.startswith("base_change.")}
    _check(pairs, own)
    _base_weights(model).change(changes)
    for key, tensor in own.items():
        tensor.copy_(pairs[key])
    factor = re.compile(rf"\.lora_(?:embedding_)?([AB])\.{re.escape(name)}(?:\.weight)?$")
    for path, parameter in model.named_parameters():
        if found := factor.search(path):
            parameter.requires_grad_(found[1] in str(trains).split(","))


def _base_weights(model: PeftModel) -> BaseWeights:
    found: BaseWeights | None = getattr(model, _ATTRIBUTE, None)
    if found is None:
        found = BaseWeights(model)
        setattr(model, _ATTRIBUTE, found)
    return found


def _check(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    if other := sorted(given.keys() ^ own.keys()):
        lacking = "the model has no" if other[0] in given else "the round's arrays have no"
        raise AdapterError(
            f"{lacking} {other[0]} ({len(other)} keys differ); "
            "the server's first arrays and every client's model need one LoraConfig"
        )
    for key, tensor in own.items():
        if tensor.shape != given[key].shape:
            raise AdapterError(f"{key} has shape {tuple(given[key].shape)}; the model has {tuple(tensor.shape)}")
