"""The gate that every update passes before it counts. Pure: a receipt in, an update or the reason against it out."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch import Tensor

from fedlora.adapters import Adapter, unpack
from fedlora.adapters.keys import named_tensors, to_state_dict
from fedlora.adapters.meaning import difference_in_meaning
from fedlora.adapters.packed import open_packed, packed_config
from fedlora.adapters.settings import SCALING_KEYS
from fedlora.aggregation.products import product_moves
from fedlora.common.errors import AdapterError
from fedlora.common.messages import INTERNAL, LOSS_NOT_FINITE, OK, OUT_OF_MEMORY, TrainReceipt, TrainRequest
from fedlora.common.packed_file import Packed, PackedFile

MAX_NUM_EXAMPLES = 10**9
MAX_NUM_TOKENS = 10**13
# No trained weight is near it, and the products of such values do not overflow float32.
MAX_VALUE = 1e6
_MIN_COHORT_TO_COMPARE = 3
_MAX_CHARACTERS = 300
_FAILURES = (LOSS_NOT_FINITE, OUT_OF_MEMORY, INTERNAL)


@dataclass(frozen=True)
class Refusal:
    """Why an update does not count: a short code, and what was found against what was expected."""

    code: str
    found: str = ""

    def __str__(self) -> str:
        # A peer may have chosen what was found, such as a layer's name.
        return f"{self.code}: {self.found[:_MAX_CHARACTERS]}" if self.found else self.code


def admit(
    receipt: TrainReceipt, *, request: TrainRequest, client: str, reference: Adapter, weighs_tokens: bool = False
) -> Adapter | Refusal:
    """Return the update in `receipt`, or why it is refused.

    Args:
        request: what was asked.
        client: who was asked.
        reference: the adapter that the client started from; an update has its layers, shapes and configuration.
        weighs_tokens: whether it counts by the tokens it trained on, so that there must be some.
    """
    asked = (request.run, request.round, request.attempt, client)
    answered = (receipt.run, receipt.round, receipt.attempt, receipt.client)
    if asked != answered:
        return Refusal("wrong_request", f"an answer for {answered}; asked was {asked}")
    if receipt.status != OK:
        return Refusal(receipt.status if receipt.status in _FAILURES else INTERNAL)
    if not 1 <= receipt.num_examples <= MAX_NUM_EXAMPLES:
        return Refusal("num_examples", f"{receipt.num_examples}; expected 1 to {MAX_NUM_EXAMPLES}")
    if not int(weighs_tokens) <= receipt.num_tokens <= MAX_NUM_TOKENS:
        return Refusal("num_tokens", f"{receipt.num_tokens}; expected {int(weighs_tokens)} to {MAX_NUM_TOKENS}")
    if not math.isfinite(receipt.loss) and "loss" not in receipt.withheld:
        return Refusal(LOSS_NOT_FINITE, f"a training loss of {receipt.loss}")
    try:
        # First of all: a configuration may hold regular expressions, and nobody's but our own are to be run.
        config = _config(receipt.adapter)
        settings, expected = _scaling_settings(config), _scaling_settings(reference.config)
        if settings != expected:
            return Refusal("configuration", f"{settings}; expected {expected}")
        if difference := difference_in_meaning(config, reference.config):
            return Refusal("configuration", str(difference))
        update = _opened(receipt.adapter, without=request.frozen_factor, reference=reference)
    except AdapterError as error:
        return Refusal("unreadable", str(error))
    except RecursionError:
        return Refusal("unreadable", "a configuration of lists within lists, too deep to be read")
    return unfit(update, reference) or update


def outliers(
    updates: Mapping[str, Adapter], *, references: Mapping[str, Adapter], norm_limit: float, by_factors: bool = True
) -> dict[str, Refusal]:
    """Return, by client, the updates that moved more than `norm_limit` times the median of their round.

    How far an update moved is the norm of its change of the weights, through the products of A and B; and, unless the
    method is going to put A and B in one gauge first, also the norm of the difference of all its tensors to what the
    client started from: with B = 0 and a huge A nothing has changed, and the mean of A is spoiled. Fewer than three
    updates have no median to speak of, and none of them is refused.
    """
    if len(updates) < _MIN_COHORT_TO_COMPARE:
        return {}
    measures = [{client: product_moves({client: updates[client]}, references[client])[client] for client in updates}]
    if by_factors:
        measures.append({client: _distance(updates[client], references[client]) for client in updates})
    refused: dict[str, Refusal] = {}
    for moved in measures:
        middle = median(moved.values())
        for client, distance in moved.items():
            if middle > 0 and distance > norm_limit * middle:
                refused[client] = Refusal("norm", f"moved by {distance:.3g}, the round's median is {middle:.3g}")
    return dict(sorted(refused.items()))


def is_unchanged(update: Adapter, reference: Adapter) -> bool:
    """Return whether an update has every value of what the client started from."""
    pairs = ((layer, reference.layers[path]) for path, layer in update.layers.items())
    same_layers = (
        torch.equal(ours, theirs)
        for layer, started in pairs
        for ours, theirs in zip(layer.tensors(), started.tensors(), strict=True)
    )
    return all(same_layers) and all(torch.equal(tensor, reference.dense[path]) for path, tensor in update.dense.items())


def unfit(update: Adapter, reference: Adapter) -> Refusal | None:
    """Return in what `update` differs from `reference` in layers, shapes, types or scaling, or in not being finite."""
    found, expected = _outline(update), _outline(replace(reference, base_change={}))
    if missing := sorted(expected.keys() - found.keys()):
        return Refusal("missing_layer", missing[0])
    if extra := sorted(found.keys() - expected.keys()):
        return Refusal("unexpected_layer", extra[0])
    for name, tensor in found.items():
        like = expected[name]
        if tensor.shape != like.shape:
            return Refusal("shape", f"{name} {tuple(tensor.shape)}; expected {tuple(like.shape)}")
        if tensor.dtype != like.dtype:
            return Refusal("dtype", f"{name} {tensor.dtype}; expected {like.dtype}")
    for name, tensor in named_tensors(update):
        if not torch.isfinite(tensor).all():
            return Refusal("not_finite", name)
        if tensor.numel() and (largest := float(tensor.abs().max())) > MAX_VALUE:
            return Refusal("too_large", f"{name} holds {largest:.3g}; expected at most {MAX_VALUE:g}")
    for path, layer in update.outline.items():
        if layer.scaling != reference.outline[path].scaling:
            return Refusal(
                "configuration", f"{path} scales by {layer.scaling:g}; expected {reference.outline[path].scaling:g}"
            )
    return None


def _scaling_settings(config: Mapping[str, object]) -> dict[str, object]:
    return {key: config.get(key) or None for key in SCALING_KEYS}


def _distance(update: Adapter, reference: Adapter) -> float:
    """Return the norm of the difference of all tensors, which both have."""
    of_reference = dict(named_tensors(reference))
    squares = (
        float((tensor.double() - of_reference[name].double()).square().sum()) for name, tensor in named_tensors(update)
    )
    return math.sqrt(sum(squares))


def _outline(adapter: Adapter) -> dict[str, Tensor]:
    """Return the tensors by their keys, to be asked for shapes and types only."""
    return to_state_dict(replace(adapter, layers=adapter.outline, dense=adapter.dense_outline))


def _config(packed: Packed) -> Mapping[str, object]:
    return packed_config(packed.path if isinstance(packed, PackedFile) else packed)


def _opened(packed: Packed, *, without: str, reference: Adapter) -> Adapter:
    """Return the update; of one in a file each tensor is read when it is asked for."""
    if isinstance(packed, PackedFile):
        return open_packed(packed.path, without=without, frozen=reference)
    return unpack(packed, without=without, frozen=reference)
