"""What the clients' data are not used for, in lines for a terminal or the report. Pure."""

from collections.abc import Mapping, Sequence

from fedlora.common.fates import CUT, PARTS, fate_line, num_left_out, reasons
from fedlora.common.messages import SiteDescription
from fedlora.server.report.left_out import LeftOut

_MOST_CLIENTS = 12


def data_notes(sites: Mapping[str, SiteDescription]) -> tuple[str, ...]:
    """Return a line for each client and part of which examples are left out or cut, and for what nobody reads.

    A test set that all share has one line. Of many clients, those that lose the largest share of their training
    examples are named, and the others are added up.
    """
    shared, parts = _shared_test(sites)
    lines = [] if shared is None else [f"test set: {line}" for line in shared.fate_lines("test")]
    named = {name: found for name, site in sites.items() if (found := site.fate_lines(*parts))}
    if len(named) > _MOST_CLIENTS:
        by_loss = sorted(named, key=lambda name: (-_lost(sites[name]), name))
        others = [sites[name] for name in by_loss[_MOST_CLIENTS:]]
        named = {name: named[name] for name in sorted(by_loss[:_MOST_CLIENTS])}
        named[f"{len(others)} more clients"] = [line for part in parts if (line := _line_of_all(others, part))]
    return (*unread(sites), *lines, *(f"{name}: {line}" for name, found in named.items() for line in found))


def unread(sites: Mapping[str, SiteDescription]) -> tuple[str, ...]:
    """Return what of the clients' data nobody reads, each line once."""
    return tuple(dict.fromkeys(note for site in sites.values() for note in site.notes))


def _shared_test(sites: Mapping[str, SiteDescription]) -> tuple[SiteDescription | None, Sequence[str]]:
    """Return one of the clients that share a test set, if they do, and the parts that each client has of its own."""
    shared = next((site for site in sites.values() if not site.has_own_held_out), None)
    return shared, PARTS if shared is None else ("training", "validation")


def _line_of_all(sites: list[SiteDescription], part: str) -> str:
    total: dict[str, int] = {}
    for site in sites:
        for code, number in site.fates.get(part, {}).items():
            total[code] = total.get(code, 0) + number
    return fate_line(part, total, num_used=sum(site.num_used(part) for site in sites))


def _lost(site: SiteDescription) -> float:
    """Return the share of a client's training examples that is left out or cut."""
    fates = site.fates.get("training", {})
    return sum(fates.values()) / max(1, site.num_examples + sum(fates.values()))


def left_out_parts(sites: Mapping[str, SiteDescription]) -> tuple[LeftOut, ...]:
    """Return for each part of a client's data what is left out or cut, as the report shows it."""
    shared, parts = _shared_test(sites)
    found = [] if shared is None else [("all", shared, "test")]
    found += [(name, site, part) for name, site in sorted(sites.items()) for part in parts]
    return tuple(_left_out(name, site, part) for name, site, part in found if any(site.fates.get(part, {}).values()))


def _left_out(name: str, site: SiteDescription, part: str) -> LeftOut:
    fates, used = site.fates[part], site.num_used(part)
    return LeftOut(name, part, used + num_left_out(fates), used, fates.get(CUT, 0), reasons(fates))
