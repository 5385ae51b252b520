"""The templates of a page and what they do to words and numbers; other packages' pages build on the report's."""

import base64
import re
from collections.abc import Callable, Mapping
from functools import partial
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Template


def template(package: str, name: str, filters: Mapping[str, Callable[..., object]] | None = None) -> "Template":
    """Return a template from the folder `templates` of a package; what it includes may be the report's.

    `filters` are more of them, by name.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(partial(_source, package)), autoescape=True, undefined=StrictUndefined, auto_reload=False
    )
    environment.filters |= {"prose": _prose, "number": _number, "base64": _base64, **(filters or {})}
    return environment.get_template(name)


def _source(package: str, name: str) -> str:
    """Return a template's text without the line breaks and indents that are only for its readers."""
    found = (files(each).joinpath("templates", name) for each in (package, __package__))
    file = next(file for file in found if file.is_file())
    return re.sub(r"\n\s*", "", file.read_text(encoding="utf-8"))


def _prose(text: str) -> str:
    """Return a sentence with a printer's apostrophes and no line break between a number and its unit."""
    text = re.sub(r"(?<=\d) (?=%|s\b|min\b|h\b|[kMGT]B\b)", "\N{NO-BREAK SPACE}", text)
    return text.replace("'", "\N{RIGHT SINGLE QUOTATION MARK}")


def _number(text: str) -> str:
    """Return a number, or several, with a printer's minus sign."""
    return re.sub(r"(?<![\w.])-(?=\d)", "\N{MINUS SIGN}", text)


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
