"""Gradients of single examples, each clipped to one norm over all that is trained, and their sum.

This is the first half of a step of DP-SGD (Abadi et al., arXiv 1607.00133): whatever an example holds, it moves the sum
no further than the clip. The examples of a forward pass have their gradients together (`torch.func`), where model and
task allow that, and one after the other where they do not: which of both is found out on two examples.
"""

import contextlib
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from fedlora.common.errors import one_line
from fedlora.models.reach import logits_of
from fedlora.training.frozen_layers import FrozenLayersKept
from fedlora.training.model_blocks import evaluating
from fedlora.training.peft_bridge import ResidentModel
from fedlora.training.tasks import Batch, Task

logger = logging.getLogger(__name__)

# A norm that clipping has left may be some roundings above the clip: so many at most.
_ROUNDINGS = 8

# What a model, a task or torch's transforms say of a batch whose examples they cannot take one by one in a single pass.
_Computed = Callable[[Mapping[str, Tensor], Tensor | None], object]

_NOT_TOGETHER = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, MemoryError)


@dataclass(frozen=True, eq=False)
class ClippedSum:
    """What some examples come to.

    Attributes:
        gradients: the sum of their clipped gradients, of the shapes of what is trained, in its order.
        loss: the sum of their losses (scalar).
        num_not_finite: of them, whose gradient is not finite: it counts as none.
    """

    gradients: list[Tensor]
    loss: Tensor
    num_not_finite: int


class ExampleGradients:
    """The clipped gradients of a model's examples, summed up."""

    def __init__(
        self,
        model: ResidentModel,
        task: Task[Any],
        *,
        device: torch.device,
        precision: Callable[[], contextlib.AbstractContextManager[object]],
        tolerance: float,
        frozen: FrozenLayersKept | None = None,
    ) -> None:
        """Take what the trainer has.

        Args:
            precision: gives the context of a forward pass.
            tolerance: relative, between gradients that are computed together and one after the other.
            frozen: the frozen layers, where their outputs are kept.
        """
        self._model = model
        self._task = task
        self._device = device
        self._precision = precision
        self._tolerance = tolerance
        self._frozen = frozen
        self._forward = _Forward(model.peft_model, frozen)
        self._goes_together: bool | None = None

    def goes_together(self, prepared: Any) -> bool:
        """Return whether the examples of a forward pass have their gradients together: tried once, without dropout."""
        if self._goes_together is None:
            why_not = self._why_not_together(prepared, np.arange(min(2, len(prepared))))
            self._goes_together = not why_not
            logger.info(
                "gradients of single examples are computed %s",
                f"one after the other: {why_not}" if why_not else "together for the examples of a forward pass",
            )
        return self._goes_together

    def clipped_sum(self, prepared: Any, parts: Sequence[np.ndarray], *, clip: float) -> ClippedSum:
        """Return the sum over the examples of a step of their gradients, each clipped to the norm `clip`.

        Args:
            parts: the places of the examples of each forward pass.
        """
        trained = list(self._model.trained().values())
        total = ClippedSum(
            [torch.zeros_like(parameter) for parameter in trained], torch.zeros((), device=self._device), 0
        )
        for indices in parts:
            for gradients, losses in self._of_examples(prepared, indices):
                total = _added(total, gradients, losses, clip=clip)
        if total.num_not_finite:
            logger.warning(
                "the gradients of %d examples are not finite, and count as none in this step", total.num_not_finite
            )
        return total

    def _of_examples(self, prepared: Any, indices: np.ndarray) -> Iterator[tuple[list[Tensor], Tensor]]:
        """Yield gradients (n, ...) of what is trained, in its order, and losses (n,), of all examples or each one."""
        if len(indices) and self.goes_together(prepared):
            yield self._together(prepared, indices)
            return
        for index in indices:
            yield self._alone(prepared, index)

    def _alone(self, prepared: Any, index: int) -> tuple[list[Tensor], Tensor]:
        """Return the gradients (1, ...) and the loss (1,) of one example, by a forward pass of its own."""
        batch = self._task.collate(prepared, np.array([index]), device=self._device)
        trained = list(self._model.trained().values())
        loss = self._loss(self._forward, batch, self._hidden(batch))
        found = torch.autograd.grad(loss, trained, allow_unused=True)
        gradients = [
            torch.zeros_like(parameter) if gradient is None else gradient
            for parameter, gradient in zip(trained, found, strict=True)
        ]
        return [gradient[None] for gradient in gradients], loss.detach()[None]

    def _together(self, prepared: Any, indices: np.ndarray) -> tuple[list[Tensor], Tensor]:
        """Return the gradients (n, ...) and losses (n,) of examples, by one forward pass.

        Raises:
            ValueError: the batch is not made of one row of each tensor for each example.
        """
        batch = self._task.collate(prepared, indices, device=self._device)
        tensors = [*batch.inputs.values(), batch.targets]
        if type(batch) is not Batch or batch.num_tokens or any(len(tensor) != len(indices) for tensor in tensors):
            raise ValueError("a batch of this task is not one row for each example")
        own = {id(parameter): name for name, parameter in self._forward.named_parameters()}
        values = {own[id(parameter)]: parameter.detach() for parameter in self._model.trained().values()}

        def loss_of(
            values: Mapping[str, Tensor], inputs: Mapping[str, Tensor], targets: Tensor, hidden: Tensor | None
        ) -> Tensor:
            one = Batch({name: tensor[None] for name, tensor in inputs.items()}, targets[None])
            return self._loss(
                lambda inputs, hidden: functional_call(self._forward, dict(values), (inputs, hidden)),
                one,
                None if hidden is None else hidden[None],
            )

        hidden = self._hidden(batch)
        # torch says of each operation that it has no rule for that it does it row by row.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop", category=UserWarning)
            each = vmap(
                grad_and_value(loss_of), in_dims=(None, 0, 0, None if hidden is None else 0), randomness="different"
            )
            gradients, losses = each(values, dict(batch.inputs), batch.targets, hidden)
        return [gradients[name].detach() for name in values], losses.detach()

    def _loss(self, forward: _Computed, batch: Batch, hidden: Tensor | None) -> Tensor:
        with self._precision():
            return self._task.loss(logits_of(forward(batch.inputs, hidden)), batch)

    def _hidden(self, batch: Batch) -> Tensor | None:
        return None if self._frozen is None else self._frozen.hidden_of(batch.inputs)

    def _why_not_together(self, prepared: Any, indices: np.ndarray) -> str:
        """Return why examples do not have their gradients together; nothing where they do, and get the same ones."""
        with evaluating(self._model.peft_model):
            alone = [self._alone(prepared, index)[0] for index in indices]
            try:
                together, _ = self._together(prepared, indices)
            except _NOT_TOGETHER as error:
                return one_line(error, most=120)
        expected = [torch.cat(parts) for parts in zip(*alone, strict=True)]
        size, distance = _norm(expected), _norm([a - b for a, b in zip(expected, together, strict=True)])
        if distance <= self._tolerance * size:
            return ""
        return f"together they are others, by {distance:.2g} of {size:.2g}"


class _Forward(nn.Module):
    """The model on what a batch holds, or on what its frozen layers give for that."""

    def __init__(self, model: nn.Module, frozen: FrozenLayersKept | None) -> None:
        super().__init__()
        self.model = model
        self._frozen = frozen

    def forward(self, inputs: Mapping[str, Tensor], hidden: Tensor | None) -> object:
        if self._frozen is None or hidden is None:
            return self.model(**inputs)
        return self._frozen.above(inputs, hidden)


@torch.no_grad()
def _added(total: ClippedSum, gradients: list[Tensor], losses: Tensor, *, clip: float) -> ClippedSum:
    """Add some examples' gradients (n, ...) to a sum, each times min(1, clip / its norm over all of them)."""
    # A model may lie on several devices.
    rows = [gradient.reshape(len(losses), -1) for gradient in gradients]
    # In float64: of many numbers float32 would find less than there is.
    each = [torch.linalg.vector_norm(row, dim=1, dtype=torch.float64).to(losses.device) for row in rows]
    norms = torch.linalg.vector_norm(torch.stack(each), dim=0)
    # Of a norm that is not finite nothing can be clipped.
    is_finite = norms.isfinite()
    room = 1 - _ROUNDINGS * max(torch.finfo(gradient.dtype).eps for gradient in gradients)
    factors = (room * clip / norms[is_finite]).clamp(max=1.0)
    for place, gradient in enumerate(gradients):
        kept = is_finite.to(gradient.device)
        total.gradients[place] += torch.tensordot(factors.to(gradient), gradient[kept], dims=1)
    num_left_out = len(losses) - int(is_finite.sum())
    return replace(total, loss=total.loss + losses.sum(), num_not_finite=total.num_not_finite + num_left_out)


def _norm(gradients: list[Tensor]) -> float:
    return math.hypot(*(float(gradient.norm()) for gradient in gradients))
