"""The report's section on who holds what: each client's examples by label, or their number."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from fedlora.server.report.content import Chart, Columns, Key, Section, table
from fedlora.server.report.drawing import Colour, draw, paint_bars, short
from fedlora.server.report.left_out import LeftOut, left_out
from fedlora.server.report.wording import count_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Past so many clients, their distribution is drawn.
_MOST_CLIENTS = 30
# So many labels have a colour each; more stand in a grid, as far as it can hold them.
_STACK_COLOURS = (Colour.BLUE, Colour.ORANGE, Colour.GREEN, Colour.PURPLE, Colour.GREY)
_MOST_COLUMNS = 40
_WIDE = 700


@dataclass(frozen=True)
class Holding:
    """What one client holds: examples for training, for its validation, and how many of those for training by label."""

    client: str
    num_training: int
    num_validation: int
    by_label: tuple[int, ...] = ()


@dataclass(frozen=True)
class Holdings:
    """Who holds what.

    Attributes:
        clients: in the names' order.
        labels: the vocabulary, in the order of `by_label`; () where there is none, or it is not told who holds which.
        num_test: the held-out examples.
        partition: how the examples came to the clients, in a sentence.
        left_out: the sets of which not all examples are used as they are.
        unread: what of the data nobody reads, in a line each.
    """

    clients: Sequence[Holding]
    labels: Sequence[str] = ()
    num_test: int = 0
    partition: str = ""
    noun: str = field(default="client", kw_only=True)
    left_out: Sequence[LeftOut] = field(default=(), kw_only=True)
    unread: Sequence[str] = field(default=(), kw_only=True)


def who_holds_what(holdings: Holdings | None) -> Section | None:
    """Return the clients' examples as a picture, with their numbers in a table; nothing where they are not known."""
    if holdings is None or not holdings.clients:
        return None
    noun, num_labels = holdings.noun, len(holdings.labels)
    columns: Columns[Holding] = (
        (noun, lambda client: client.client),
        ("training", lambda client: f"{client.num_training:,}"),
        ("validation", lambda client: f"{client.num_validation:,}"),
        *(
            (label, partial(_count_text, place=place))
            for place, label in enumerate(holdings.labels if num_labels <= _MOST_COLUMNS else ())
        ),
    )
    about = _about(holdings)
    lost = left_out(holdings.left_out, holdings.unread, noun=noun)
    return Section(
        "Who holds what",
        [[holdings.partition, about]],
        [_chart(holdings, about)],
        layout="wide",
        table=table("Examples", columns, holdings.clients),
        summary=f"Every {noun} in numbers",
        parts=[lost] if lost else [],
    )


def _count_text(client: Holding, *, place: int) -> str:
    return f"{client.by_label[place]:,}"


def _about(holdings: Holdings) -> str:
    sizes = [each.num_training for each in holdings.clients]
    each = f"{min(sizes):,} each" if min(sizes) == max(sizes) else f"from {min(sizes):,} to {max(sizes):,}"
    num_validation = sum(client.num_validation for client in holdings.clients)
    text = (
        f"{count_text(len(sizes), holdings.noun)} hold {sum(sizes):,} examples for training, {each}, and keep "
        f"{num_validation:,} of their own for validation."
        if len(sizes) > 1
        else f"One {holdings.noun} holds {sum(sizes):,} examples for training and keeps {num_validation:,} for "
        "validation."
    )
    return text + (f" {holdings.num_test:,} are held out for the test." if holdings.num_test else "")


def _chart(holdings: Holdings, about: str) -> Chart:
    num_clients, num_labels = len(holdings.clients), len(holdings.labels)
    height, keys = 62 + 26 * max(2, num_clients), []
    title = f"Training examples by {holdings.noun}"
    if num_clients > _MOST_CLIENTS:
        title = f"{holdings.noun.capitalize()}s by number of training examples"
        paint, height = _paint_distribution, 280
    elif not 0 < num_labels <= _MOST_COLUMNS:
        paint = _paint_bars
    elif num_labels > len(_STACK_COLOURS):
        title, paint, height = f"{title} and label", _paint_grid, height + 14
    else:
        title, paint = f"{title} and label", _paint_bars
        keys = [Key(f"square {c.style}", label) for c, label in zip(_STACK_COLOURS, holdings.labels, strict=False)]
    return draw(
        partial(paint, holdings=holdings),
        title=title,
        description=f"{title}: {about}",
        keys=keys,
        height=height,
        width=_WIDE,
    )


def _paint_grid(figure: "Figure", holdings: Holdings) -> None:
    """Draw a bubble for each client and label, its area the number of examples, with the clients' sums beside them."""
    grid, bars = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    num_labels, rows = len(holdings.labels), range(len(holdings.clients))
    most = max(count for client in holdings.clients for count in client.by_label) or 1
    # In points; the cells of the widest grid are the narrowest.
    largest = min(24.0, 0.92 * 0.62 * _WIDE / num_labels)
    places = [(label, row) for row in rows for label in range(num_labels) if holdings.clients[row].by_label[label]]
    areas = [holdings.clients[row].by_label[label] / most * largest**2 for label, row in places]
    grid.scatter(
        [label for label, _ in places], [row for _, row in places], s=areas, color=Colour.BLUE, alpha=0.75, linewidth=0
    )
    is_rotated = max(map(len, holdings.labels)) > max(3, 70 // num_labels)
    grid.set_xticks(
        range(num_labels), [short(label, length=14) for label in holdings.labels], rotation=90 if is_rotated else 0
    )
    grid.set_xlim(-0.7, num_labels - 0.3)
    grid.set_xlabel(f"label; the largest bubble is {count_text(most, 'example')}")
    _paint_training(bars, holdings, {})
    grid.tick_params(axis="y", labelcolor=Colour.INK, pad=6)
    grid.grid(visible=False)


def _paint_bars(figure: "Figure", holdings: Holdings) -> None:
    """Draw each client's examples as a bar, stacked by label where each has a colour."""
    stacked = {
        colour: [client.by_label[label] for client in holdings.clients]
        for label, colour in zip(range(len(holdings.labels)), _STACK_COLOURS, strict=False)
    }
    _paint_training(figure.subplots(), holdings, stacked if len(holdings.labels) <= len(_STACK_COLOURS) else {})


def _paint_training(axes: "Axes", holdings: Holdings, stacked: Mapping[Colour, Sequence[int]]) -> None:
    sizes = [client.num_training for client in holdings.clients]
    names = [client.client for client in holdings.clients]
    paint_bars(axes, names, stacked or {Colour.BLUE: sizes}, [f"{size:,}" for size in sizes])
    axes.set_xlim(0, 1.16 * max(sizes) or 1)
    axes.set_xlabel("training examples")
    _count_whole(axes.xaxis, num_ticks=4)


def _count_whole(axis: "Axis", *, num_ticks: int) -> None:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    axis.set_major_locator(MaxNLocator(integer=True, nbins=num_ticks, min_n_ticks=1))
    axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _paint_distribution(figure: "Figure", holdings: Holdings) -> None:
    """Draw how many clients hold how many examples, and beside it how many of the labels."""
    panels = [("training examples", [client.num_training for client in holdings.clients], Colour.BLUE)]
    if holdings.labels:
        held = [sum(count > 0 for count in client.by_label) for client in holdings.clients]
        panels.append((f"labels held, of {len(holdings.labels)}", held, Colour.GREEN))
    row = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (name, values, colour) in zip(row, panels, strict=True):
        span = max(values) - min(values) + 1
        bins = min(24, span)
        width = -(-span // bins)
        edges = [min(values) - 0.5 + width * index for index in range(-(-span // width) + 1)]
        axes.hist(values, bins=edges, color=colour, rwidth=0.9)
        axes.set_xlabel(name)
        _count_whole(axes.xaxis, num_ticks=6)
        _count_whole(axes.yaxis, num_ticks=5)
    row[0].set_ylabel(f"{holdings.noun}s")
