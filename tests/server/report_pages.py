"""Round reports to make a page of, and the page as a browser reads it."""

from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from io import StringIO
from typing import Any

import pytest
from matplotlib.figure import Figure

from fedlora.common.aggregation_report import AggregationReport, LayerReport
from fedlora.common.messages import Score
from fedlora.server.record.round_report import ClientReport, HeldOutReport, RoundReport
from fedlora.server.report import render_report

DOMAINS = ("mnist", "serif")
LAYERS = tuple(f"encoder.layer.{block}.attention.{module}" for block in range(2) for module in ("query", "value"))


def held_out(metrics: Mapping[str, float], *, of_each: int = 100, is_complete: bool = True) -> HeldOutReport:
    groups = {name: Score(of_each, 1.0, metric) for name, metric in metrics.items()}
    overall = Score(of_each * len(groups), 1.0, sum(metrics.values()) / len(metrics))
    return HeldOutReport(overall, groups, is_complete)


def aggregation(before: float = 0.2, after: float = 0.18, *, paths: tuple[str, ...] = LAYERS) -> AggregationReport:
    moved = 0.02 if before != after else 0.0
    layer = LayerReport(1.5, before, after, 0.1, 0.1, 0.2, 0.5, moved, 0.0, 0.99, 1.0, 3.2)
    method = "lora_fair" if before != after else "fedit"
    return AggregationReport(method, before, after, 0.1, 0.1, 0.2, 0.5, moved, 0.0, dict.fromkeys(paths, layer))


def client(loss: float = 1.0, *, before: float = 0.1, after: float = 0.5, validates: bool = True) -> ClientReport:
    own = (Score(64, 1.0, before), Score(64, 0.9, after)) if validates else (None, None)
    seconds = {"forward": 1.0, "backward": 2.0, "optimizer": 0.5, "training": 4.0, "validation": 0.5}
    return ClientReport(1000, 8, loss, own[0], own[1], seconds)


def start(metrics: Mapping[str, float] | None = None) -> RoundReport:
    score = held_out(metrics or dict.fromkeys(DOMAINS, 0.1))
    return RoundReport(0, (), {}, {}, None, score, 0, 0, {"evaluation": 5.0, "storing": 0.1})


def finished(number: int, clients: Mapping[str, ClientReport] | None = None, **changes: Any) -> RoundReport:
    """Return the report of a round after the start; `changes` are fields of it."""
    clients = {name: client() for name in DOMAINS} if clients is None else clients
    refused: Mapping[str, str] = changes.get("refused", {})
    fields: dict[str, Any] = {
        "refused": {},
        "cohort": tuple(sorted({*clients, *refused})),
        "aggregation": aggregation(),
        "held_out": held_out(dict.fromkeys(DOMAINS, 0.1 + 0.2 * number)),
        "bytes_down": 1_000_000,
        "bytes_up": 900_000,
        "seconds": {"training": 10.0, "aggregation": 0.2, "evaluation": 2.0, "storing": 0.1},
    }
    return RoundReport(round=number, clients=clients, **(fields | changes))


def render(*reports: RoundReport, **changes: Any) -> str:
    fields: dict[str, Any] = {
        "title": "digits",
        "subtitle": "2 clients, rank 8",
        "metric_name": "accuracy",
        "num_rounds": max(1, len(reports) - 1),
        "config_toml": '[run]\nname = "digits"\n',
    }
    return render_report(reports=reports, **(fields | changes))


class Page(HTMLParser):
    """A page's tags with their attributes, and its text; fails where tags do not close in order."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] != "style":
            self.text += " " + " ".join(data.split())

    def named(self, *tags: str) -> Iterator[dict[str, str]]:
        return (attributes for tag, attributes in self.tags if tag in tags)


def text_with_charts(*reports: RoundReport, **changes: Any) -> str:
    """Return the words of the page, its charts' among them."""
    return Page(render(*reports, **changes)).text.replace("\N{NO-BREAK SPACE}", " ")


def text_of(*reports: RoundReport, **changes: Any) -> str:
    """Return the words of the page around its charts: those are painted but not laid out, which takes the most time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", _write_no_drawing)
        return text_with_charts(*reports, **changes)


def _write_no_drawing(_: Figure, file: StringIO, **options: Any) -> None:
    file.write(f"<{options['format']}></{options['format']}>")
