"""What a terminal shows of a run's data: examples with what is learned of them, lengths, and counts by client."""

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedlora.server.report.wording import count_text
from fedlora.training.data_preview import ClientCounts, DataPreview, Lengths, Piece, ShownExample

_LEARNED, _READ, _WARNED = "bold green", "dim", "yellow"
_BEGIN, _END = "[[", "]]"
_LONGEST_PIECE, _HEAD, _TAIL = 1_200, 700, 300
_MOST_LABELS = 12


def print_preview(console: Console, preview: DataPreview, *, client: str | None) -> None:
    """Print the preview; what is learned in colour in a terminal, and between brackets elsewhere.

    Args:
        client: whose examples were looked at; None for everyone's.
    """
    is_marked = not console.is_terminal
    for number, example in enumerate(preview.examples, start=1):
        console.print(Text(f"example {number}: {_facts(example)}", style="bold"))
        if example.pieces:
            text = _text(example.pieces, is_marked=is_marked)
            text.rstrip()
            console.print(text)
        console.print()
    if any(piece.is_learned for example in preview.examples for piece in example.pieces):
        learned = f"between {_BEGIN} and {_END}" if is_marked else "bold and green"
        console.print(Text(f"what is learned is {learned}; the rest is only read"))
        console.print()
    if preview.lengths is not None:
        console.print(Text("\n".join(_lengths(preview.lengths, of="" if client is None else f" of {client}"))))
        console.print()
    console.print(_counts_table(preview))
    console.print(Text(f"{count_text(preview.num_test, 'example')} held out for the test"))
    for note in preview.notes:
        line = printable(f"warning: {note.text}" if note.is_warning else note.text)
        console.print(Text(line, style=_WARNED if note.is_warning else ""))


def printable(text: str) -> str:
    """Return the text without what would move a terminal's cursor: control characters as Python writes them."""
    return "".join(sign if sign.isprintable() or sign in "\n\t" else repr(sign)[1:-1] for sign in text)


def _facts(example: ShownExample) -> str:
    whose = example.client
    if example.group and example.group != example.client:
        whose = f"{whose}, group {example.group}"
    label = () if example.label is None else (f"label {example.label}",)
    return printable("; ".join((whose, *label, *example.facts)))


def _text(pieces: tuple[Piece, ...], *, is_marked: bool) -> Text:
    has_learned = any(piece.is_learned for piece in pieces)
    text = Text()
    for piece in pieces:
        shown = _shortened(printable(piece.text))
        if is_marked:
            text.append(f"{_BEGIN}{shown}{_END}" if piece.is_learned else shown)
        else:
            text.append(shown, style=_LEARNED if piece.is_learned else _READ if has_learned else "")
    return text


def _shortened(text: str) -> str:
    if len(text) <= _LONGEST_PIECE:
        return text
    return f"{text[:_HEAD]} ... {len(text) - _HEAD - _TAIL:,} more characters ... {text[-_TAIL:]}"


def _lengths(lengths: Lengths, *, of: str) -> Iterator[str]:
    examined = count_text(lengths.num_examined, "example")
    yield (
        f"tokens in {examined}{of}: {lengths.smallest:,} at least, {lengths.median:,.0f} in the middle, "
        f"{lengths.largest:,} at most"
    )
    for num, fate in ((lengths.num_cut, "cut"), (lengths.num_dropped, "dropped")):
        if num:
            yield f"{num:,} of {examined} will be {fate} (task.max_length = {lengths.max_length:,})"
    if not lengths.num_cut and not lengths.num_dropped:
        yield f"none of them is longer than task.max_length = {lengths.max_length:,}"


def _counts_table(preview: DataPreview) -> Table:
    """Return the examples by client, those for training also by label where there are labels."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("client", overflow="fold")
    table.add_column("training", justify="right", no_wrap=True)
    table.add_column("validation", justify="right", no_wrap=True)
    if preview.labels:
        table.add_column("labels in training", overflow="fold")
    for client, counts in preview.clients.items():
        labels = [_labels(counts)] if preview.labels else []
        table.add_row(
            Text(printable(client)),
            f"{counts.training:,}",
            f"{counts.validation:,}",
            *map(Text, map(printable, labels)),
        )
    return table


def _labels(counts: ClientCounts) -> str:
    """Return the labels with their numbers, of many the most frequent."""
    found = list(counts.by_label.items())
    if len(found) > _MOST_LABELS:
        found = sorted(found, key=lambda item: -item[1])[:_MOST_LABELS]
    shown = ", ".join(f"{label}: {number:,}" for label, number in found)
    left_out = len(counts.by_label) - len(found)
    return f"{shown}, and {left_out:,} more" if left_out else shown
