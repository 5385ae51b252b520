"""The gate that every update passes before it counts. Pure: a receipt in, an update or the reason against it out.

An update's tensors are read once, and that tells everything that is asked of it before it is aggregated.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from statistics import median

import torch

from fedlora.adapters import Adapter, unpack
from fedlora.adapters.fit import Misfit, bad_value, other_form
from fedlora.adapters.keys import layer_tensors, named_tensors, path_key
from fedlora.adapters.meaning import difference_in_meaning
from fedlora.adapters.moments import Moments, Sharing, examine_moments, open_moments, trained_tensors, unpack_moments
from fedlora.adapters.packed import open_packed, packed_config
from fedlora.adapters.settings import SCALING_KEYS
from fedlora.aggregation.products import Moving
from fedlora.common.bounds import MAX_TOKENS
from fedlora.common.errors import AdapterError
from fedlora.common.messages import INTERNAL, LOSS_NOT_FINITE, OK, OUT_OF_MEMORY, TrainReceipt, TrainRequest
from fedlora.common.packed_file import Packed, PackedFile
from fedlora.common.printable import printable

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
        return f"{self.code}: {printable(self.found, most=_MAX_CHARACTERS)}" if self.found else self.code


@dataclass(frozen=True, eq=False)
class Admitted:
    """An update that may count, and how far it is from what its client started from.

    Attributes:
        update: of one in a file each tensor is read again when it is asked for.
        moved: the norm of its change of the weights, through the products of A and B.
        distance: the norm of the difference of all its tensors.
        is_unchanged: whether it has every value of what the client started from.
        is_zero: whether it does nothing at all: one factor of each pair is zero, and so is all else.
        moments: of the client's optimiser, where the run shares them; and how large they are, by name.
    """

    update: Adapter
    moved: float
    distance: float
    is_unchanged: bool
    is_zero: bool = False
    moments: Moments = field(default_factory=dict)
    moment_sizes: Mapping[str, float] = field(default_factory=dict)

    @property
    def flag(self) -> str:
        """What is out of the ordinary about it: unchanged, zero, or nothing."""
        return "unchanged" if self.is_unchanged else "zero" if self.is_zero else ""


def admit(
    receipt: TrainReceipt,
    *,
    request: TrainRequest,
    client: str,
    num_examples: int,
    reference: Adapter,
    weighs_tokens: bool = False,
    sharing: Sharing | None = None,
) -> Admitted | Refusal:
    """Return the update in `receipt`, or why it is refused.

    Args:
        request: what was asked.
        client: who was asked.
        num_examples: how many it holds by its own description, which it weighs by.
        reference: the adapter that the client started from; an update has its layers, shapes and configuration.
        weighs_tokens: whether it counts by the tokens it trained on, so that there must be some.
        sharing: what moments are to come beside it; there may be none if None.
    """
    refusal = receipt_refusal(
        receipt, request=request, client=client, num_examples=num_examples, weighs_tokens=weighs_tokens
    )
    if refusal is not None:
        return refusal
    try:
        # First of all: a configuration may hold regular expressions, and nobody's but our own are to be run.
        config = _config(receipt.adapter)
        settings, expected = _scaling_settings(config), _scaling_settings(reference.config)
        if settings != expected:
            return Refusal("configuration", f"{settings}; expected {expected}")
        if config != reference.config and (difference := difference_in_meaning(config, reference.config)):
            return Refusal("configuration", str(difference))
        update = _opened(
            receipt.adapter, without=request.frozen_factor, reference=reference, beside_moments=sharing is not None
        )
        found = examine(update, reference)
        if sharing is None or isinstance(found, Refusal):
            return found
        return _with_moments(found, receipt.adapter, request=request, reference=reference, sharing=sharing)
    except AdapterError as error:
        return Refusal("unreadable", str(error))
    except RecursionError:
        return Refusal("unreadable", "a configuration of lists within lists, too deep to be read")


def receipt_refusal(
    receipt: TrainReceipt, *, request: TrainRequest, client: str, num_examples: int, weighs_tokens: bool = False
) -> Refusal | None:
    """Return what speaks against a receipt whatever its update is; for the arguments see `admit`."""
    asked = (request.run, request.round, request.attempt, client)
    answered = (receipt.run, receipt.round, receipt.attempt, receipt.client)
    if asked != answered:
        return Refusal("wrong_request", f"an answer for {answered}; asked was {asked}")
    if receipt.status != OK:
        return Refusal(receipt.status if receipt.status in _FAILURES else INTERNAL)
    if receipt.num_examples != num_examples:
        return Refusal("num_examples", f"{receipt.num_examples}; expected {num_examples}, as it described itself")
    if num_examples < 1:
        return Refusal("num_examples", "0; expected 1 or more")
    if not int(weighs_tokens) <= receipt.num_tokens <= MAX_TOKENS:
        return Refusal("num_tokens", f"{receipt.num_tokens}; expected {int(weighs_tokens)} to {MAX_TOKENS}")
    if not math.isfinite(receipt.loss) and "loss" not in receipt.withheld:
        return Refusal(LOSS_NOT_FINITE, f"a training loss of {receipt.loss}")
    return None


def examine(update: Adapter, reference: Adapter) -> Admitted | Refusal:
    """Return the update with what one reading of it tells, layer by layer, or in what it does not fit to `reference`.

    Raises:
        AdapterError: its file has changed since it was opened.
    """
    if misfit := other_form(update, reference):
        return _refused(misfit)
    moving, squares, is_unchanged, is_zero = Moving(), 0.0, True, True
    for path, layer in update.layers.items():
        if misfit := bad_value(layer_tensors(path, layer)):
            return _refused(misfit)
        is_zero = is_zero and not (layer.A.any() and layer.B.any())
        start = reference.layers[path]
        moving.add_layer(layer, start)
        for tensor, started in zip(layer.tensors(), start.tensors(), strict=True):
            squares += float((tensor.double() - started.double()).square().sum())
            is_unchanged = is_unchanged and torch.equal(tensor, started)
    for path, tensor in update.dense.items():
        if misfit := bad_value([(path_key(path), tensor)]):
            return _refused(misfit)
        is_zero = is_zero and not tensor.any()
        started = reference.dense[path]
        moving.add_dense(tensor, started)
        squares += float((tensor.double() - started.double()).square().sum())
        is_unchanged = is_unchanged and torch.equal(tensor, started)
    return Admitted(update, moving.move().norm(), math.sqrt(squares), is_unchanged, is_zero)


def outliers(admitted: Mapping[str, Admitted], *, norm_limit: float, by_factors: bool = True) -> dict[str, Refusal]:
    """Return, by client, the updates that moved more than `norm_limit` times the median of their round.

    How far an update moved is the norm of its change of the weights, through the products of A and B; and, unless the
    method is going to put A and B in one gauge first, also the norm of the difference of all its tensors to what the
    client started from: with B = 0 and a huge A nothing has changed, and the mean of A is spoiled. Moments are
    compared by their size, first and second ones by themselves. Fewer than three updates have no median to speak of,
    and none of them is refused.
    """
    if len(admitted) < _MIN_COHORT_TO_COMPARE:
        return {}
    measures = [("moved by", {client: each.moved for client, each in admitted.items()})]
    if by_factors:
        measures.append(("moved by", {client: each.distance for client, each in admitted.items()}))
    for name in sorted({name for each in admitted.values() for name in each.moment_sizes}):
        sizes = {client: each.moment_sizes.get(name, 0.0) for client, each in admitted.items()}
        measures.append((f"its {name} has the size", sizes))
    refused: dict[str, Refusal] = {}
    for what, found in measures:
        middle = median(found.values())
        for client, size in found.items():
            if middle > 0 and size > norm_limit * middle:
                refused[client] = Refusal("norm", f"{what} {size:.3g}, the round's median is {middle:.3g}")
    return dict(sorted(refused.items()))


def _with_moments(
    admitted: Admitted, packed: Packed, *, request: TrainRequest, reference: Adapter, sharing: Sharing
) -> Admitted | Refusal:
    """Return the update with the moments beside it, or why these are refused."""
    outline = replace(reference, layers=reference.outline, dense=reference.dense_outline, base_change={})
    trained = trained_tensors(dict(named_tensors(outline)), request.trains)
    pairs = {key for path, layer in outline.layers.items() for key, _ in layer_tensors(path, layer)}
    moments = open_moments(packed.path) if isinstance(packed, PackedFile) else unpack_moments(packed)
    found = examine_moments(
        moments,
        trained,
        sharing.form,
        # Of what is trained whole a part may be fixed, such as running statistics.
        required=pairs & trained.keys(),
        most_steps=sharing.most_steps * request.round,
    )
    if isinstance(found, Misfit):
        return _refused(found)
    return replace(admitted, moments=moments, moment_sizes=found)


def _refused(misfit: Misfit) -> Refusal:
    return Refusal(misfit.code, misfit.found)


def _scaling_settings(config: Mapping[str, object]) -> dict[str, object]:
    return {key: config.get(key) or None for key in SCALING_KEYS}


def _config(packed: Packed) -> Mapping[str, object]:
    return packed_config(packed.path if isinstance(packed, PackedFile) else packed)


def _opened(packed: Packed, *, without: str, reference: Adapter, beside_moments: bool) -> Adapter:
    """Return the update; of one in a file each tensor is read when it is asked for."""
    if isinstance(packed, PackedFile):
        return open_packed(packed.path, without=without, frozen=reference, beside_moments=beside_moments)
    return unpack(packed, without=without, frozen=reference, beside_moments=beside_moments)
