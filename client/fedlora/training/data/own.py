"""A site's own data: one client, with a held-out set of its own, in the run's vocabulary."""

import hashlib
from dataclasses import replace
from typing import cast

import numpy as np

from fedlora.common.config import RunConfig
from fedlora.common.errors import DataError
from fedlora.common.spelling import spelled, visible
from fedlora.training.data.examples import FederatedData
from fedlora.training.data.federated import deal_out, refuse_shared_values, test_mask, with_given_validation
from fedlora.training.data.run_source import joint_fingerprint, read_parts, vocabulary_of
from fedlora.training.data.source import NAMED_AT_MOST, Source


def load_own_data(config: RunConfig, *, client: str, only_group: str | None = None) -> FederatedData:
    """Return the data of one site, split as a simulation splits those of the client of this name.

    The held-out test set is the site's own. The draws come from the run's seed and the names of groups and client.

    Args:
        config: the run with the site's own `[data]`.
        client: the site's name.
        only_group: of a source with groups, the group whose examples are the site's.

    Raises:
        DataError: a source that cannot be used, an unknown group, or a label that the run does not have.
    """
    # What the server calls a test set would be a path on this machine.
    data = config.data if isinstance(config.data.test, float) else config.data.model_copy(update={"test": 0.0})
    config = config.model_copy(update={"data": data})
    wanted = getattr(config.task, "pixel_range", None)
    # What is found in this site's pictures alone would be another range than that of the other sites.
    parts = read_parts(config, wanted=None if wanted == "auto" else wanted)
    source, given_test, given_validation = parts.training, parts.test, parts.validation
    if only_group is not None:
        group = spelled(only_group)
        source = _of_group(source, group, origin=config.data.path)
        given_test = _same_group(given_test, group)
        given_validation = _same_group(given_validation, group)
    source = _named(source, client)
    given_test = None if given_test is None else _named(given_test, client)
    given_validation = None if given_validation is None else _named(given_validation, client)
    vocabulary = vocabulary_of(source, config)
    examples = source.examples(vocabulary, origin=config.data.path)
    for given in (given_validation, given_test):
        refuse_shared_values(source, given, config)
    in_test = np.zeros(len(examples), dtype=np.bool_)
    if given_test is None:
        in_test = test_mask(source, fraction=cast(float, data.test), seed=config.data_seed)
    clients = deal_out(
        examples,
        {client: np.flatnonzero(~in_test)},
        source.split_by,
        validation=data.validation if given_validation is None else 0.0,
        seed=config.data_seed,
    )
    notes = parts.notes
    if given_validation is not None:
        held = given_validation.examples(vocabulary, origin=f"{data.path}: the part for validation")
        clients, note = with_given_validation(clients, held, is_by_group=False, seed=config.data_seed)
        notes = (*notes, note)
    test = (
        examples.take(np.flatnonzero(in_test))
        if given_test is None
        else given_test.examples(vocabulary, origin=f"{data.path}: the part for the test")
    )
    fingerprint = joint_fingerprint([one for one in (source, given_validation, given_test) if one is not None])
    return FederatedData(vocabulary, clients, test.by_label(), fingerprint, notes, parts.pixel_range)


def _named(source: Source, client: str) -> Source:
    """Return a source without groups as one whose group is the client, as which a simulation knows its examples."""
    if np.any(source.groups != ""):
        return source
    return replace(source, groups=np.full(len(source.groups), client, dtype=np.object_))


def _same_group(source: Source | None, group: str) -> Source | None:
    """Return what of a part for test or validation is of the group, which may be nothing; all of one without groups."""
    if source is None or not np.any(source.groups != ""):
        return source
    rows = np.flatnonzero(source.groups == group)
    return source.take(rows, fingerprint=hashlib.sha256(f"{source.fingerprint} {group}".encode()).hexdigest())


def _of_group(source: Source, group: str, *, origin: str) -> Source:
    rows = np.flatnonzero(source.groups == group)
    if len(rows) == 0:
        names = sorted(set(source.groups.tolist()) - {""})
        found = ", ".join(visible(name).strip("'") for name in names[:NAMED_AT_MOST]) or "none"
        raise DataError(f"{origin}: no group {visible(group)} (data.only_group); the groups are {found}")
    return source.take(rows, fingerprint=hashlib.sha256(f"{source.fingerprint} {group}".encode()).hexdigest())
