"""What a terminal says of a run once and for all, above whatever renews itself. Pure."""

from fedlora.server.record.events import FLAGS, Event, Noted, SitesDescribed, UpdateArrived
from fedlora.server.report.data_notes import data_notes


def note_lines(event: Event) -> list[str]:
    """Return what an event notes, in a line each; nothing for most."""
    lines: tuple[str, ...] = ()
    if isinstance(event, Noted):
        lines = event.lines
    if isinstance(event, SitesDescribed):
        lines = data_notes(event.sites)
    if isinstance(event, UpdateArrived) and event.flag and not event.reason:
        lines = (f"round {event.round}: the update of {event.client} is {FLAGS[event.flag]}",)
    return [f"note: {line}" for line in lines]
