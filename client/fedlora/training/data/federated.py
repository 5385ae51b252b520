"""The run's data: read, split into training, validation and test, and dealt out to the clients."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedlora.common.config import Dirichlet, Iid, LabelShards, PartitionSection, RunConfig
from fedlora.common.errors import DataError
from fedlora.common.random_streams import stream
from fedlora.training.data.examples import ClientData, Examples, FederatedData
from fedlora.training.data.image_archive import read_image_archive
from fedlora.training.data.image_folder import read_image_folder
from fedlora.training.data.source import Source, enumeration
from fedlora.training.data.splits import Mask, Strings, held_out_rows, held_out_values
from fedlora.training.data.tables import Columns, read_table
from fedlora.training.partitioning import (
    Partition,
    partition_by_group,
    partition_dirichlet,
    partition_iid,
    partition_label_shards,
)
from fedlora.training.resources import resolve_path

TABLE_SUFFIXES = (".csv", ".csv.gz", ".jsonl", ".jsonl.gz")


def load_federated_data(config: RunConfig) -> FederatedData:
    """Return every client's examples and the held-out test set, as the run file says.

    First the test set is held out, group by group; what remains is dealt out to the clients; then each client keeps a
    part of its own for validation. With data.split_by, all examples with one value are on the same side of both
    splits, at all clients. The draws come from the run's seed: the same file gives the same data.

    Raises:
        DataError: a source that cannot be used, or a partition that leaves a client without examples.
    """
    source = read_source(config.data.path, config)
    vocabulary = config.data.labels or source.vocabulary(config.data.path)
    examples = source.examples(vocabulary, origin=config.data.path)
    fingerprint = source.fingerprint
    if isinstance(config.data.test, str):
        given = read_source(config.data.test, config)
        _refuse_shared_values(source, given, config)
        test = given.examples(vocabulary, origin=config.data.test)
        training_rows = np.arange(len(examples))
        fingerprint = hashlib.sha256(f"{source.fingerprint} {given.fingerprint}".encode()).hexdigest()
    else:
        in_test = test_mask(source, fraction=config.data.test, seed=config.run.seed)
        test = examples.take(np.flatnonzero(in_test))
        training_rows = np.flatnonzero(~in_test)
    dealt = partition(
        examples.labels[training_rows], examples.groups[training_rows], config.partition, seed=config.run.seed
    )
    clients = deal_out(
        examples,
        {name: training_rows[rows] for name, rows in dealt.items()},
        source.split_by,
        validation=config.data.validation,
        seed=config.run.seed,
    )
    return FederatedData(vocabulary, clients, test.by_label(), fingerprint)


def read_source(name: str, config: RunConfig) -> Source:
    """Return what `name` (a path, or package:MODULE/FILE) holds, of the kind that the run's task needs.

    Raises:
        DataError: it is missing, of another kind, or unreadable.
    """
    path = resolve_path(name, error=DataError)
    if isinstance(path, str):
        raise DataError(f"{name}: no such file or folder (looked in {Path.cwd()})")
    file_name = path.name.lower()
    is_table = path.is_file() and file_name.endswith(TABLE_SUFFIXES)
    is_images = path.is_dir() or file_name.endswith(".npz")
    if config.task.kind == "image_classification":
        if path.is_dir():
            return read_image_folder(path, image_size=config.task.image_size)
        if is_images:
            return read_image_archive(path, image_size=config.task.image_size)
        other = 'a table of texts; set task.kind = "sequence_classification", or name' if is_table else "expected"
        raise DataError(f"{name}: {other} an image folder or an .npz file")
    if is_table:
        columns = Columns(config.data.text, config.data.label, config.data.group, config.data.split_by)
        return read_table(path, columns)
    other = 'holds pictures; set task.kind = "image_classification", or name' if is_images else "expected"
    raise DataError(f"{name}: {other} a file in {', '.join(TABLE_SUFFIXES)}")


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
