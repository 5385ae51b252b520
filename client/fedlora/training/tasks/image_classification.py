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
        pixels = np.moveaxis(np.asarray(examples.inputs), -1, 1)
        # torch warns of an array that it must not write to.
        writable = np.require(pixels, requirements=["C", "W"])
        return PreparedImages(torch.from_numpy(writable), torch.tensor(examples.labels))

    def collate(self, prepared: PreparedImages, indices: np.ndarray, *, device: torch.device | str = "cpu") -> Batch:
        """Return `pixel_values` (batch_size, 3, height, width), normalised, and the labels."""
        chosen = torch.from_numpy(indices)
        # Normalised where the model is: bytes are a quarter of what floats would take to get there.
        pixels = prepared.pixels[chosen].to(device).float()
        # One grey channel is broadcast to three by the normalisation itself.
        normal = torch.addcmul(self._shift.to(device), pixels, self._scale.to(device))
        return Batch({"pixel_values": normal}, prepared.targets[chosen].to(device))
