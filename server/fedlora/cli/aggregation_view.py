"""What a terminal shows of an aggregation: its diagnostics by layer as a table that fits, and what they mean. Pure."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from fedlora.common.aggregation_report import AggregationReport, LayerReport
from fedlora.server.report.wording import count_text, list_text

_MOST_LAYERS = 24
_WORST_LAYERS = 12
_LEAST_PATH_WIDTH = 24
_NO_ERROR = 1e-6  # float32 leaves about a tenth of it of an exact result
_ALL = "all layers"


@dataclass(frozen=True)
class _Column:
    """One column of numbers; of those that do not fit, the ones with the least `worth` go first."""

    name: str
    texts: tuple[str, ...]
    worth: int

    @property
    def width(self) -> int:
        return max(map(len, (*self.name.split("\n"), *self.texts)))


def diagnostics_table(report: AggregationReport, *, width: int) -> Table:
    """Return the errors by layer, and overall at the end, in at most `width` characters; of many layers the worst."""
    paths = _shown(report.layers)
    columns, gap = _fitting(_columns(report, paths), width=width)
    path_width = max(10, width - sum(column.width + gap for column in columns))
    prefix, names = short_paths(paths, width=path_width)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, gap - 1, 0, 0))
    table.add_column(f"layer of\n{prefix}" if 0 < len(prefix) <= path_width else "\nlayer", overflow="fold")
    for column in columns:
        table.add_column(column.name, justify="right", no_wrap=True)
    for place, name in enumerate(names):
        table.add_row(Text(name), *(column.texts[place] for column in columns))
    table.add_section()
    table.add_row(_ALL, *(column.texts[-1] for column in columns), style="bold")
    return table


def explanations(report: AggregationReport) -> Iterator[str]:
    """Yield what the table leaves out, what its columns are, and the layers' notes, each note once."""
    if left_out := len(report.layers) - len(_shown(report.layers)):
        yield f"the worst layers; {count_text(left_out, 'better one')} left out, which --json prints too"
    yield (
        "error: how far the result is from the weighted mean of all B A, relative to its norm, before (A and B "
        "averaged apart) and after the method; floor: the least that any pair of the clients' rank has"
    )
    yield (
        "reach: the share of the error before that the best B, A, or both would remove; moved, cosine: from the mean "
        "to the method's factor; effective rank: of the mean of all B A"
    )
    yield from report.notes
    for note in dict.fromkeys(layer.note for layer in report.layers.values() if layer.note):
        paths = [path for path, layer in report.layers.items() if layer.note == note]
        where = _ALL if len(paths) == len(report.layers) else list_text(paths)
        yield f"{where}: {note}"


def short_paths(paths: Sequence[str], *, width: int) -> tuple[str, list[str]]:
    """Return the words with which all paths begin, and what follows them in at most `width` characters each.

    Of what is too long, words become their first letter, the same number of words in all, from the left. Numbers and
    the last word stay, which tell layers apart; where that makes two paths equal, none is shortened.
    """
    words = [path.split(".") for path in paths]
    start = _num_common(words) if len(paths) > 1 else 0
    prefix = ".".join(words[0][:start]) if start else ""
    words = [path[start:] for path in words]
    for num_short in range(max(map(len, words), default=0)):
        short = [_shortened(path, num_short=num_short) for path in words]
        if max(map(len, short)) <= width and len(set(short)) == len(words):
            return prefix, short
    return prefix, [".".join(path) for path in words]


def _num_common(paths: Sequence[Sequence[str]]) -> int:
    """Return with how many words all paths begin, their last words and from the first number on not counted."""
    num = 0
    for words in zip(*(path[:-1] for path in paths), strict=False):
        # A number says which layer it is, also where only one has an adapter.
        if len(set(words)) > 1 or words[0].isdigit():
            break
        num += 1
    return num


def _shortened(words: Sequence[str], *, num_short: int) -> str:
    num_short = min(num_short, len(words) - 1)
    return ".".join([*(word if word.isdigit() else word[:1] for word in words[:num_short]), *words[num_short:]])


def _shown(layers: Mapping[str, LayerReport]) -> list[str]:
    """Return all paths in the model's order, or of very many the worst, their errors falling."""
    if len(layers) > _MOST_LAYERS:
        return sorted(layers, key=lambda path: _badness(layers[path]), reverse=True)[:_WORST_LAYERS]
    return sorted(layers, key=lambda path: [(word.isdigit(), word.zfill(9)) for word in path.split(".")])


def _badness(layer: LayerReport) -> tuple[float, float]:
    # Where the method is exact, what is left is rounding, and the error that it removed says more.
    return (layer.error_after if layer.error_after > _NO_ERROR else 0.0, layer.error_before)


def _columns(report: AggregationReport, paths: Sequence[str]) -> list[_Column]:
    layers = [report.layers[path] for path in paths]
    rows: list[LayerReport | AggregationReport] = [*layers, report]
    sides = [side for side in "BA" if getattr(report, f"moved_{side}") != 0]

    def numbers(name: str, attribute: str, worth: int) -> _Column:
        return _Column(name, tuple(_number(getattr(row, attribute, None)) for row in rows), worth)

    def shares(name: str, attribute: str) -> _Column:
        return _Column(name, tuple(f"{100 * getattr(row, attribute):.0f} %" for row in rows), 2)

    return [
        numbers("error\nbefore", "error_before", 4),
        numbers("error\nafter", "error_after", 4),
        numbers("\nfloor", "floor", 3),
        shares("reach\nB", "reach_B"),
        shares("reach\nA", "reach_A"),
        shares("reach\nboth", "reach_both"),
        *(numbers(f"moved\n{side}", f"moved_{side}", 3) for side in sides),
        *(numbers(f"cosine\n{side}", f"cosine_{side}", 0) for side in sides),
        _Column("effective\nrank", (*(f"{layer.effective_rank:.1f}" for layer in layers), ""), 1),
    ]


def _fitting(columns: Sequence[_Column], *, width: int) -> tuple[list[_Column], int]:
    """Return the columns that leave enough width for the layers' paths, and the gap between two."""
    for least in range(5):
        kept = [column for column in columns if column.worth >= least]
        for gap in (2, 1):
            if width - sum(column.width + gap for column in kept) >= _LEAST_PATH_WIDTH:
                return kept, gap
    return kept, 1


def _number(value: float | None) -> str:
    """Return a number with four digits after the point, with an exponent where that would hide it."""
    if value is None:
        return ""
    if not math.isfinite(value):
        return "infinite" if math.isinf(value) else "unknown"
    if value == 0:
        return "0"
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e3 else f"{value:.1e}"
