"""A site's own data: one client, with a held-out set of its own, in the run's vocabulary."""

import hashlib

import numpy as np

from fedlora.common.config import RunConfig
from fedlora.common.errors import DataError
from fedlora.training.data.examples import FederatedData
from fedlora.training.data.federated import deal_out, test_mask
from fedlora.training.data.run_source import read_source, vocabulary_of
from fedlora.training.data.source import Source


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
    source = read_source(config.data.path, config)
    if only_group is not None:
        source = _of_group(source, only_group, origin=config.data.path)
    vocabulary = vocabulary_of(source, config)
    examples = source.examples(vocabulary, origin=config.data.path)
    fraction = config.data.test if isinstance(config.data.test, float) else 0.0
    in_test = test_mask(source, fraction=fraction, seed=config.run.seed)
    clients = deal_out(
        examples,
        {client: np.flatnonzero(~in_test)},
        source.split_by,
        validation=config.data.validation,
        seed=config.run.seed,
    )
    test = examples.take(np.flatnonzero(in_test))
    return FederatedData(vocabulary, clients, test.by_label(), source.fingerprint, source.notes)


def _of_group(source: Source, group: str, *, origin: str) -> Source:
    rows = np.flatnonzero(source.groups == group)
    if len(rows) == 0:
        found = ", ".join(sorted(set(source.groups.tolist()))[:8]) or "none"
        raise DataError(f"{origin}: no group {group!r} (data.only_group); the groups are {found}")
    return source.take(rows, fingerprint=hashlib.sha256(f"{source.fingerprint} {group}".encode()).hexdigest())
