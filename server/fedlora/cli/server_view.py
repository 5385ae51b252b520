"""What `server status` and `sites list` print. Pure."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from fedlora.common.messages import PRIVACY_BUDGET
from fedlora.common.printable import printable
from fedlora.server.disk.audit import Audit
from fedlora.server.disk.status_file import Status
from fedlora.server.identity.site_records import SiteRecord
from fedlora.server.report.wording import (
    PERPLEXITY,
    bytes_text,
    count_text,
    duration_text,
    error_texts,
    loss_text,
    score_text,
)


def status_lines(status: Status, *, to_go_on: str = "give the same start command again") -> Iterator[str]:
    """Yield a server's status in lines for people; `to_go_on` says what has a run go on that was not finished."""
    found: Mapping[str, Any] = status
    where = f", port {found['port']}, process {found['pid']}" if found["is_running"] else ""
    yield f"{found['run']}: {_state(found)}{where}"
    if found["failure"]:
        yield f"  because   {found['failure']}"
    if found["state"] in ("failed", "stopped", "killed") and to_go_on:
        yield f"  to go on  {to_go_on}"
    if found["is_running"] and (disk := found.get("disk")):
        free, needed = bytes_text(disk["free_bytes"]), bytes_text(disk["needed_bytes"])
        yield f"  disk      too full: {free} free, {needed} needed; free some space on that of {disk['folder']}"
    if rollback := found.get("rolled_back"):
        since = f"since {rollback['at'][:16].replace('T', ' ')} UTC, by {rollback['by']}"
        yield f"  rollback  {rollback['name']} is offered in place of newer ones, {since}"
    for number, why in list(found.get("not_published", {}).items())[-1:]:
        yield f"  withheld  round {number} is not published: {why}"
    if found["waiting_for"] and found["is_running"]:
        yield f"  waiting   {found['waiting_for']}"
    if found["is_running"]:
        for name, site in found["sites"].items():
            yield f"  site      {name}: {site['state']}{': ' + site['detail'] if site['detail'] else ''}"
    if found["cohort"] and found["is_running"]:
        refused = "".join(f"; refused {name}: {reason}" for name, reason in found["refused"].items())
        yield f"  updates   {len(found['accepted'])} of {len(found['cohort'])} accepted{refused}"
    totals = found["totals"]
    if totals.get("rounds"):
        moved = f"{bytes_text(totals['bytes_down'])} down, {bytes_text(totals['bytes_up'])} up"
        accepted = f"{count_text(totals['accepted'], 'update')} accepted, {totals['refused']} refused"
        rounds = f"{count_text(totals['rounds'], 'round')} in {duration_text(found['seconds_of_run'])}"
        yield f"  so far    {rounds}, {accepted}, {moved}"
    if found["metric"] is not None:
        name, beside = found.get("metric_name", "metric"), ""
        if found.get("perplexity") is not None:
            beside = f", {PERPLEXITY} {score_text(found['perplexity'], PERPLEXITY)}"
        yield f"  {name:<9} {score_text(found['metric'], name)}{beside} after round {found['last_round']}"
    if found.get("best_round") is not None:
        which = f"round {found['best_round']}" if found["best_round"] else "the start, before any round"
        yield f"  best      {which}, by the validation loss {loss_text(found['best_validation_loss'])}"
    if found.get("ended_early"):
        is_spent = not found["accepted"] and any(PRIVACY_BUDGET in reason for reason in found["refused"].values())
        why = "the clients' privacy budget is spent" if is_spent else "the validation loss had not become lower"
        yield f"  ended     early, after round {found['last_round']}: {why}"
    if found["error_before"] is not None and found["error_after"] is not None:
        yield f"  error     {' -> '.join(error_texts(found['error_before'], found['error_after']))} of the average"
    if (audit := found.get("audit")) and audit["head"]:
        yield f"  audit     {count_text(audit['lines'], 'line')}, the last with the sha256 {audit['head']}"
    if found["seconds"]:
        parts = ", ".join(f"{phase} {duration_text(seconds)}" for phase, seconds in found["seconds"].items())
        yield f"  last took {parts}"


def _state(found: Mapping[str, Any]) -> str:
    """Return in which state a run is and where in its rounds, and when its server was last heard of if it is gone."""
    state, number, num_rounds = found["state"], found["round"], found["num_rounds"]
    when = f"{found['last_word'][:16].replace('T', ' ')} UTC"
    at = f"{'after' if found['last_round'] == number else 'in'} round {number} of {num_rounds}"
    at = at if number else f"before round 1 of {num_rounds}"
    match state:
        case "finished":
            return f"finished, {count_text(num_rounds, 'round')}, {when}"
        case "starting" | "waiting":
            return f"{'waiting for sites' if found['phase'] == 'waiting for sites' else state}, {at}"
        case "running":
            return f"running, {at}: {found['phase']}"
        case "killed":
            return f"killed {at}, last heard of {when}"
    return f"{state} {at}, {when}"


def sites_table(records: Sequence[SiteRecord], now: datetime) -> Table:
    """Return the sites with what they may do, and until when."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in ("site", "state", "runs", "until"):
        table.add_column(name)
    for record in records:
        end = record.not_after
        if record.status == "invited":
            end = record.invitation_expires
        state = record.status
        if record.status == "invited" and not record.is_pending(now):
            state = "invitation ended"  # type: ignore[assignment]
        until = "" if end is None else f"{end:%Y-%m-%d %H:%M} UTC"
        table.add_row(*map(Text, (record.name, state, ", ".join(record.runs), until)))
    return table


def audit_lines(found: Audit) -> Iterator[str]:
    """Yield what an audit log holds in lines for people: how many entries of each kind, and where it ends."""
    kinds = Counter(str(entry["event"]) for entry in found.entries)
    yield f"{len(found.entries):,} entries hold{', and those behind them do not' if found.fault else ''}"
    if kinds:
        yield f"  of them   {', '.join(f'{count:,} {printable(kind)}' for kind, count in kinds.most_common())}"
        yield f"  the last  line {found.head.num_lines:,}, with the sha256 {found.head.sha256}"
    if found.cut_bytes:
        cut = count_text(found.cut_bytes, "byte")
        yield f"  then      {cut} of a line that was cut off, as the next entry will say"
