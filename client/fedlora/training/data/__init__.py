"""The examples of a run: read from files or a user's data sets, split, and dealt out to the clients.

Free of torch, transformers, peft and Flower: whoever starts workers loads the data too.
"""

from fedlora.training.data.examples import ClientData, Examples, FederatedData
from fedlora.training.data.federated import load_federated_data, with_found_range
from fedlora.training.data.in_memory import federated_data_from
from fedlora.training.data.kept_parts import KeptParts
from fedlora.training.data.own import load_own_data
from fedlora.training.data.splits import equal_parts

__all__ = [
    "ClientData",
    "Examples",
    "FederatedData",
    "KeptParts",
    "equal_parts",
    "federated_data_from",
    "load_federated_data",
    "load_own_data",
    "with_found_range",
]
