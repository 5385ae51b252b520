"""The report's section on updates that count and teach nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

from fedlora.server.record.events import FLAGS
from fedlora.server.record.round_report import ClientReport, RoundReport
from fedlora.server.report.content import Columns, Section, table
from fedlora.server.report.wording import count_text, ranges_text


@dataclass(frozen=True)
class _Flagged:
    """The rounds in which one client's update had one flag."""

    client: str
    flag: str
    rounds: tuple[int, ...]


def flagged(reports: Sequence[RoundReport]) -> Section | None:
    """Return the updates that are all zero, or what their client started from; nothing where there are none."""
    by_client: dict[tuple[str, str], list[int]] = {}
    for report in reports:
        for client, part in report.clients.items():
            if flag := _flag(part):
                by_client.setdefault((client, flag), []).append(report.round)
    found = [_Flagged(client, flag, tuple(rounds)) for (client, flag), rounds in sorted(by_client.items())]
    if not found:
        return None
    count = sum(len(each.rounds) for each in found)
    columns: Columns[_Flagged] = (
        ("client", lambda each: each.client),
        ("the update is", lambda each: FLAGS[each.flag]),
        ("in round", lambda each: ranges_text(each.rounds)),
        ("updates", lambda each: str(len(each.rounds))),
    )
    about = f"{count_text(count, 'update')} in the averages {'has' if count == 1 else 'have'} taught nothing."
    return Section(
        "Updates that teach nothing", [[about]], table=table("By client", columns, found, num_text_columns=3)
    )


def _flag(part: ClientReport) -> str:
    return "unchanged" if part.is_unchanged else "zero" if part.is_zero else ""
