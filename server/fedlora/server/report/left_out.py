"""The report's account of examples that are not used as they are, and of what of the data nobody reads."""

from collections.abc import Sequence
from dataclasses import dataclass

from fedlora.server.report.content import Columns, Section, table
from fedlora.server.report.wording import count_text

_MOST_ROWS = 500


@dataclass(frozen=True)
class LeftOut:
    """One part of one holder's examples of which not all are used as they are.

    Attributes:
        holder: the client, or "all" for a test set that all share.
        part: training, validation or test.
        num_given, num_used, num_cut: examples; the cut ones are used.
        why: why the others are left out, in words; "" where none is.
    """

    holder: str
    part: str
    num_given: int
    num_used: int
    num_cut: int
    why: str


def left_out(parts: Sequence[LeftOut], unread: Sequence[str], *, noun: str) -> Section | None:
    """Return who lost how many examples as a table, and in sentences what of the data is not read."""
    if not parts:
        return Section("Not read", notes=unread) if unread else None
    num_given = sum(part.num_given for part in parts)
    num_left_out = num_given - sum(part.num_used for part in parts)
    about = [
        f"{count_text(count, 'example')}{of} {'is' if count == 1 else 'are'} {fate}."
        for count, of, fate in (
            (num_left_out, f" of {num_given:,} in these sets", "left out"),
            (sum(part.num_cut for part in parts), "", "cut"),
        )
        if count
    ]
    columns: Columns[LeftOut] = (
        (noun, lambda part: part.holder),
        ("examples", lambda part: part.part),
        ("why", lambda part: part.why or "cut"),
        ("given", lambda part: f"{part.num_given:,}"),
        ("used", lambda part: f"{part.num_used:,}"),
        ("of these cut", lambda part: f"{part.num_cut:,}"),
    )
    numbers = table("Examples that are not used as they are", columns, parts[:_MOST_ROWS], num_text_columns=3)
    return Section("Left out and cut", [about], table=numbers, notes=unread)
