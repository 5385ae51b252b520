"""The run's data: read, split into training, validation and test, and dealt out to the clients."""

from collections.abc import Mapping
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt

from fedlora.common.config import ByGroup, BySize, Dirichlet, Iid, LabelShards, PartitionSection, RunConfig
from fedlora.common.errors import DataError
from fedlora.common.random_streams import stream
from fedlora.training.data.examples import ClientData, Examples, FederatedData, Note, Words
from fedlora.training.data.picture_reading import Wanted
from fedlora.training.data.run_source import Parts, read_parts, vocabulary_of
from fedlora.training.data.source import Source, enumeration
from fedlora.training.data.splits import Mask, held_out_rows, held_out_values
from fedlora.training.partitioning import (
    Partition,
    codes_of,
    members,
    partition_by_group,
    partition_by_size,
    partition_dirichlet,
    partition_iid,
    partition_label_shards,
)


class ReadParts(Protocol):
    """Returns what a run file names as data; see `read_parts`."""

    def __call__(self, config: RunConfig, *, wanted: Wanted, deals_by_label: bool = False) -> Parts: ...


def load_federated_data(config: RunConfig, *, read: ReadParts = read_parts) -> FederatedData:
    """Return every client's examples and the held-out test set, as the run file says.

    First the test set is held out, group by group; what remains is dealt out to the clients; then each client keeps a
    part of its own for validation. With data.split_by, all examples with one value are on the same side of both
    splits, at all clients. The draws come from the partition's seed, or the run's: the same file gives the same data.
    Data that are split already keep their parts, and those for validation are dealt out to the clients too.

    Raises:
        DataError: a source that cannot be used, or a partition that leaves a client without examples.
    """
    deals_by_label = isinstance(config.partition, Dirichlet | LabelShards)
    parts = read(config, wanted=getattr(config.task, "pixel_range", None), deals_by_label=deals_by_label)
    source = parts.training
    vocabulary = vocabulary_of(source, config)
    examples = source.examples(vocabulary, origin=config.data.path)
    for given in (parts.validation, parts.test):
        refuse_shared_values(source, given, config)
    if parts.test is not None:
        test = parts.test.examples(vocabulary, origin=_origin_of_test(config))
        training_rows = np.arange(len(examples))
    else:
        in_test = test_mask(source, fraction=cast(float, config.data.test), seed=config.data_seed)
        test = examples.take(np.flatnonzero(in_test))
        training_rows = np.flatnonzero(~in_test)
    # Without a vocabulary too, the examples can be dealt out by a column of labels.
    labels = examples.labels if vocabulary else codes_of(source.labels)
    dealt = partition(labels[training_rows], examples.groups[training_rows], config.partition, seed=config.data_seed)
    clients = deal_out(
        examples,
        {name: training_rows[rows] for name, rows in dealt.items()},
        source.split_by,
        validation=config.data.validation if parts.validation is None else 0.0,
        seed=config.data_seed,
    )
    notes = parts.notes
    if parts.validation is not None:
        held = parts.validation.examples(vocabulary, origin=f"{config.data.path}: the part for validation")
        is_by_group = isinstance(config.partition, ByGroup)
        clients, note = with_given_validation(clients, held, is_by_group=is_by_group, seed=config.data_seed)
        notes = (*notes, note)
    return FederatedData(vocabulary, clients, test.by_label(), parts.fingerprint, notes, parts.pixel_range)


def with_found_range(config: RunConfig, data: FederatedData) -> RunConfig:
    """Return the run with the black and white that were found in its pictures, so that all of it uses the same."""
    if getattr(config.task, "pixel_range", None) != "auto" or data.pixel_range is None:
        return config
    return config.model_copy(update={"task": config.task.model_copy(update={"pixel_range": data.pixel_range})})


def partition(labels: npt.NDArray[np.int64], groups: Words, section: PartitionSection, *, seed: int) -> Partition:
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
    examples: Examples, parts: Partition, split_by: Words | None, *, validation: float, seed: int
) -> Mapping[str, ClientData]:
    """Return each client's examples, divided into those for training and those for its own validation.

    Args:
        examples: n of them; those that no client holds, such as the test set's, are left out.
        parts: the ascending rows that each client holds, by its name.
        split_by: (n,). What has one value is on one side at all clients: where one validates, no other trains.
        validation: each client's share.
    """
    held = np.concatenate(list(parts.values()))
    names = np.array(list(parts), dtype=np.object_)
    holders = np.repeat(names, [len(rows) for rows in parts.values()])
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


def with_given_validation(
    clients: Mapping[str, ClientData], given: Examples, *, is_by_group: bool, seed: int
) -> tuple[Mapping[str, ClientData], Note]:
    """Return the clients with examples given for validation dealt out to them, and in words how.

    Args:
        is_by_group: whether a client is a group and gets what is of it; where none of `given` is of a client's group,
            and else, all clients get equal parts at random.
    """
    by_group = {str(given.groups[rows[0]]): rows for rows in members(given.groups)}
    if is_by_group and by_group.keys() & clients.keys():
        unheld = sum(len(rows) for name, rows in by_group.items() if name not in clients)
        words = "each client has those of its group" + (
            f"; {unheld:,} of no client's group are left out" * (unheld > 0)
        )
        parts = {name: by_group.get(name, np.empty(0, np.int64)) for name in clients}
    else:
        order = stream(seed, purpose="data.validation").permutation(len(given))
        words = "dealt out to the clients in equal parts at random"
        parts = {name: np.sort(rows) for name, rows in zip(clients, np.array_split(order, len(clients)), strict=True)}
    held = {name: ClientData(client.training, given.take(parts[name]).by_label()) for name, client in clients.items()}
    return held, Note(f"the {len(given):,} examples given for validation: {words}", is_warning=True)


def _validation_mask(clients: Words, split_by: Words | None, *, fraction: float, seed: int) -> Mask:
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
            f"{len(set(source.groups.tolist()))} groups; raise it, or set data.test = 0 for no test set"
        )
    return in_test


def refuse_shared_values(source: Source, given: Source | None, config: RunConfig) -> None:
    """Raise DataError for values of data.split_by that are both in the training part and in one given beside it."""
    if given is None or source.split_by is None or given.split_by is None:
        return
    if shared := sorted(set(source.split_by.tolist()) & set(given.split_by.tolist())):
        raise DataError(
            f"{_origin_of_test(config)}: values of {config.data.split_by!r} (data.split_by) that are in the training "
            f"set too: {enumeration(shared)}; keep each value in one of the two"
        )


def _origin_of_test(config: RunConfig) -> str:
    return config.data.test if isinstance(config.data.test, str) else f"{config.data.path}: the part for the test"
