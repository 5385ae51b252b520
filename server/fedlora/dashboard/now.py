"""The part of a run's page on this moment: state, the round at work, sites, key figures. Pure."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fedlora.common.printable import printable
from fedlora.dashboard.known_run import KnownRun
from fedlora.server.record.events import SITE_STATES
from fedlora.server.record.round_report import ClientReport
from fedlora.server.report.content import Columns, Section, table
from fedlora.server.report.headline import Fact, facts, headline
from fedlora.server.report.numbers import by_client
from fedlora.server.report.run_line import summary
from fedlora.server.report.wording import UNKNOWN, bytes_text, count_text, list_text, loss_text, reason_text

_LONGEST = 300


@dataclass(frozen=True)
class _Site:
    """A site or client as it stands.

    Attributes:
        update: what became of it in the round at work.
        loss: of its last training.
        accepted, refused: how many of its updates were, and why the last one was refused.
    """

    name: str
    state: str
    heard: str
    update: str
    examples: str
    loss: str
    accepted: str
    refused: str
    reason: str


_COLUMNS: Columns[_Site] = (
    ("name", lambda site: site.name),
    ("state", lambda site: site.state),
    ("last heard of, UTC", lambda site: site.heard),
    ("this round", lambda site: site.update),
    ("last refused because", lambda site: site.reason),
    ("updates accepted", lambda site: site.accepted),
    ("refused", lambda site: site.refused),
    ("training examples", lambda site: site.examples),
    ("last loss", lambda site: site.loss),
)


def run_headline(run: KnownRun) -> str:
    """Return the outcome so far in a sentence."""
    if not run.reports:
        return "No round is finished yet."
    return headline(run.reports, run.metric_name, num_rounds=run.num_rounds)


def run_facts(run: KnownRun) -> list[Fact]:
    """Return the run's key figures so far."""
    return facts(run.reports, run.metric_name, num_rounds=run.num_rounds, worked=run.worked) if run.reports else []


def run_subtitle(run: KnownRun) -> str:
    """Return the run in a line; nothing where its file is not known."""
    if run.config is None:
        return ""
    taking_part = {name for report in run.reports for name in report.cohort}
    return summary(run.config, num_clients=len(run.sites) or len(taking_part) or run.config.federation.sites)


def state_words(run: KnownRun) -> str:
    """Return in which state a run is, and at which round."""
    number = _round(run)
    at = f"round {number} of {run.num_rounds}" if number else "before its first round"
    phase = _text(run.status.get("phase", ""), 60)
    if run.is_running and run.state == "running" and phase and phase != "training":
        return f"running: {at}, {phase}"
    if run.state in ("finished", "starting"):
        return run.state
    return f"{run.state}: {at}"


def time_words(moment: datetime | None) -> str:
    """Return a moment for people, in UTC."""
    return UNKNOWN if moment is None else f"{moment:%Y-%m-%d %H:%M} UTC"


def happening(run: KnownRun) -> list[str]:
    """Return what an operator should know of this moment, in a sentence each."""
    found: Mapping[str, Any] = run.status
    said = [_text(fault) for fault in run.faults]
    if found.get("failure"):
        said.append(f"It failed: {_text(found['failure'])}")
    if run.state in ("failed", "stopped", "killed"):
        said.append(_way_on(run))
    if run.state == "interrupted":
        said.append("No process works on it. To go on, give the same command with --resume.")
    if run.is_running and found.get("waiting_for"):
        said.append(f"Waiting: {_text(found['waiting_for'])}.")
    if (rollback := run.rollback) is not None:
        since = f"since {_text(rollback.at[:16].replace('T', ' '), 16)} UTC, by {_text(rollback.by, 60)}"
        said.append(f"Rolled back: {_text(rollback.name, 100)} is offered in place of newer adapters, {since}.")
    disk = found.get("disk")
    if run.is_running and isinstance(disk, dict):
        free, needed = (bytes_text(float(disk.get(key) or 0)) for key in ("free_bytes", "needed_bytes"))
        said.append(f"The disk is too full: {free} free, {needed} needed; free some space on that of the run's folder.")
    cohort = found.get("cohort") or []
    if run.is_running and cohort and found.get("last_round") != found.get("round"):
        num = f"{len(found.get('accepted') or [])} of {count_text(len(cohort), 'update')} accepted"
        refused = found.get("refused") or {}
        because = [f"{_text(name, 60)} ({reason_text(_text(reason))})" for name, reason in refused.items()]
        said.append(f"Round {found.get('round')}: {num}{'; refused: ' + list_text(because) if because else ''}.")
    return said


def sites(run: KnownRun) -> Section | None:
    """Return who takes part, by state; nothing before anybody is known."""
    standings = _standings(run)
    states = {name: str(each.get("state", "")) for name, each in standings.items()}
    refusals, accepted = _refusals(run), by_client(run.reports, lambda client: client)
    names = sorted({*states, *run.sites, *refusals, *accepted, *(name for at in run.reports for name in at.cohort)})
    if not names:
        return None
    order = {state: place for place, state in enumerate(reversed(SITE_STATES))}
    shown = [
        _Site(
            name=_text(name, 100),
            state=_standing_text(standings.get(name, {})),
            heard=str(standings.get(name, {}).get("heard", "")).replace("T", " ")[:19] or UNKNOWN,
            update=_update(run, name),
            examples=_examples(run, name, accepted),
            loss=loss_text(accepted[name][max(accepted[name])].loss) if name in accepted else UNKNOWN,
            accepted=f"{len(accepted.get(name, ())):,}" if accepted else UNKNOWN,
            refused=f"{refusals[name][0]:,}" if name in refusals else UNKNOWN if not refusals else "0",
            reason=reason_text(_text(refusals[name][1])) if name in refusals else UNKNOWN,
        )
        for name in sorted(names, key=lambda name: (order.get(states.get(name, ""), len(order)), name))
    ]
    counts = Counter(states.values())
    by_state = [f"{counts[state]} {state}" for state in reversed(SITE_STATES) if counts[state]]
    about = f"{count_text(len(names), 'site')}: {list_text(by_state, limit=6)}." if by_state else ""
    if standings and not run.is_running:
        about += " This is how they stood when the server ended."
    noun, caption = ("Sites", "Each site") if standings else ("Clients", "Each client")
    num_text_columns = sum(any(of(site) != UNKNOWN for site in shown) for _, of in _COLUMNS[:5])
    return Section(noun, [[about]], table=table(caption, _COLUMNS, shown, num_text_columns=num_text_columns))


def _way_on(run: KnownRun) -> str:
    """Return how a run that a server has ended, or left, goes on."""
    if not run.is_in_store:
        return "To go on, give the same start command again."
    submit, start = "fedlora runs submit RUN.toml --store DIR", "fedlora server start --store DIR"
    if run.state == "failed":
        return f"To go on, submit it again: {submit}."
    if run.state == "killed":
        return f"It goes on once its server is started again: {start}."
    return (
        f"To go on, submit it again: {submit}; one that the end of its server has cut off goes on with that: {start}."
    )


def _round(run: KnownRun) -> int:
    """Return the round at work, or the last one that is over."""
    last = run.reports[-1].round if run.reports else 0
    said = run.status.get("round")
    if isinstance(said, int) and run.is_running:
        return max(said, last)
    return min(last + 1, run.num_rounds) if run.is_running and not run.status else last


def _standings(run: KnownRun) -> Mapping[str, Mapping[str, object]]:
    found = run.status.get("sites")
    return {name: each for name, each in found.items() if isinstance(each, dict)} if isinstance(found, dict) else {}


def _standing_text(standing: Mapping[str, object]) -> str:
    state, detail = (_text(standing.get(key, "")) for key in ("state", "detail"))
    return f"{state}: {reason_text(detail)}" if detail else state or UNKNOWN


def _update(run: KnownRun, name: str) -> str:
    """Return what became of a site's update in the round at work."""
    found: Mapping[str, Any] = run.status
    if not run.is_running or name not in (found.get("cohort") or []):
        return UNKNOWN
    if name in (refused := found.get("refused") or {}):
        return f"refused: {reason_text(_text(refused[name]))}"
    return "accepted" if name in (found.get("accepted") or []) else "asked"


def _examples(run: KnownRun, name: str, accepted: Mapping[str, Mapping[int, ClientReport]]) -> str:
    """Return how many training examples a site says that it holds."""
    if name in run.sites:
        return f"{run.sites[name].num_examples:,}"
    return f"{accepted[name][max(accepted[name])].num_examples:,}" if name in accepted else UNKNOWN


def _refusals(run: KnownRun) -> dict[str, tuple[int, str]]:
    """Return by site how many of its updates were refused, and why the last one was."""
    found: dict[str, tuple[int, str]] = {}
    for report in run.reports:
        for name, reason in report.refused.items():
            found[name] = (found.get(name, (0, ""))[0] + 1, reason)
    return found


def _text(said: object, most: int = _LONGEST) -> str:
    return printable(said, most=most)
