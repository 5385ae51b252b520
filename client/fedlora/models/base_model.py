"""The base model of a run: a transformers checkpoint for the run's task, and its preprocessing."""

from fedlora.common.config import CausalLm, OwnTask, RunConfig
from fedlora.models.checkpoint import find_checkpoint
from fedlora.models.classifiers import load_classifier
from fedlora.models.language_model import load_language_model
from fedlora.models.model_loading import BaseModel, fingerprint_of
from fedlora.training.own_task import load_own_task

__all__ = ["BaseModel", "fingerprint_of", "load_base_model"]


def load_base_model(config: RunConfig, labels: tuple[str, ...]) -> BaseModel:
    """Return the run's base model; what the checkpoint lacks is drawn from torch's global generator.

    Raises:
        ModelError: it is missing, unreadable, of the wrong kind, or does not take the run's pictures or texts.
        ConfigError: the run's own task is not installed.
    """
    checkpoint = find_checkpoint(config.model)
    if isinstance(config.task, CausalLm):
        return load_language_model(checkpoint, config, config.task)
    if isinstance(config.task, OwnTask):
        return load_own_task(checkpoint, config.task)
    return load_classifier(checkpoint, config, labels)
