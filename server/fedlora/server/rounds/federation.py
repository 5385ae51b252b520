"""Who takes part in a run: the sites that answered, what they have in common, and the run's manifest."""

import logging
import math
import platform
import uuid
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from fedlora.common.config import RunConfig
from fedlora.common.errors import DiskFull, RunError, StoreError
from fedlora.common.fates import num_left_out
from fedlora.common.messages import SiteDescription
from fedlora.server.disk.audit import run_id_in
from fedlora.server.disk.store import RunFolder
from fedlora.server.record.events import Listener, Noted, ScoreNotFinite, SitesDescribed, Waiting
from fedlora.server.record.hourly import Hourly
from fedlora.server.rounds.ending import shortened
from fedlora.server.rounds.ground import (
    Ground,
    Pins,
    camps_of,
    camps_text,
    decided,
    ground_of,
    other_than,
    other_than_pinned,
)
from fedlora.server.rounds.misses import Misses
from fedlora.server.sites import Sites

logger = logging.getLogger(__name__)
_FULL_PAUSE_SECONDS = 2.0


class Federation:
    """Who takes part in a run: the clients by name, with what they say of themselves, and the way to them.

    Attributes:
        link: the way to them.
        sites: those that have taken part, by name.
        misses: of requests for anything but an update.
        spent: the sites whose privacy budget is spent: they can train no more in this run.
    """

    def __init__(self, link: Sites, folder: RunFolder, listener: Listener, config: RunConfig) -> None:
        self.link = link
        self._folder = folder
        self._listener = listener
        self._pins = Pins(config.model.fingerprint or "", config.model.fingerprints)
        self._answer_seconds = math.inf if link.are_fixed else config.federation.answer_seconds
        self._ground: Ground | None = None
        self._waiting_for = ""
        self.misses = Misses()
        self._hourly = Hourly()
        self.sites: dict[str, SiteDescription] = {}
        self.spent: set[str] = set()
        self.run_id = ""

    def gather(self, *, num_sites: int) -> None:
        """Wait for the run's sites; a run that goes on, of sites that come and go, knows them already.

        Where they come and go, more than half of those that are ready once there are enough say what base model is the
        run's, unless the run file does. The run begins with these, and the others are turned away.

        Raises:
            RunError: too few sites came, one could not answer, or they do not fit together.
        """
        if self.link.are_fixed:
            self.sites = dict(self.link.descriptions())
            _must_agree(self.sites)
            self._ground = ground_of(next(iter(self.sites.values())))
            self._require_pinned(self._ground)
            self._listener(SitesDescribed(dict(self.sites)))
            _require_test(self.sites.values())
            return
        manifest = self._folder.manifest()
        if manifest is not None:
            self._ground = _ground_in(manifest)
            known = self._folder.sites()
            self.sites = dict(known)
            self.link.remember(known)
            if known:
                self._listener(SitesDescribed(known))
            return
        while what := self._decide(ready := self.link.descriptions(), num_sites):
            self.wait_for(what, seconds=0.1, hopeless=what)
        self.go_on()
        self._greet_new(ready)
        _require_test(self.sites.values())

    def answer_seconds(self, site: str) -> float:
        """Return for how long a site is waited for that is asked for anything but an update."""
        return shortened(self._answer_seconds, self.misses.of(site))

    @property
    def has_budget(self) -> bool:
        """Whether there is a site whose privacy budget is not spent."""
        return not self.sites.keys() <= self.spent

    def note_spent(self, sites: Collection[str]) -> None:
        """Note that sites can train no more, and tell whoever looks on."""
        for name in sorted(set(sites) - self.spent):
            self.note(f"{name} has spent its privacy budget, and trains no more in this run")
        self.spent |= set(sites)

    def note(self, line: str) -> None:
        """Tell whoever looks on something that they should know."""
        self._listener(Noted((line,)))

    def note_not_finite(self, round: int, site: str) -> None:
        """Tell whoever looks on that a site's score of a round's adapter is NaN or infinite."""
        self._listener(ScoreNotFinite(round, site))

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

    def go_on(self) -> None:
        """Say that the run waits no more, if it did."""
        if self._waiting_for:
            self._waiting_for = ""
            self._listener(Waiting(""))

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
        descriptions, ground = list(self.sites.values()), self._ground
        if not descriptions or ground is None:
            raise StoreError(f"{self._folder.path}: the run has no sites.json; restore it, or start a new run")
        found: dict[str, object] = {
            "base_model": {"name": descriptions[0].base_model, "fingerprint": ground.base_model},
            "labels": list(descriptions[0].labels),
            "metric": ground.metric,
        }
        if ground.others:
            found["fingerprints"] = dict(ground.others)
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

    def _decide(self, ready: Mapping[str, SiteDescription], num_sites: int) -> str:
        """Find out what the run's ground is, and return what is waited for while that is open.

        Nobody is turned away before, but who has something else than the run file pins.
        """
        grounds = {name: ground_of(description) for name, description in ready.items()}
        for name, ground in grounds.items():
            if code := other_than_pinned(ground, self._pins):
                self.link.turn_away(name, code)
        fitting = {name: ground for name, ground in grounds.items() if not other_than_pinned(ground, self._pins)}
        camps = camps_of(fitting)
        said = camps_text(camps) if len(camps) > 1 else ""
        if len(fitting) < num_sites:
            names = f" ({', '.join(sorted(fitting))})" if fitting else ""
            return f"{len(fitting)} of {num_sites} sites are ready{names}{said and f'; they differ: {said}'}"
        self._ground = decided(camps)
        if self._ground is None:
            return (
                f"the {len(fitting)} sites that are ready differ, and no more than half of them agree: {said}; pin the "
                "right one (model.fingerprint), revoke the wrong ones, or let more sites come"
            )
        if said:
            self.note(f"the sites differ, and the run goes by most of them: {said}")
        return ""

    def _greet_new(self, ready: Mapping[str, SiteDescription]) -> set[str]:
        """Take sites that have come, or come back as something else, into the run if they fit; return who does not."""
        turned_away: set[str] = set()
        for name, description in ready.items():
            if self.sites.get(name) == description:
                continue
            code = self._other_size(name, description)
            if code or (self._ground is not None and (code := other_than(ground_of(description), self._ground))):
                self.link.turn_away(name, code)
                turned_away.add(name)
                continue
            self.sites = dict(sorted((self.sites | {name: description}).items()))
            self._listener(SitesDescribed({name: description}))
            self._folder.write_sites(self.sites)
        return turned_away

    def _require_pinned(self, ground: Ground) -> None:
        """Check that the sites have what the run file pins.

        Raises:
            RunError: they have something else.
        """
        if code := other_than_pinned(ground, self._pins):
            raise RunError(
                f"{code}: the base model has the fingerprint {ground.base_model} ({dict(ground.others)}); the run file "
                f"pins {self._pins.base_model or 'none'} ({dict(self._pins.others)}); correct model.fingerprint or "
                "model.fingerprints, or take the model that it is of"
            )

    def _other_size(self, name: str, description: SiteDescription) -> str:
        """Return the code of a site that comes back with another number of training examples, which it weighs by."""
        known = self.sites.get(name)
        if not self.run_id or known is None or known.num_examples == description.num_examples:
            return ""
        # However often it comes.
        if self._hourly.admits("other size", name):
            logger.warning(
                "%s holds %s training examples, and held %s before: it is turned away; with other data it can be "
                "invited as another site",
                name,
                f"{description.num_examples:,}",
                f"{known.num_examples:,}",
            )
        return "other_num_examples"


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


def _ground_in(manifest: Mapping[str, Any]) -> Ground:
    """Return what the sites of a run that goes on have in common."""
    others = tuple(sorted(manifest.get("fingerprints", {}).items()))
    return Ground(manifest.get("base_model", {}).get("fingerprint", ""), others, manifest.get("metric", ""))


def _must_agree(sites: Mapping[str, SiteDescription]) -> None:
    reference = next(iter(sites.values()))
    for name, description in sites.items():
        for what in ("base_model_fingerprint", "fingerprints", "labels", "version"):
            found, expected = getattr(description, what), getattr(reference, what)
            if found != expected:
                raise RunError(
                    f"{name} has {what} {found!r}, {reference.client} {expected!r}; all sites of a run need the same"
                )
