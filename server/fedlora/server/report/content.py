"""What the page is made of: typed values, in words and numbers, that the templates lay out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from fedlora.server.report.wording import UNKNOWN

Item = TypeVar("Item")

# Each column's title, and what it says of an item.
Columns = Sequence[tuple[str, Callable[[Item], str]]]


@dataclass(frozen=True)
class Key:
    """What one colour of a chart means; the style is its mark's classes in page.css."""

    style: str
    words: str


@dataclass(frozen=True)
class Chart:
    """A drawing with its title.

    Attributes:
        paint: returns what stands inside of the SVG element; called once somebody wants to see it.
        width, height: in CSS pixels.
        description: for screen readers.
    """

    title: str
    paint: Callable[[], str]
    width: int
    height: int
    description: str
    keys: Sequence[Key] = ()

    @cached_property
    def svg(self) -> str:
        """What stands inside of the SVG element."""
        return self.paint()


@dataclass(frozen=True)
class Table:
    """Rows of text under a caption: the first columns are words, set left, the others numbers, set right."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    totals: Sequence[Sequence[str]] = ()
    num_text_columns: int = 1
    is_narrow: bool = False


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it, in this order; what is empty is not shown.

    Attributes:
        paragraphs: each of sentences, of which the empty ones are left out.
        charts: set side by side, as `layout` says, a class of page.css.
        has_one_legend: whether all charts have the keys of the first, which stand once above them.
        table: beside a single chart, else below the charts; folded where there is a `summary` to open it by.
        notes: sentences in a list.
        parts: sections of the next level.
    """

    title: str = ""
    paragraphs: Sequence[Sequence[str]] = ()
    charts: Sequence[Chart] = ()
    layout: str = "pair"
    has_one_legend: bool = False
    table: Table | None = None
    summary: str = ""
    notes: Sequence[str] = ()
    parts: Sequence["Section"] = ()


def table(
    caption: str,
    columns: Columns[Item],
    items: Sequence[Item],
    *,
    totals: Sequence[Item] = (),
    num_text_columns: int = 1,
    is_narrow: bool = False,
) -> Table:
    """Return a row for each item, and below them those of the totals, without columns in which nothing is known."""
    shown = [(title, of) for title, of in columns if any(of(item) != UNKNOWN for item in (*items, *totals))]
    rows, last = ([[of(item) for _, of in shown] for item in part] for part in (items, totals))
    return Table(caption, [title for title, _ in shown], rows, last, num_text_columns, is_narrow)
