"""What a task is: how examples become tensors, and how outputs are judged. The training loop knows no more."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from fedlora.training.data import Examples


@dataclass(frozen=True, eq=False)
class Batch:
    """Keyword arguments of the model's forward, and what its output is judged against.

    Attributes:
        num_tokens: where losses are per token, over how many the batch's loss is the mean; else 0.
        token_counts: then, int64 (batch_size,), each example's tokens, over which its loss and metric are means.
    """

    inputs: Mapping[str, Tensor]
    targets: Tensor
    num_tokens: int = field(default=0, kw_only=True)
    token_counts: Tensor | None = field(default=None, kw_only=True)


class Prepared(Protocol):
    """A task's own form of a data set: what can be done once is done."""

    def __len__(self) -> int: ...


P = TypeVar("P", bound=Prepared)


class Task(Protocol[P]):
    """One kind of learning.

    Attributes:
        metric_name: what `judge` returns beside the loss, such as "accuracy".

    What `prepare` returns may have `kept`, int64 (n,): the places of the examples that can be used, where not all can;
    `fates`, by the codes of `fedlora.common.fates` how many examples are left out or cut; and `notes`, in a line each
    what else a user should know of them.
    """

    metric_name: str

    def prepare(self, examples: Examples) -> P:
        """Return `examples` with everything done that needs doing only once, such as tokenising."""

    def collate(self, prepared: P, indices: np.ndarray, *, device: torch.device | str = "cpu") -> Batch:
        """Return the batch of the examples at `indices` (batch_size,), on `device`."""

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the mean loss (scalar) of the model's output."""

    def judge(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return loss, metric and prediction of each example, three tensors (batch_size,)."""
