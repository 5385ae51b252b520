"""The pages and their parts as HTML: values in, text out; the templates are the report's and those of this folder."""

import logging
import re
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING
from urllib.parse import quote

from fedlora.common.run_folder import AUDIT_FILE
from fedlora.dashboard.audit_page import AuditPage
from fedlora.dashboard.files import offered_adapters, quarantine
from fedlora.dashboard.found_runs import REPORT_FILE, FoundRuns
from fedlora.dashboard.known_run import PARTS, RunReader
from fedlora.dashboard.now import happening, run_facts, run_headline, run_subtitle, sites, state_words, time_words
from fedlora.dashboard.plots import plot
from fedlora.dashboard.queues import shown_queues
from fedlora.dashboard.rounds import error_map, on_learning, on_work
from fedlora.dashboard.run_list import ListedRun
from fedlora.dashboard.watched import WatchedRun
from fedlora.server.report.templating import template

if TYPE_CHECKING:
    from jinja2 import Template

logger = logging.getLogger(__name__)

# A part that is larger, of a folder that holds something else than a run of ours, is not sent.
_MOST_CHARACTERS = 24 << 20
# Control characters, and what turns the direction of writing: a name with these looks like another.
_UNSEEN = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def address(kind: str, place: str) -> str:
    """Return the path at which something of a run is asked for."""
    return f"/{kind}/{quote(place)}"


def run_part(reader: RunReader, place: str, part: str) -> str:
    """Return a part of a run's page, one of `PARTS`; what cannot be shown is said in its place."""
    try:
        html = _PARTS[part](reader, place)
    # A folder may hold anything, and one part that cannot be made is no reason to show none.
    except Exception:
        logger.exception("%s: the part %r of its page cannot be made", reader.folder.path, part)
        return _unshown("Something in this folder cannot be shown; the log of this command says what.")
    if len(html) > _MOST_CHARACTERS:
        return _unshown("There is more in this folder than a page can show.")
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), html)


def run_page(run: WatchedRun, place: str, *, is_alone: bool) -> str:
    """Return the page of a run, whole; `is_alone`: the folder that is looked at is this run's."""
    parts = {part: run.part(part) for part in PARTS}
    return _template("run.html.j2").render(
        title=place or run.folder.path.name,
        parts=parts,
        part_address=address("parts", place),
        events_address=address("events", place),
        is_alone=is_alone,
    )


def list_page(found: FoundRuns, rows: Sequence[ListedRun], mark: str, *, folder: str) -> str:
    """Return the page that lists the runs in a folder."""
    return _template("list.html.j2").render(
        title=folder, mark=mark, list=list_part(found, rows), part_address="/parts", events_address="/events"
    )


def list_part(found: FoundRuns, rows: Sequence[ListedRun]) -> str:
    """Return the part of that page that changes."""
    comparisons = {place: address("reports", place) for place in sorted(found.comparisons)}
    return _template("runs.html.j2").render(
        rows=[(row, address("runs", row.place)) for row in rows],
        queues=shown_queues(found.stores),
        comparisons=comparisons,
        is_cut=found.is_cut,
    )


def audit_page(page: AuditPage, place: str) -> str:
    """Return a page of a run's audit log."""
    return _template("audit.html.j2").render(
        title=f"Audit log{f' of {place}' if place else ''}",
        page=page,
        run_address=address("runs", place),
        audit_address=address("audit", place),
    )


def error_page(title: str, words: str) -> str:
    """Return a page that says why there is none."""
    return _template("error.html.j2").render(title=title, words=words)


def _now(reader: RunReader, _place: str) -> str:
    run = reader.known()
    return _template("now.html.j2").render(
        name=run.name,
        subtitle=run_subtitle(run),
        state=run.state,
        state_words=state_words(run),
        changed=time_words(run.changed),
        headline=run_headline(run),
        facts=run_facts(run),
        happening=happening(run),
        sites=sites(run),
    )


def _rounds(reader: RunReader, _place: str) -> str:
    run = reader.known()
    return _template("rounds.html.j2").render(before=on_learning(run), errors=error_map(run), after=on_work(run))


def _files(reader: RunReader, place: str) -> str:
    folder = reader.folder
    return _template("files.html.j2").render(
        adapters=offered_adapters(folder),
        quarantine=quarantine(folder),
        has_audit=folder.has_file(AUDIT_FILE),
        has_report=folder.has_file(REPORT_FILE),
        adapters_address=address("adapters", place),
        audit_address=address("audit", place),
        report_address=address("reports", place),
    )


_PARTS = {"now": _now, "rounds": _rounds, "files": _files}


def _unshown(words: str) -> str:
    return _template("unshown.html.j2").render(words=words)


@cache
def _template(name: str) -> "Template":
    return template(__package__, name, {"plot": plot, "ending": _ending})


def _ending(text: str, length: int) -> str:
    """Return the end of a name that is too long: what tells layers apart stands there."""
    return text if len(text) <= length else f"…{text[1 - length :]}"
