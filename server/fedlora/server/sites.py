"""Who takes part in a run: the sites that answered, what they have in common, and the run's manifest."""

import platform
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version

from flwr.app import MessageType
from flwr.serverapp import Grid

from fedlora.common.config import RunConfig
from fedlora.common.errors import RunError, StoreError
from fedlora.common.messages import DescribeRequest, SiteDescription
from fedlora.server.conversation import Addressed, ask, expect
from fedlora.server.store import RunFolder

_DESCRIBE = f"{MessageType.QUERY}.describe"
_WAIT_SECONDS = 60.0
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Site:
    """A client of the run: the Flower node it is reached at, and what it says of itself."""

    node: int
    description: SiteDescription


@dataclass(frozen=True)
class Federation:
    """Who takes part: the way to the sites, the sites by client name, and the run they agreed on."""

    grid: Grid
    sites: Mapping[str, Site]
    run_id: str

    @property
    def num_held_out(self) -> int:
        """The size of the held-out set that the sites can judge on, 0 where there is none."""
        return next(iter(self.sites.values())).description.num_held_out


def meet(grid: Grid, *, num_sites: int) -> dict[str, Site]:
    """Return the run's sites by client name, once `num_sites` have said who they are.

    Raises:
        RunError: too few sites came, one could not answer, or they do not fit together.
    """
    deadline = time.monotonic() + _WAIT_SECONDS
    while len(nodes := list(grid.get_node_ids())) < num_sites:
        if time.monotonic() > deadline:
            raise RunError(f"{len(nodes)} of {num_sites} clients have joined within {_WAIT_SECONDS:.0f} s")
        time.sleep(_POLL_SECONDS)
    requests = {f"node {node}": Addressed(node, lambda _attempt: DescribeRequest()) for node in nodes}
    sites: dict[str, Site] = {}
    for answer in ask(grid, requests, message_type=_DESCRIBE, expected=SiteDescription):
        description = expect(answer)
        if description.client in sites:
            raise RunError(f"two clients are named {description.client!r}; each needs a name of its own")
        sites[description.client] = Site(requests[answer.key].node, description)
    _must_agree(sites)
    return dict(sorted(sites.items()))


def identify(sites: Mapping[str, Site], folder: RunFolder, *, config: RunConfig, command: str) -> str:
    """Return the run's id; a new run gets a manifest, a resumed one must have the same base model and data.

    Raises:
        StoreError: base model, data or labels are not those the run began with.
    """
    descriptions = [site.description for site in sites.values()]
    data = {description.client: description.data_fingerprint for description in descriptions}
    found = {
        "base_model": {"name": descriptions[0].base_model, "fingerprint": descriptions[0].base_model_fingerprint},
        "data": data if len(set(data.values())) > 1 else descriptions[0].data_fingerprint,
        "labels": list(descriptions[0].labels),
        "metric": descriptions[0].metric_name,
    }
    manifest = folder.manifest()
    if manifest is None:
        manifest = _new_manifest(config, command) | found
        folder.write_manifest(manifest)
    for key, value in found.items():
        if manifest[key] != value:
            raise StoreError(
                f"{folder.path}: {key} is not what the run began with: {manifest[key]}, found {value}; "
                "restore it, or start a new run"
            )
    return str(manifest["run_id"])


def _new_manifest(config: RunConfig, command: str) -> dict[str, object]:
    """Return the part of a new run's manifest that is known before its sites are."""
    packages = ("fedlora", "flwr", "torch", "transformers", "peft", "numpy")
    return {
        "run_id": uuid.uuid4().hex,
        "name": config.run.name,
        "seed": config.run.seed,
        "command": command,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
    }


def _must_agree(sites: Mapping[str, Site]) -> None:
    reference = next(iter(sites.values())).description
    for name, site in sites.items():
        for what in ("base_model_fingerprint", "labels", "version"):
            found, expected = getattr(site.description, what), getattr(reference, what)
            if found != expected:
                raise RunError(
                    f"{name} has {what} {found!r}, {reference.client} {expected!r}; all sites of a run need the same"
                )
