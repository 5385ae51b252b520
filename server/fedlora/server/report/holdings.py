"""The report's section on who holds what: each client's examples by label, or their number."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fedlora.server.report.drawing import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    QUIET,
    short,
    themed_svg,
)
from fedlora.server.report.left_out import LeftOut, left_out
from fedlora.server.report.markup import NOTHING, Html, element, figure, paragraph, section, table
from fedlora.server.report.wording import count_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Past so many clients, their distribution is drawn.
_MOST_CLIENTS = 30
# So many labels have a colour each; more stand in a grid, as far as it can hold them.
_STACK_COLOURS = ((BLUE, "blue"), (ORANGE, "orange"), (GREEN, "green"), (PURPLE, "purple"), (GREY, "grey"))
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


def who_holds_what(holdings: Holdings | None) -> Html:
    """Return the clients' examples as a picture, with their numbers in a table."""
    if holdings is None or not holdings.clients:
        return NOTHING
    title, keys = _title(holdings), []
    if 0 < len(holdings.labels) <= len(_STACK_COLOURS) and len(holdings.clients) <= _MOST_CLIENTS:
        keys = [(f"square {style}", label) for (_, style), label in zip(_STACK_COLOURS, holdings.labels, strict=False)]
    return section(
        "Who holds what",
        paragraph(holdings.partition, _about(holdings)),
        element("div", figure(title, _chart(holdings, title), keys=keys), class_="wide"),
        element("details", element("summary", f"Every {holdings.noun} in numbers"), _table(holdings)),
        left_out(holdings.left_out, holdings.unread, noun=holdings.noun),
    )


def _title(holdings: Holdings) -> str:
    if len(holdings.clients) > _MOST_CLIENTS:
        return f"{holdings.noun.capitalize()}s by number of training examples"
    title = f"Training examples by {holdings.noun}"
    return f"{title} and label" if 0 < len(holdings.labels) <= _MOST_COLUMNS else title


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


def _chart(holdings: Holdings, title: str) -> Html:
    description = f"{title}: {_about(holdings)}"
    if len(holdings.clients) > _MOST_CLIENTS:
        return themed_svg(
            lambda figure: _paint_distribution(figure, holdings), height=280, width=_WIDE, description=description
        )
    height = 62 + 26 * max(2, len(holdings.clients))
    if len(_STACK_COLOURS) < len(holdings.labels) <= _MOST_COLUMNS:
        return themed_svg(
            lambda figure: _paint_grid(figure, holdings), height=height + 14, width=_WIDE, description=description
        )
    return themed_svg(
        lambda figure: _paint_bars(figure.subplots(), holdings), height=height, width=_WIDE, description=description
    )


def _paint_grid(figure: "Figure", holdings: Holdings) -> None:
    """Draw a bubble for each client and label, its area the number of examples, with the clients' sums beside them."""
    grid, bars = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    num_labels, rows = len(holdings.labels), range(len(holdings.clients))
    most = max((count for client in holdings.clients for count in client.by_label), default=0) or 1
    # In points; the cells of the widest grid are the narrowest.
    largest = min(24.0, 0.92 * 0.62 * _WIDE / num_labels)
    places = [(label, row) for row in rows for label in range(num_labels) if holdings.clients[row].by_label[label]]
    areas = [holdings.clients[row].by_label[label] / most * largest**2 for label, row in places]
    grid.scatter(
        [label for label, _ in places], [row for _, row in places], s=areas, color=BLUE, alpha=0.75, linewidth=0
    )
    is_rotated = max(map(len, holdings.labels)) > max(3, 70 // num_labels)
    grid.set_xticks(
        range(num_labels), [short(label, length=14) for label in holdings.labels], rotation=90 if is_rotated else 0
    )
    grid.set_xlim(-0.7, num_labels - 0.3)
    grid.set_xlabel(f"label; the largest bubble is {count_text(most, 'example')}")
    grid.grid(visible=False)
    _client_axis(grid, holdings)
    _paint_sums(bars, holdings)


def _paint_bars(axes: "Axes", holdings: Holdings) -> None:
    """Draw each client's examples as a bar, stacked by label where there are few."""
    if not 0 < len(holdings.labels) <= len(_STACK_COLOURS):
        _paint_sums(axes, holdings)
        _client_axis(axes, holdings)
        return
    rows = range(len(holdings.clients))
    left = [0] * len(holdings.clients)
    for label, (colour, _) in zip(range(len(holdings.labels)), _STACK_COLOURS, strict=False):
        counts = [client.by_label[label] for client in holdings.clients]
        axes.barh(rows, counts, left=left, color=colour, height=0.62)
        left = [begin + count for begin, count in zip(left, counts, strict=True)]
    _number_ends(axes, holdings)
    _client_axis(axes, holdings)


def _paint_sums(axes: "Axes", holdings: Holdings) -> None:
    sizes = [client.num_training for client in holdings.clients]
    axes.barh(range(len(sizes)), sizes, color=BLUE, height=0.62)
    _number_ends(axes, holdings)


def _number_ends(axes: "Axes", holdings: Holdings) -> None:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    sizes = [client.num_training for client in holdings.clients]
    for row, size in enumerate(sizes):
        axes.annotate(f"{size:,}", (size, row), xytext=(5, 0), textcoords="offset points", va="center")
    axes.set_xlim(0, 1.16 * max(sizes) or 1)
    axes.set_xlabel("training examples")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", visible=True)


def _client_axis(axes: "Axes", holdings: Holdings) -> None:
    axes.set_yticks(range(len(holdings.clients)), [short(client.client) for client in holdings.clients])
    axes.tick_params(axis="y", labelcolor=INK, pad=6)
    axes.set_ylim(max(len(holdings.clients), 2) - 0.4, -0.6)


def _paint_distribution(figure: "Figure", holdings: Holdings) -> None:
    """Draw how many clients hold how many examples, and beside it how many of the labels."""
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    panels = [("training examples", [client.num_training for client in holdings.clients], BLUE)]
    if holdings.labels:
        held = [sum(count > 0 for count in client.by_label) for client in holdings.clients]
        panels.append((f"labels held, of {len(holdings.labels)}", held, GREEN))
    row = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (name, values, colour) in zip(row, panels, strict=True):
        span = max(values) - min(values) + 1
        bins = min(24, span)
        width = -(-span // bins)
        edges = [min(values) - 0.5 + width * index for index in range(-(-span // width) + 1)]
        axes.hist(values, bins=edges, color=colour, rwidth=0.9)
        axes.set_xlabel(name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5, min_n_ticks=1))
    row[0].set_ylabel(f"{holdings.noun}s", color=QUIET)


def _table(holdings: Holdings) -> Html:
    labels = list(holdings.labels) if len(holdings.labels) <= _MOST_COLUMNS else []
    rows = [
        [
            client.client,
            f"{client.num_training:,}",
            f"{client.num_validation:,}",
            *(f"{count:,}" for count in client.by_label[: len(labels)]),
        ]
        for client in holdings.clients
    ]
    return table("Examples", (holdings.noun, "training", "validation", *labels), rows)
