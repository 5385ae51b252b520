"""Who takes part in a run: the sites that answered, what they have in common, and the run's manifest."""

import math
import platform
import re
import uuid
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from importlib.metadata import version

from fedlora.common.config import RunConfig
from fedlora.common.errors import DiskFull, RunError, StoreError
from fedlora.common.fates import num_left_out
from fedlora.common.messages import SiteDescription
from fedlora.server.disk.audit import run_id_in
from fedlora.server.disk.store import RunFolder
from fedlora.server.record.events import Listener, SitesDescribed, Waiting
from fedlora.server.sites import Sites

_FULL_PAUSE_SECONDS = 2.0


class Federation:
    """Who takes part in a run: the clients by name, with what they say of themselves, and the way to them.

    Attributes:
        link: the way to them.
        sites: those that have taken part, by name.
    """

    def __init__(self, link: Sites, folder: RunFolder, listener: Listener) -> None:
        self.link = link
        self._folder = folder
        self._listener = listener
        self._waiting_for = ""
        self.sites: dict[str, SiteDescription] = {}
        self.run_id = ""

    def gather(self, *, num_sites: int) -> None:
        """Wait for the run's sites; a run that goes on, of sites that come and go, knows them already.

        Raises:
            RunError: too few sites came, one could not answer, or they do not fit together.
        """
        if self.link.are_fixed:
            self.sites = dict(self.link.descriptions())
            _must_agree(self.sites)
            self._listener(SitesDescribed(dict(self.sites)))
            _require_test(self.sites.values())
            return
        known = self._folder.sites()
        self.sites = dict(known)
        self.link.remember(known)
        if known:
            self._listener(SitesDescribed(known))
        if self._folder.manifest() is not None:
            return
        while len(ready := self.available()) < num_sites:
            names = f" ({', '.join(ready)})" if ready else ""
            self.wait_for(what := f"{len(ready)} of {num_sites} sites are ready{names}", seconds=0.1, hopeless=what)
        _require_test(self.sites.values())

    def available(self, *, without: Collection[str] = ()) -> list[str]:
        """Return the sorted names of the sites that can be asked now, new ones included."""
        ready = self.link.descriptions()
        fitting = ready.keys() - self._greet_new(ready)
        return sorted(name for name in self.sites if name in fitting and name not in without)

    def expected(self, patience: float, *, without: Collection[str] = ()) -> list[str]:
        """Return the sorted names of the sites that are there, or were within the last `patience` seconds."""
        self._greet_new(self.link.descriptions())
        away = self.link.seconds_away()
        return sorted(name for name in self.sites if away.get(name, math.inf) <= patience and name not in without)

    def seconds_away(self, site: str) -> float:
        """Return for how long a site has not been there; infinite for one that nobody knows."""
        return self.link.seconds_away().get(site, math.inf)

    def wait_for(self, what: str, *, seconds: float, hopeless: str) -> None:
        """Say what the run waits for, once, and wait some of it.

        Raises:
            RunError: nobody can come who is not there; it says `hopeless`.
        """
        if self.link.are_fixed:
            raise RunError(hopeless)
        if what != self._waiting_for:
            self._waiting_for = what
            self._listener(Waiting(what))
        self.link.pause(seconds)

    def wait_for_space(self, error: DiskFull) -> None:
        """Wait a little, where the disk has no room for what is to be written.

        Raises:
            RunStopped: the run is to stop.
        """
        self.wait_for(f"there is no room on the disk: {error}", seconds=_FULL_PAUSE_SECONDS, hopeless=str(error))

    @property
    def num_held_out(self) -> int:
        """The size of the held-out set that the sites can judge on, together where each has its own, 0 without."""
        descriptions = list(self.sites.values())
        if any(description.has_own_held_out for description in descriptions):
            return sum(description.num_held_out for description in descriptions)
        return descriptions[0].num_held_out

    @property
    def has_own_held_out(self) -> bool:
        """Whether each site has a held-out set of its own."""
        return any(description.has_own_held_out for description in self.sites.values())

    def identify(self, *, config: RunConfig, command: str) -> None:
        """Give a new run its id and manifest; a resumed one must have the same base model and data.

        Raises:
            StoreError: base model, data or labels are not those the run began with.
        """
        descriptions = list(self.sites.values())
        if not descriptions:
            raise StoreError(f"{self._folder.path}: the run has no sites.json; restore it, or start a new run")
        found: dict[str, object] = {
            "base_model": {"name": descriptions[0].base_model, "fingerprint": descriptions[0].base_model_fingerprint},
            "labels": list(descriptions[0].labels),
            "metric": descriptions[0].metric_name,
        }
        if descriptions[0].fingerprints:
            found["fingerprints"] = dict(descriptions[0].fingerprints)
        if self.link.are_fixed:
            # Where sites come and go, their data are their own affair.
            data = {description.client: description.data_fingerprint for description in descriptions}
            found["data"] = data if len(set(data.values())) > 1 else descriptions[0].data_fingerprint
        manifest = self._folder.manifest()
        if manifest is None:
            run_id = run_id_in(self._folder.path) or uuid.uuid4().hex
            manifest = _new_manifest(config, command, run_id) | found
            self._folder.write_manifest(manifest)
        for key, value in found.items():
            if manifest.get(key) != value:
                raise StoreError(
                    f"{self._folder.path}: {key} is not what the run began with: {manifest.get(key)}, found {value}; "
                    "restore it, or start a new run"
                )
        self.run_id = str(manifest["run_id"])

    def _greet_new(self, ready: Mapping[str, SiteDescription]) -> set[str]:
        """Take sites that have come, or come back as something else, into the run if they fit; return who does not."""
        turned_away: set[str] = set()
        for name, description in ready.items():
            if self.sites.get(name) == description:
                continue
            reference = next((known for other, known in self.sites.items() if other != name), None)
            if reference is not None and (code := _misfit(description, reference)):
                self.link.turn_away(name, code)
                turned_away.add(name)
                continue
            self.sites = dict(sorted((self.sites | {name: description}).items()))
            self._listener(SitesDescribed({name: description}))
            self._folder.write_sites(self.sites)
        return turned_away


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


def _new_manifest(config: RunConfig, command: str, run_id: str) -> dict[str, object]:
    """Return the part of a new run's manifest that is known before its sites are."""
    packages = ("fedlora", "flwr", "torch", "transformers", "peft", "numpy")
    return {
        "run_id": run_id,
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


def _must_agree(sites: Mapping[str, SiteDescription]) -> None:
    reference = next(iter(sites.values()))
    for name, description in sites.items():
        for what in ("base_model_fingerprint", "fingerprints", "labels", "version"):
            found, expected = getattr(description, what), getattr(reference, what)
            if found != expected:
                raise RunError(
                    f"{name} has {what} {found!r}, {reference.client} {expected!r}; all sites of a run need the same"
                )
