"""What a terminal says of a run once and for all, above whatever renews itself. Pure."""

from fedlora.server.record.events import Event, Noted, SitesDescribed
from fedlora.server.report.data_notes import data_notes


def note_lines(event: Event) -> list[str]:
    """Return what an event notes, in a line each; nothing for most."""
    lines: tuple[str, ...] = ()
    if isinstance(event, Noted):
        lines = event.lines
    if isinstance(event, SitesDescribed):
        lines = data_notes(event.sites)
    return [f"note: {line}" for line in lines]
