"""How many clients a run has, and how many examples the largest of them: of its data where those are at hand."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedlora.common.config import ByGroup, RunConfig
from fedlora.common.errors import FedloraError
from fedlora.training.data import load_federated_data
from fedlora.training.data.located import locate

ASSUMED_EXAMPLES = 1000
# More than this is not read for a plan, which is to answer at once.
_MOST_BYTES = 200 * 10**6


@dataclass(frozen=True)
class PlannedClients:
    """The clients of a run.

    Attributes:
        num_clients: in all.
        num_examples: for training, of the client that has most; assumed where its data are not known.
        notes: where these numbers are from.
        sizes: by client, its examples for training, where the data are known.
    """

    num_clients: int
    num_examples: int
    notes: tuple[str, ...]
    sizes: Mapping[str, int] = field(default_factory=dict)


def planned_clients(config: RunConfig) -> PlannedClients:
    """Return the clients that the run's data are dealt out to, else those that a deployment waits for.

    The data are looked at where they tell more than the run file does: the clients of a partition by group, and a
    client's examples where epochs are trained, or examples are private.
    """
    needs_groups, needs_sizes = isinstance(config.partition, ByGroup), _needs_sizes(config)
    told = getattr(config.partition, "num_clients", None)
    why_needed = "train.epochs; the time grows with them" if config.train.epochs is not None else "its privacy"
    assumed = f"{ASSUMED_EXAMPLES:,} examples of a client are assumed for {why_needed}"
    sites = config.federation.sites
    if not needs_groups and not needs_sizes:
        return PlannedClients(told or sites, ASSUMED_EXAMPLES, ())
    if _is_deployment(config):
        why = f"{sites} clients, by federation.sites: the run file names no data.path, so they are each site's own"
    elif why := _why_unread(config):
        why = f"{told or sites} clients, by {'partition.num_clients' if told else 'federation.sites'}: {why}"
    else:
        try:
            held = load_federated_data(config).clients
        except FedloraError as error:
            why = f"{told or sites} clients, by {'partition.num_clients' if told else 'federation.sites'}: {error}"
        else:
            largest = max(held, key=lambda name: len(held[name].training))
            num_examples = len(held[largest].training)
            words = f"{len(held)} clients, by the {'groups' if needs_groups else 'partition'} of {config.data.path}"
            size = f"; the largest, {largest}, trains on {num_examples:,} examples"
            deployed = f"; a deployment begins with {sites} (federation.sites)" if sites != len(held) else ""
            sizes = {name: len(client.training) for name, client in sorted(held.items())}
            return PlannedClients(len(held), num_examples, (words + size + deployed,), sizes)
    return PlannedClients(told or sites, ASSUMED_EXAMPLES, (why, *([assumed] if needs_sizes else [])))


def _needs_sizes(config: RunConfig) -> bool:
    return config.train.epochs is not None or config.privacy.unit == "example"


def _is_deployment(config: RunConfig) -> bool:
    """Return whether the run file is one whose data lie at its sites: it says how many these are, and names none."""
    return "sites" in config.federation.model_fields_set and "path" not in config.data.model_fields_set


def _why_unread(config: RunConfig) -> str:
    """Return why the run's data are not looked at; nothing where they are."""
    try:
        found = locate(config.data.path)
    except FedloraError as error:
        return str(error)
    if isinstance(found, str):
        return f"{found} may have to be fetched, which a plan does not"
    paths = found if isinstance(found, list) else [found]
    size = sum(map(_size_bytes, paths))
    return f"{config.data.path} has {size / 1e9:.1f} GB, which a plan does not read" if size > _MOST_BYTES else ""


def _size_bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files if file.is_file())
