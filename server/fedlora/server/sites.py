"""Who takes part in a run: the sites that answered, what they have in common, and the run's manifest."""

import math
import platform
import re
import time
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version

from flwr.app import MessageType
from flwr.serverapp import Grid

from fedlora.common.config import RunConfig
from fedlora.common.errors import RunError, StoreError
from fedlora.common.fates import num_left_out
from fedlora.common.messages import DescribeRequest, SiteDescription
from fedlora.server.conversation import Addressed, ask, expect
from fedlora.server.events import Listener, SitesDescribed, Waiting
from fedlora.server.lasting_grid import LastingGrid
from fedlora.server.store import RunFolder

_DESCRIBE = f"{MessageType.QUERY}.describe"
_WAIT_SECONDS = 60.0
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Site:
    """A client of the run: the Flower node it is reached at, and what it says of itself."""

    node: int
    description: SiteDescription


class Federation:
    """Who takes part: the way to the sites, and the sites by client name; with a lasting Grid they come and go."""

    def __init__(self, grid: Grid, folder: RunFolder, listener: Listener) -> None:
        self.grid = grid
        self._folder = folder
        self._listener = listener
        self._waiting_for = ""
        self.sites: dict[str, Site] = {}
        self.run_id = ""

    def gather(self, *, num_sites: int) -> None:
        """Wait for the run's sites; a run that goes on over a lasting Grid knows them already.

        Raises:
            RunError: too few sites came, one could not answer, or they do not fit together.
        """
        if not isinstance(self.grid, LastingGrid):
            self.sites = meet(self.grid, num_sites=num_sites)
            self._listener(SitesDescribed({name: site.description for name, site in self.sites.items()}))
            _require_test([site.description for site in self.sites.values()])
            return
        known = self._folder.sites()
        for name, description in known.items():
            self.sites[name] = Site(self.grid.node_of(name), description)
        if known:
            self._listener(SitesDescribed(known))
        if self._folder.manifest() is not None:
            return
        while len(ready := self.available()) < num_sites:
            names = f" ({', '.join(ready)})" if ready else ""
            self.wait_for(f"{len(ready)} of {num_sites} sites are ready{names}", seconds=_POLL_SECONDS)
        _require_test([site.description for site in self.sites.values()])

    def available(self, *, without: Collection[str] = ()) -> list[str]:
        """Return the sorted names of the sites that can be asked now, new ones included."""
        if isinstance(self.grid, LastingGrid):
            self._greet_new(self.grid)
            ready = set(self.grid.get_node_ids())
            return sorted(name for name, site in self.sites.items() if site.node in ready and name not in without)
        return sorted(name for name in self.sites if name not in without)

    def expected(self, patience: float, *, without: Collection[str] = ()) -> list[str]:
        """Return the sorted names of the sites that are there, or were within the last `patience` seconds."""
        present = self.available(without=without)
        if not isinstance(self.grid, LastingGrid):
            return present
        away = self.grid.seconds_away()
        return sorted(
            name
            for name, site in self.sites.items()
            if away.get(site.node, math.inf) <= patience and name not in without
        )

    def wait_for(self, what: str, *, seconds: float) -> None:
        """Say what the run waits for, once, and wait some of it; only over a lasting Grid."""
        if what != self._waiting_for:
            self._waiting_for = what
            self._listener(Waiting(what))
        if isinstance(self.grid, LastingGrid):
            self.grid.pause(seconds)

    @property
    def num_held_out(self) -> int:
        """The size of the held-out set that the sites can judge on, together where each has its own, 0 without."""
        descriptions = [site.description for site in self.sites.values()]
        if any(description.has_own_held_out for description in descriptions):
            return sum(description.num_held_out for description in descriptions)
        return descriptions[0].num_held_out

    @property
    def has_own_held_out(self) -> bool:
        """Whether each site has a held-out set of its own."""
        return any(site.description.has_own_held_out for site in self.sites.values())

    def identify(self, *, config: RunConfig, command: str) -> None:
        """Give a new run its id and manifest; a resumed one must have the same base model and data.

        Raises:
            StoreError: base model, data or labels are not those the run began with.
        """
        descriptions = [site.description for site in self.sites.values()]
        if not descriptions:
            raise StoreError(f"{self._folder.path}: the run has no sites.json; restore it, or start a new run")
        found: dict[str, object] = {
            "base_model": {"name": descriptions[0].base_model, "fingerprint": descriptions[0].base_model_fingerprint},
            "labels": list(descriptions[0].labels),
            "metric": descriptions[0].metric_name,
        }
        if descriptions[0].fingerprints:
            found["fingerprints"] = dict(descriptions[0].fingerprints)
        if not isinstance(self.grid, LastingGrid):
            # Where sites come and go, their data are their own affair.
            data = {description.client: description.data_fingerprint for description in descriptions}
            found["data"] = data if len(set(data.values())) > 1 else descriptions[0].data_fingerprint
        manifest = self._folder.manifest()
        if manifest is None:
            manifest = _new_manifest(config, command) | found
            self._folder.write_manifest(manifest)
        for key, value in found.items():
            if manifest.get(key) != value:
                raise StoreError(
                    f"{self._folder.path}: {key} is not what the run began with: {manifest.get(key)}, found {value}; "
                    "restore it, or start a new run"
                )
        self.run_id = str(manifest["run_id"])

    def _greet_new(self, grid: LastingGrid) -> None:
        """Take sites that have come, or come back as something else, into the run if they fit."""
        for name, description in grid.descriptions().items():
            known = self.sites.get(name)
            if known is not None and known.description == description:
                continue
            reference = next((site.description for other, site in self.sites.items() if other != name), None)
            if reference is not None and (code := _misfit(description, reference)):
                grid.turn_away(name, code)
                continue
            self.sites[name] = Site(grid.node_of(name), description)
            self.sites = dict(sorted(self.sites.items()))
            self._listener(SitesDescribed({name: description}))
            self._folder.write_sites({name: site.description for name, site in self.sites.items()})


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


def _require_test(descriptions: Collection[SiteDescription]) -> None:
    """Check that of the test sets that there are something can be used.

    Raises:
        RunError: all of their examples are left out.
    """
    left_out = sum(num_left_out(description.fates.get("test", {})) for description in descriptions)
    if left_out and not any(description.num_held_out for description in descriptions):
        raise RunError(
            f"all {left_out:,} test examples of the sites ({', '.join(sorted(each.client for each in descriptions))}) "
            'are left out; raise task.max_length, set task.too_long = "cut", or data.test = 0 for no test'
        )


def _new_manifest(config: RunConfig, command: str) -> dict[str, object]:
    """Return the part of a new run's manifest that is known before its sites are."""
    packages = ("fedlora", "flwr", "torch", "transformers", "peft", "numpy")
    return {
        "run_id": uuid.uuid4().hex,
        "name": config.run.name,
        "seed": config.run.seed,
        "aggregation": config.aggregation.model_dump(mode="json"),
        "command": command,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
    }


def _misfit(description: SiteDescription, reference: SiteDescription) -> str:
    """Return the code of what keeps a site out of a run that others are in, nothing where it fits."""
    if description.base_model_fingerprint != reference.base_model_fingerprint:
        return "other_base_model"
    for name in sorted(description.fingerprints.keys() | reference.fingerprints.keys()):
        if description.fingerprints.get(name) != reference.fingerprints.get(name):
            return f"other_{name}" if re.fullmatch("[a-z_]{1,30}", name) else "other_fingerprint"
    return "other_metric" if description.metric_name != reference.metric_name else ""


def _must_agree(sites: Mapping[str, Site]) -> None:
    reference = next(iter(sites.values())).description
    for name, site in sites.items():
        for what in ("base_model_fingerprint", "fingerprints", "labels", "version"):
            found, expected = getattr(site.description, what), getattr(reference, what)
            if found != expected:
                raise RunError(
                    f"{name} has {what} {found!r}, {reference.client} {expected!r}; all sites of a run need the same"
                )
