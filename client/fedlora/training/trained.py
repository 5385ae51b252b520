"""The model of a finished run, under its public name; it stands in `fedlora.finished.trained`."""

from fedlora.finished.trained import TrainedModel, load_trained

__all__ = ["TrainedModel", "load_trained"]
