"""What all sites of a run must have in common: as the run file pins it, else as most of those that wait have it."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fedlora.common.messages import SiteDescription
from fedlora.common.printable import printable

_SHOWN_CHARACTERS = 22  # "sha256:", twelve digits, and what says that there are more.


@dataclass(frozen=True)
class Ground:
    """What a site trains on and is judged by.

    Attributes:
        base_model: the fingerprint of the base weights.
        others: of what goes with them, by name, such as the tokenizer's; sorted.
        metric: the name of the metric.
    """

    base_model: str
    others: tuple[tuple[str, str], ...]
    metric: str


@dataclass(frozen=True)
class Pins:
    """What the run file says of the ground: the base model's fingerprint, "" for none, and others by name."""

    base_model: str = ""
    others: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Camp:
    """The sites that have one ground."""

    ground: Ground
    sites: tuple[str, ...]


def ground_of(description: SiteDescription) -> Ground:
    """Return what a site says it has."""
    others = tuple(sorted(description.fingerprints.items()))
    return Ground(description.base_model_fingerprint, others, description.metric_name)


def other_than(ground: Ground, expected: Ground) -> str:
    """Return the code of what keeps a site of one ground out of a run on another, nothing where they are the same."""
    if ground.base_model != expected.base_model:
        return "other_base_model"
    found, known = dict(ground.others), dict(expected.others)
    if code := _other_name(found, known, found.keys() | known.keys()):
        return code
    return "other_metric" if ground.metric != expected.metric else ""


def other_than_pinned(ground: Ground, pins: Pins) -> str:
    """Return the code of what keeps a site out by the run file, nothing where it says nothing against it."""
    if pins.base_model and ground.base_model != pins.base_model:
        return "other_base_model"
    return _other_name(dict(ground.others), pins.others, pins.others)


def camps_of(grounds: Mapping[str, Ground]) -> list[Camp]:
    """Return the sites by what they have, the largest camp first."""
    by_ground: dict[Ground, list[str]] = {}
    for site in sorted(grounds):
        by_ground.setdefault(grounds[site], []).append(site)
    camps = [Camp(ground, tuple(sites)) for ground, sites in by_ground.items()]
    return sorted(camps, key=lambda camp: (-len(camp.sites), camp.sites))


def decided(camps: Sequence[Camp]) -> Ground | None:
    """Return what more than half of the sites have, None where no camp is so large."""
    num_sites = sum(len(camp.sites) for camp in camps)
    return camps[0].ground if camps and 2 * len(camps[0].sites) > num_sites else None


def camps_text(camps: Sequence[Camp]) -> str:
    """Return in words who has what, of what the camps differ in: `a, b have base model sha256:12…; c has ...`."""
    return "; ".join(
        f"{', '.join(camp.sites)} {'has' if len(camp.sites) == 1 else 'have'} {_differing(camp.ground, camps)}"
        for camp in camps
    )


def _differing(ground: Ground, camps: Sequence[Camp]) -> str:
    every, mine = [_parts(camp.ground) for camp in camps], _parts(ground)
    names = sorted({name for parts in every for name in parts})
    differing = [name for name in names if len({parts.get(name) for parts in every}) > 1]
    return ", ".join(f"{_shown(name)} {_shown(mine.get(name, 'none'))}" for name in differing)


def _parts(ground: Ground) -> dict[str, str]:
    return {"base model": ground.base_model, "metric": ground.metric, **dict(ground.others)}


def _shown(value: str) -> str:
    """Return what a site has chosen, as an operator is shown it."""
    return printable(value, most=_SHOWN_CHARACTERS)


def _other_name(found: Mapping[str, str], expected: Mapping[str, str], names: Iterable[str]) -> str:
    for name in sorted(names):
        if found.get(name) != expected.get(name):
            return f"other_{name}" if re.fullmatch("[a-z_]{1,30}", name) else "other_fingerprint"
    return ""
