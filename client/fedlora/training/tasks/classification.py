"""What all single-label classification has in common: cross-entropy, accuracy, the likeliest label."""

import torch
from torch import Tensor
from torch.nn import functional

from fedlora.training.tasks.task import Batch


class Classification:
    """Loss and metric of single-label classification, for logits (batch_size, num_labels)."""

    metric_name = "accuracy"

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy, computed in float32."""
        return functional.cross_entropy(output.float(), batch.targets)

    def judge(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return cross-entropy, whether the label is right (0 or 1), and the predicted label, (batch_size,) each."""
        losses = functional.cross_entropy(output.float(), batch.targets, reduction="none")
        predicted = output.argmax(dim=-1)
        return losses, (predicted == batch.targets).to(torch.float32), predicted
