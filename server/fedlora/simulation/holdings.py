"""Who holds what in a simulation, for the report."""

from collections.abc import Mapping

import numpy as np

from fedlora.common.config import ByGroup, Dirichlet, Iid, LabelShards, PartitionSection, RunConfig
from fedlora.common.messages import SiteDescription
from fedlora.server.report import Holding, Holdings
from fedlora.server.report.data_notes import left_out_parts, unread
from fedlora.training.data import ClientData, FederatedData
from fedlora.training.partitioning import client_names


def holdings_of(data: FederatedData, config: RunConfig, sites: Mapping[str, SiteDescription] | None = None) -> Holdings:
    """Return each client's number of examples, by label where there are labels, and how they came to it.

    Args:
        sites: what the clients said of themselves, for what is left out or not read; None before they have.
    """
    sites = sites or {}
    num_labels = len(data.labels)
    return Holdings(
        [
            Holding(
                name,
                len(held.training),
                len(held.validation),
                tuple(np.bincount(held.training.labels, minlength=num_labels).tolist()) if num_labels else (),
            )
            for name, held in data.clients.items()
        ],
        labels=data.labels,
        num_test=len(data.test),
        partition=_words(config.partition) if _is_of(data.clients, config.partition) else _GIVEN,
        left_out=left_out_parts(sites),
        unread=unread(sites),
    )


_GIVEN = "The clients' data sets are those that were given to the run."


def _is_of(clients: Mapping[str, ClientData], section: PartitionSection) -> bool:
    """Return whether the clients may be those of the run file's partition, and not data sets given in its place."""
    if isinstance(section, ByGroup):
        return all(np.all(held.training.groups == name) for name, held in clients.items())
    return sorted(clients) == client_names(section.num_clients)


def _words(section: PartitionSection) -> str:
    match section:
        case ByGroup():
            return "The examples are dealt out by their natural group: each client holds one of them."
        case Iid():
            return "The examples are dealt out evenly and at random (iid): all clients see the same mixture."
        case Dirichlet():
            return (
                f"Each label is dealt out in shares drawn from a Dirichlet distribution with alpha {section.alpha:g}: "
                "the smaller alpha, the fewer labels a client sees."
            )
        case LabelShards():
            return (
                f"The examples, sorted by label, are cut into equal shards, and each client holds "
                f"{section.shards_per_client} of them."
            )
    return (
        f"The clients' sizes are drawn from a Dirichlet distribution with alpha {section.alpha:g}: "
        "the smaller alpha, the more a few of them hold."
    )
