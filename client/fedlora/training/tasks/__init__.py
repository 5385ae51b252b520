"""The kinds of learning, one file each. `Task` says what such a file holds."""

from fedlora.training.tasks.causal_lm import CausalLm
from fedlora.training.tasks.image_classification import ImageClassification
from fedlora.training.tasks.sequence_classification import SequenceClassification
from fedlora.training.tasks.task import Batch, Prepared, Task

__all__ = ["Batch", "CausalLm", "ImageClassification", "Prepared", "SequenceClassification", "Task"]
