"""The whole report as one HTML page that needs no network and no script."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

from fedlora.server.report import sections, sentences
from fedlora.server.report.answers import ShownAnswer, answers
from fedlora.server.report.client_sections import groups
from fedlora.server.report.holdings import Holdings, who_holds_what
from fedlora.server.report.markup import NOTHING, Html, bullets, details, element, join, prose, section, trusted
from fedlora.server.round_report import RoundReport

_MOST_CHARACTERS = 400


@dataclass(frozen=True)
class ShownExample:
    """One held-out example for the report's gallery.

    Attributes:
        group: its domain, language or site; empty where there are none.
        label: the true one.
        before, after: the labels predicted before training and at the end.
        picture_png, text: what the model saw; exactly one is given.
    """

    group: str
    label: str
    before: str
    after: str
    picture_png: bytes | None = None
    text: str | None = None

    def __post_init__(self) -> None:
        if (self.picture_png is None) == (self.text is None):
            raise ValueError("a shown example has either a picture or a text")


def render_report(
    *,
    title: str,
    subtitle: str,
    metric_name: str,
    num_rounds: int,
    reports: Sequence[RoundReport],
    config_toml: str,
    examples: Sequence[ShownExample] = (),
    shown_answers: Sequence[ShownAnswer] = (),
    holdings: Holdings | None = None,
    load_code: str = "",
    notes: Sequence[str] = (),
    versions: Mapping[str, str] | None = None,
) -> str:
    """Return the report as the text of one HTML file.

    Args:
        title: the run's name.
        subtitle: the run in a line: clients, model, rank, method.
        metric_name: an accuracy is shown in percent, any other name as a number.
        num_rounds: that were planned, of which `reports` may hold fewer.
        reports: all rounds so far in their order, at least the start.
        config_toml: the run file.
        examples: held-out examples with their predictions before training and at the end.
        shown_answers: held-out prompts with the answers generated before training and at the end.
        holdings: who holds what.
        load_code: the Python that loads the adapter.
        notes: on the run file, in a line each, such as settings that do nothing.
        versions: of the software, by name.

    Raises:
        ValueError: `reports` is empty.
    """
    if not reports:
        raise ValueError("a report needs at least one round report")
    head = element(
        "header",
        element("p", "fedlora, federated LoRA fine-tuning", class_="eyebrow"),
        element("h1", title),
        element("p", subtitle, class_="subtitle"),
        element("p", prose(sentences.headline(reports, metric_name, num_rounds=num_rounds)), class_="headline"),
        sections.facts(reports, metric_name, num_rounds=num_rounds),
    )
    body = element(
        "main",
        sections.learning(reports, metric_name, num_rounds=num_rounds),
        groups(reports, metric_name),
        answers(reports, shown_answers),
        _gallery(examples),
        who_holds_what(holdings),
        sections.aggregation(reports),
        sections.time(reports),
        sections.refused(reports),
        _load(load_code),
        section("Configuration", bullets(notes), details("The run file", element("pre", element("code", config_toml)))),
    )
    return "<!DOCTYPE html>\n" + element(
        "html", _head(title), element("body", head, body, _versions(versions or {})), lang="en"
    )


def _head(title: str) -> Html:
    style = files("fedlora.server.report").joinpath("page.css").read_text(encoding="utf-8")
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{title} \N{EN DASH} fedlora"),
        element("style", trusted(style)),
    )


def _load(load_code: str) -> Html:
    if not load_code:
        return NOTHING
    return section("Load it", element("pre", element("code", load_code)))


def _versions(versions: Mapping[str, str]) -> Html:
    return element("footer", " · ".join(f"{name} {version}" for name, version in versions.items()))


def _gallery(examples: Sequence[ShownExample]) -> Html:
    """Return examples by what training changed about them."""
    kinds = {
        "Now right": [e for e in examples if e.before != e.label and e.after == e.label],
        "Still wrong": [e for e in examples if e.before != e.label and e.after != e.label],
        "Now wrong": [e for e in examples if e.before == e.label and e.after != e.label],
        "Right before and after": [e for e in examples if e.before == e.label and e.after == e.label],
    }
    lists = (
        join((element("h3", kind), element("ul", *map(_example, shown), class_="examples")))
        for kind, shown in kinds.items()
        if shown
    )
    explanation = "Above, the true label; below it, what the model says at the end, and said before training."
    return section("Held-out examples", element("p", explanation), *lists) if examples else NOTHING


def _example(example: ShownExample) -> Html:
    mark = "✓" if example.after == example.label else "✗"
    words = join(
        (
            element("strong", example.label),
            element("span", example.group, class_="group"),
            element("span", f"{mark} now {example.after}"),
            element("span", f"before {example.before}", class_="quiet"),
        )
    )
    if example.picture_png is not None:
        source = "data:image/png;base64," + base64.b64encode(example.picture_png).decode()
        return element("li", element("img", src=source, alt=f"example of {example.label}"), words)
    text = example.text or ""
    shown = text if len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS] + "…"
    return element("li", element("blockquote", shown), words, class_="text")
