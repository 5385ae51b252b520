"""HTML out of nested calls. Text is escaped unless it is `Html`, which only `element` and `trusted` make."""

import html
import itertools
import re
from collections.abc import Iterable, Sequence

_VOID = {"meta", "img", "br"}


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def trusted(text: str) -> Html:
    """Return text of our own making as markup."""
    return Html(text)


def escape(text: str) -> Html:
    """Return text with its special characters escaped."""
    return text if isinstance(text, Html) else Html(html.escape(text))


def prose(text: str) -> Html:
    """Return a sentence, escaped, with a printer's apostrophes and no line break between a number and its unit."""
    text = re.sub(r"(?<=\d) (?=%|s\b|min\b|h\b|[kMGT]B\b)", "\N{NO-BREAK SPACE}", text)
    return escape(text.replace("'", "\N{RIGHT SINGLE QUOTATION MARK}"))


def join(parts: Iterable[str]) -> Html:
    """Return the parts one after the other."""
    return Html("".join(escape(part) for part in parts))


def element(name: str, /, *content: str, **attributes: str) -> Html:
    """Return an element; attribute names lose a trailing underscore, and inner ones become hyphens.

    An empty attribute is left out, except for `alt`, where empty means a picture without content.
    """
    words = "".join(f' {key.rstrip("_").replace("_", "-")}="{html.escape(value)}"' for key, value in attributes.items())
    return Html(f"<{name}{words}>" if name in _VOID else f"<{name}{words}>{join(content)}</{name}>")


def table(
    caption: str,
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    num_text_columns: int = 1,
    num_total_rows: int = 0,
) -> Html:
    """Return a table whose first columns are words, set left, and the others numbers, set right; totals come last."""

    def cell(index: int, text: str) -> Html:
        if index < num_text_columns:
            return element("td", text, class_="words")
        return element("td", re.sub(r"^-(?=\d)", "\N{MINUS SIGN}", text), class_="number")

    titles = (
        element("th", text, scope="col", class_="words" if index < num_text_columns else "number")
        for index, text in enumerate(head)
    )
    body = [element("tr", *itertools.starmap(cell, enumerate(row))) for row in rows]
    first_total = len(rows) - num_total_rows
    content = (
        element("caption", caption),
        element("thead", element("tr", *titles)),
        element("tbody", *body[:first_total]),
        element("tfoot", *body[first_total:]) if num_total_rows else "",
    )
    # A region that scrolls must be reachable by keyboard.
    return element("div", element("table", *content), class_="scrolls", tabindex="0", role="region", aria_label=caption)


def figure(title: str, svg: Html, *, keys: Sequence[tuple[str, str]] = ()) -> Html:
    """Return a titled chart; `keys` name its colours (CSS classes of page.css) in words."""
    caption = element("figcaption", element("strong", title), legend(keys) if keys else "")
    return element("figure", caption, svg)


def legend(keys: Iterable[tuple[str, str]]) -> Html:
    """Return what a chart's colours (CSS classes of page.css) mean in words."""
    entries = (element("span", element("i", class_=f"swatch {style}"), prose(words)) for style, words in keys)
    return element("span", *entries, class_="keys")


def details(summary: str, *content: str) -> Html:
    """Return content that opens on a click."""
    return element("details", element("summary", summary), *content)


NOTHING = Html("")


def bullets(lines: Sequence[str]) -> Html:
    """Return sentences as a list, or nothing."""
    return element("ul", *(element("li", prose(line)) for line in lines)) if lines else NOTHING


def section(title: str, *content: str) -> Html:
    """Return a section under its heading."""
    return element("section", element("h2", title), *content)


def paragraph(*texts: str) -> Html:
    """Return the sentences that are not empty as one paragraph, or nothing."""
    words = " ".join(text for text in texts if text)
    return element("p", prose(words)) if words else NOTHING
