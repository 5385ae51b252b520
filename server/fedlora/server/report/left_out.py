"""The report's account of examples that are not used as they are, and of what of the data nobody reads."""

from collections.abc import Sequence
from dataclasses import dataclass

from fedlora.server.report.markup import NOTHING, Html, bullets, element, join, paragraph, table
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


def left_out(parts: Sequence[LeftOut], unread: Sequence[str], *, noun: str) -> Html:
    """Return who lost how many examples as a table, and in sentences what of the data is not read."""
    if not parts and not unread:
        return NOTHING
    num_left_out = sum(part.num_given - part.num_used for part in parts)
    num_cut = sum(part.num_cut for part in parts)
    sentences = [
        f"{count_text(num_left_out, 'example')} of {sum(part.num_given for part in parts):,} in these sets "
        f"{'is' if num_left_out == 1 else 'are'} left out."
        if num_left_out
        else "",
        f"{count_text(num_cut, 'example')} {'is' if num_cut == 1 else 'are'} cut." if num_cut else "",
    ]
    rows = [
        (
            part.holder,
            part.part,
            part.why or "cut",
            f"{part.num_given:,}",
            f"{part.num_used:,}",
            f"{part.num_cut:,}",
        )
        for part in parts[:_MOST_ROWS]
    ]
    head = (noun, "examples", "why", "given", "used", "of these cut")
    shown = table("Examples that are not used as they are", head, rows, num_text_columns=3) if rows else NOTHING
    return join(
        (
            element("h3", "Left out and cut" if parts else "Not read"),
            paragraph(*sentences),
            shown,
            bullets(unread),
        )
    )
