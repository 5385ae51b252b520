"""Who holds which examples: every example of the training set goes to exactly one client.

Pure: numpy in, a mapping from client name to sorted indices out; random numbers only from the generator passed.
"""

import numpy as np
import numpy.typing as npt

from fedlora.common.errors import DataError

Indices = npt.NDArray[np.int64]
Partition = dict[str, Indices]


def codes_of(values: npt.NDArray[np.generic]) -> Indices:
    """Return the place of each of `values` (n,) in the sorted list of those that are distinct, (n,)."""
    # Python's strings are sorted once each, not once for each example.
    places = {value: place for place, value in enumerate(sorted(set(values.tolist())))}
    return np.array([places[value] for value in values.tolist()], dtype=np.int64)


def members(values: npt.NDArray[np.generic]) -> list[Indices]:
    """Return for each distinct value, in sorted order, the ascending indices at which it stands in `values` (n,)."""
    codes = codes_of(values)
    order = np.argsort(codes, kind="stable")
    ordered = codes[order]
    return np.split(order, np.flatnonzero(ordered[1:] != ordered[:-1]) + 1) if len(codes) else []


def client_names(num_clients: int) -> list[str]:
    """Return client-1, client-2 ..., with as many leading zeros as it takes for them to sort."""
    width = len(str(num_clients))
    return [f"client-{number:0{width}}" for number in range(1, num_clients + 1)]


def partition_by_group(groups: npt.NDArray[np.generic]) -> Partition:
    """Return one client for each natural group, under the group's name; `groups` (n,) names each example's.

    Raises:
        DataError: the examples have no groups.
    """
    if not np.any(groups != ""):
        raise DataError(
            'partition.by = "group", but the examples have no groups: expected pictures in domain/class/, '
            ".npz keys DOMAIN_images and DOMAIN_labels, or a column named by data.group; "
            'add them, or set partition.by = "iid"'
        )
    return {str(groups[indices[0]]): indices for indices in members(groups)}


def partition_iid(num_examples: int, *, num_clients: int, random: np.random.Generator) -> Partition:
    """Return the examples dealt out at random in parts that differ by one example at most.

    Raises:
        DataError: more clients than examples.
    """
    _require_one_each(num_examples, num_clients)
    parts = np.array_split(random.permutation(num_examples), num_clients)
    return _named([[part] for part in parts])


def partition_by_size(num_examples: int, *, num_clients: int, alpha: float, random: np.random.Generator) -> Partition:
    """Return the examples dealt out at random in parts of unequal size: the clients' shares are Dir(alpha, ..., alpha).

    Each client gets one example first, and the shares are of the others. A small alpha gives most examples to few
    clients; a large one gives all about as many.

    Raises:
        DataError: more clients than examples.
    """
    _require_one_each(num_examples, num_clients)
    shares = random.dirichlet(np.full(num_clients, alpha))
    cuts = np.rint(np.cumsum(shares)[:-1] * (num_examples - num_clients)).astype(np.int64)
    parts = np.split(random.permutation(num_examples), cuts + np.arange(1, num_clients))
    return _named([[part] for part in parts])


def partition_dirichlet(
    labels: npt.NDArray[np.int64], *, num_clients: int, alpha: float, random: np.random.Generator
) -> Partition:
    """Return clients with skewed labels: each label is dealt out in proportions drawn from Dir(alpha, ..., alpha).

    The scheme of Yurochkin et al. 2019 (arXiv 1905.12022), with the concentration `alpha` as in Hsu et al. 2019
    (arXiv 1909.06335). A small alpha gives each label to few clients; a large one gives all the same mixture.

    Args:
        labels: (n,), each example's label.

    Raises:
        DataError: a client is left without examples.
    """
    held: list[list[Indices]] = [[] for _ in range(num_clients)]
    for indices in members(labels):
        proportions = random.dirichlet(np.full(num_clients, alpha))
        cuts = np.rint(np.cumsum(proportions)[:-1] * len(indices)).astype(np.int64)
        for client, part in enumerate(np.split(random.permutation(indices), cuts)):
            held[client].append(part)
    partition = _named(held)
    for name, part in partition.items():
        if not len(part):
            raise DataError(
                f"{name} of {num_clients} gets none of the {len(labels)} training examples; raise partition.alpha "
                f"({alpha:g}), lower partition.num_clients, or try another partition.seed"
            )
    return partition


def partition_label_shards(
    labels: npt.NDArray[np.int64], *, num_clients: int, shards_per_client: int, random: np.random.Generator
) -> Partition:
    """Return clients with few labels each: the examples, sorted by label, cut into shards dealt out at random.

    The scheme of McMahan et al. 2017 (arXiv 1602.05629, section 3), which took two shards a client. Shards differ
    by one example at most.

    Args:
        labels: (n,), each example's label.

    Raises:
        DataError: more shards than examples.
    """
    num_shards = num_clients * shards_per_client
    if num_shards > len(labels):
        raise DataError(
            f"{num_clients} clients x {shards_per_client} shards for {len(labels)} training examples; "
            "lower partition.num_clients or partition.shards_per_client"
        )
    shuffled = random.permutation(len(labels))
    shards = np.array_split(shuffled[np.argsort(labels[shuffled], kind="stable")], num_shards)
    dealt = random.permutation(num_shards).reshape(num_clients, shards_per_client)
    return _named([[shards[shard] for shard in hand] for hand in dealt])


def _require_one_each(num_examples: int, num_clients: int) -> None:
    if num_clients > num_examples:
        raise DataError(
            f"{num_clients} clients for {num_examples} training examples; "
            f"lower partition.num_clients to {num_examples} or less"
        )


def _named(held: list[list[Indices]]) -> Partition:
    empty = np.empty(0, np.int64)
    return {
        name: np.sort(np.concatenate([empty, *parts]))
        for name, parts in zip(client_names(len(held)), held, strict=True)
    }
