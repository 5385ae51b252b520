"""What is trained beside the pairs (heads, biases, magnitudes), and its weighted mean over the clients that have it."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial, reduce

import torch
from torch import Tensor

from fedlora.adapters import Adapter
from fedlora.aggregation.updates import weighted_mean
from fedlora.common.errors import AdapterError


def mean_dense(
    updates: Mapping[str, Adapter], *, p: Mapping[str, float], reference: Adapter | None
) -> dict[str, Tensor]:
    """Return the dense tensors' weighted means, each over the clients that have it.

    Raises:
        AdapterError: clients have a tensor in different shapes, or with values that are not finite.
    """
    found: dict[str, Tensor] = {}
    for path in all_paths([*([reference.dense] if reference else []), *(updates[client].dense for client in p)]):
        owners = [client for client in p if path in updates[client].dense]
        if owners:
            found[path] = mean_of_owners(path, owners, partial(_dense_of, updates, path), p=p)
        elif reference is not None:
            found[path] = reference.dense[path]
    return found


def mean_of_owners(
    path: str, owners: Sequence[str], read: Callable[[str], Tensor], *, p: Mapping[str, float]
) -> Tensor:
    """Return the weighted mean of one tensor over the clients that have it, which are read one by one.

    The mean of whole numbers, such as the batches that a batch norm has counted, is the nearest whole number in their
    own type; of truths it is what more than half of the weight says.

    Raises:
        AdapterError: they have it in different shapes, or with values that are not finite.
    """

    def tensors() -> Iterator[Tensor]:
        shape: torch.Size | None = None
        for client in owners:
            tensor = read(client)
            shape = tensor.shape if shape is None else shape
            if tensor.shape != shape:
                raise AdapterError(
                    f"{path}: {tuple(shape)} against {tuple(tensor.shape)} ({owners[0]} against {client}); "
                    "all must train tensors of one shape"
                )
            types.append(tensor.dtype)
            # float32 has not all whole numbers beyond 2^24.
            yield tensor if tensor.is_floating_point() else tensor.double()

    types: list[torch.dtype] = []
    mean = weighted_mean(tensors(), p=[p[client] for client in owners])
    if not mean.isfinite().all():
        refuse_spoilers(path, owners, lambda client: (read(client),))
    common = reduce(torch.promote_types, types)
    if not common.is_floating_point:
        return mean.round().to(common)
    return mean if common == torch.float64 else mean.float()


def refuse_spoilers(path: str, owners: Sequence[str], read: Callable[[str], tuple[Tensor, ...]]) -> None:
    """Raise AdapterError for a mean that is not finite, naming the clients whose own values are not."""
    spoilers = [client for client in owners if not all(tensor.isfinite().all() for tensor in read(client))]
    if not spoilers:
        raise AdapterError(f"{path}: values so large that their differences overflow; leave out the largest updates")
    raise AdapterError(f"{path}: values that are not finite, from {', '.join(spoilers)}; leave these updates out")


def all_paths(mappings: Iterable[Mapping[str, object]]) -> list[str]:
    """Return the keys of all mappings, each once, in the order in which they come."""
    return list(dict.fromkeys(path for mapping in mappings for path in mapping))


def _dense_of(updates: Mapping[str, Adapter], path: str, client: str) -> Tensor:
    return updates[client].dense[path]
