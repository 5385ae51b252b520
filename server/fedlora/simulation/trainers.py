"""A simulation whose clients bring trainers of their own: who they are."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from fedlora.client.worker.importable import require_importable
from fedlora.common.errors import ConfigError
from fedlora.common.spelling import spelled
from fedlora.training.data.examples import ClientData, Examples, FederatedData

if TYPE_CHECKING:
    from fedlora.training.own_trainer.made import MakeTrainer


def data_of_trainers(
    names: Iterable[str], make_trainer: "MakeTrainer", *, is_other_given: bool = False
) -> FederatedData:
    """Return data in which the clients are named, and whose examples only their trainers have.

    Raises:
        ConfigError: there are no names, one twice, or workers cannot import the function that makes the trainers.
        ValueError: data or a model were given beside it.
    """
    if is_other_given:
        raise ValueError("test, labels and model are of fedlora's own training; a trainer brings its own")
    require_importable(make_trainer)
    clients = sorted(spelled(name) for name in names)
    if not clients or len(clients) > len(set(clients)):
        raise ConfigError(f"clients are {clients}; expected each client's name once, which make_trainer is called with")
    none = Examples([], np.empty(0, np.int64), np.empty(0, np.object_))
    return FederatedData((), {name: ClientData(none, none) for name in clients}, none, "")
