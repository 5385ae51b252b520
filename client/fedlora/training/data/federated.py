"""The run's data: read, split into training, validation and test, and dealt out to the clients."""

import hashlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from fedlora.common.config import BySize, Dirichlet, Iid, LabelShards, PartitionSection, RunConfig
from fedlora.common.errors import DataError
from fedlora.common.random_streams import stream
from fedlora.training.data.examples import ClientData, Examples, FederatedData
from fedlora.training.data.run_source import read_source, vocabulary_of
from fedlora.training.data.source import Source, enumeration
from fedlora.training.data.splits import Mask, Strings, held_out_rows, held_out_values
from fedlora.training.partitioning import (
    Partition,
    partition_by_group,
    partition_by_size,
    partition_dirichlet,
    partition_iid,
    partition_label_shards,
)


def load_federated_data(config: RunConfig) -> FederatedData:
    """Return every client's examples and the held-out test set, as the run file says.

    First the test set is held out, group by group; what remains is dealt out to the clients; then each client keeps a
    part of its own for validation. With data.split_by, all examples with one value are on the same side of both
    splits, at all clients. The draws come from the run's seed: the same file gives the same data.

    Raises:
        DataError: a source that cannot be used, or a partition that leaves a client without examples.
    """
    deals_by_label = isinstance(config.partition, Dirichlet | LabelShards)
    source = read_source(config.data.path, config, deals_by_label=deals_by_label)
    vocabulary = vocabulary_of(source, config)
    examples = source.examples(vocabulary, origin=config.data.path)
    fingerprint, notes = source.fingerprint, source.notes
    if isinstance(config.data.test, str):
        given = read_source(config.data.test, config)
        _refuse_shared_values(source, given, config)
        test = given.examples(vocabulary, origin=config.data.test)
        training_rows = np.arange(len(examples))
        fingerprint = hashlib.sha256(f"{source.fingerprint} {given.fingerprint}".encode()).hexdigest()
        notes += given.notes
    else:
        in_test = test_mask(source, fraction=config.data.test, seed=config.run.seed)
        test = examples.take(np.flatnonzero(in_test))
        training_rows = np.flatnonzero(~in_test)
    # Without a vocabulary too, the examples can be dealt out by a column of labels.
    labels = examples.labels if vocabulary else np.unique(source.labels, return_inverse=True)[1]
    dealt = partition(labels[training_rows], examples.groups[training_rows], config.partition, seed=config.run.seed)
    clients = deal_out(
        examples,
        {name: training_rows[rows] for name, rows in dealt.items()},
        source.split_by,
        validation=config.data.validation,
        seed=config.run.seed,
    )
    return FederatedData(vocabulary, clients, test.by_label(), fingerprint, notes)


def partition(labels: npt.NDArray[np.int64], groups: Strings, section: PartitionSection, *, seed: int) -> Partition:
    """Return which client holds which of n examples with these labels (n,) and groups (n,).

    Raises:
        DataError: a client is left without examples, or there are no groups to go by.
    """
    random = stream(seed, purpose="data.partition")
    match section:
        case Iid():
            return partition_iid(len(labels), num_clients=section.num_clients, random=random)
        case Dirichlet():
            return partition_dirichlet(labels, num_clients=section.num_clients, alpha=section.alpha, random=random)
        case LabelShards():
            return partition_label_shards(
                labels,
                num_clients=section.num_clients,
                shards_per_client=section.shards_per_client,
                random=random,
            )
        case BySize():
            return partition_by_size(len(labels), num_clients=section.num_clients, alpha=section.alpha, random=random)
    return partition_by_group(groups)


def deal_out(
    examples: Examples, parts: Partition, split_by: Strings | None, *, validation: float, seed: int
) -> Mapping[str, ClientData]:
    """Return each client's examples, divided into those for training and those for its own validation.

    Args:
        examples: n of them; those that no client holds, such as the test set's, are left out.
        parts: the ascending rows that each client holds, by its name.
        split_by: (n,). What has one value is on one side at all clients: where one validates, no other trains.
        validation: each client's share.
    """
    held = np.concatenate(list(parts.values()))
    holders = np.repeat(list(parts), [len(rows) for rows in parts.values()])
    values = None if split_by is None else split_by[held]
    in_validation = np.zeros(len(examples), dtype=np.bool_)
    in_validation[held] = _validation_mask(holders, values, fraction=validation, seed=seed)
    return {
        name: ClientData(
            training=examples.take(rows[~in_validation[rows]]),
            validation=examples.take(rows[in_validation[rows]]).by_label(),
        )
        for name, rows in sorted(parts.items())
    }


def _validation_mask(clients: Strings, split_by: Strings | None, *, fraction: float, seed: int) -> Mask:
    """Return which examples are held back for validation; `clients` (n,) names each example's holder."""
    if split_by is not None:
        random = stream(seed, purpose="data.validation")
        return held_out_values(clients, split_by, fraction=fraction, random=random)
    return held_out_rows(
        clients, fraction=fraction, generator_of=lambda client: stream(seed, purpose="data.validation", client=client)
    )


def test_mask(source: Source, *, fraction: float, seed: int) -> Mask:
    """Return which examples are held out for the test."""
    if source.split_by is not None:
        random = stream(seed, purpose="data.test")
        in_test = held_out_values(source.groups, source.split_by, fraction=fraction, random=random)
    else:
        in_test = held_out_rows(
            source.groups,
            fraction=fraction,
            generator_of=lambda group: stream(seed, purpose="data.test", client=group),
        )
    if fraction > 0 and not in_test.any():
        raise DataError(
            f"data.test = {fraction:g} holds out none of the {len(in_test)} examples of "
            f"{len(np.unique(source.groups))} groups; raise it, or set data.test = 0 for no test set"
        )
    return in_test


def _refuse_shared_values(source: Source, test: Source, config: RunConfig) -> None:
    if source.split_by is None or test.split_by is None:
        return
    if shared := np.intersect1d(source.split_by, test.split_by).tolist():
        raise DataError(
            f"{config.data.test}: values of {config.data.split_by!r} (data.split_by) that are in the training set too: "
            f"{enumeration(shared)}; keep each value in one of the two"
        )
