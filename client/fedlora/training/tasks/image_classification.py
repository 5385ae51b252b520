"""Single-label classification of pictures."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedlora.training.data import Examples
from fedlora.training.tasks.classification import Classification
from fedlora.training.tasks.task import Batch


@dataclass(frozen=True, eq=False)
class PreparedImages:
    """Pictures as bytes: normalising 16 of them costs far less than keeping them all as floats.

    Attributes:
        pixels: uint8 (n, channels, height, width).
        targets: int64 (n,).
    """

    pixels: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)


class ImageClassification(Classification):
    """Pictures, normalised as the encoder was trained; grey ones are given three equal channels."""

    def __init__(self, *, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self._scale = 1.0 / (255.0 * torch.tensor(std).view(1, -1, 1, 1))
        self._shift = -(torch.tensor(mean) / torch.tensor(std)).view(1, -1, 1, 1)

    def prepare(self, examples: Examples) -> PreparedImages:
        """Return the pictures channel by channel, still as bytes."""
        pixels = torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(examples.inputs), -1, 1)))
        return PreparedImages(pixels, torch.from_numpy(examples.labels))

    def collate(self, prepared: PreparedImages, indices: np.ndarray) -> Batch:
        """Return `pixel_values` (batch_size, 3, height, width), normalised, and the labels."""
        chosen = torch.from_numpy(indices)
        pixels = prepared.pixels[chosen].float()
        # One grey channel is broadcast to three by the normalisation itself.
        return Batch({"pixel_values": pixels * self._scale + self._shift}, prepared.targets[chosen])
