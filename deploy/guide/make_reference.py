"""Write the reference of the run file and of the site file from what reads them: python deploy/guide/make_reference.py

Beside it come run-file.md and site-file.md, which are committed; `tests/test_guide.py` compares.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from fedlora.client.site.site_file import SiteConfig
from fedlora.common.config import RunConfig
from fedlora.common.run_file import toml_entry
from fedlora.common.section import Section
from fedlora.methods import METHODS

_HERE = Path(__file__).parent
_BOUNDS = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
_TYPES = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "array": "list",
          "object": "table"}  # fmt: skip


def run_file_page() -> str:
    """Return the reference of the run file, in Markdown."""
    lines = [
        "# The run file",
        "",
        "Every section and key of a run, with what it may be and what it is where it is left out. Unknown keys are",
        "refused. `fedlora simulate --print-config` prints the whole file with these defaults, and each command takes",
        "`--set section.key=value`. `make_reference.py` writes this page.",
    ]
    default = RunConfig()
    for name, field in RunConfig.model_fields.items():
        chosen = getattr(default, name)
        if name == "aggregation":
            # Methods of others that are installed here are theirs to describe.
            own = {title: kind for title, kind in METHODS.items() if kind.__module__.startswith("fedlora.")}
            lines += _section(name, own, choice="method", default=chosen.name)
            continue
        annotations = get_args(field.annotation) or (field.annotation,)
        choice = _choice(annotations)
        kinds = {kind.model_fields[choice].default if choice else "": kind for kind in annotations}
        lines += _section(name, kinds, choice=choice, default=getattr(chosen, choice) if choice else "")
    return "\n".join(lines) + "\n"


def site_file_page() -> str:
    """Return the reference of the site file, in Markdown."""
    lines = [
        "# The site file",
        "",
        "A site's own decisions; nothing of this file is sent, and its limits win over a run's wishes. `[site] name`",
        "and `[data] path` are needed. `fedlora client join --print-site` prints the whole file with these defaults.",
        "`make_reference.py` writes this page.",
    ]
    for name, field in SiteConfig.model_fields.items():
        assert field.annotation is not None
        lines += _section(name, {"": field.annotation}, choice="", default="")
    return "\n".join(lines) + "\n"


def _section(name: str, kinds: Mapping[str, type[Section]], *, choice: str, default: str) -> Iterator[str]:
    """Yield the lines of a section; of one with several kinds, which the key `choice` tells apart, each below it."""
    yield from ("", f"## [{name}]")
    for title, kind in kinds.items():
        if choice:
            yield from ("", f'### {choice} = "{title}"{" (the default)" if title == default else ""}')
        if summary := getattr(kind, "summary", ""):
            yield from ("", f"{summary[0].upper()}{summary[1:]}.")
        if fields := [field for field in kind.model_fields if field != choice]:
            schema = kind.model_json_schema()
            yield from ("", "| key | may be | left out | what it is |", "|---|---|---|---|")
            yield from (_row(kind, key, schema) for key in fields)
        else:
            yield from ("", "It has no settings.")


def _row(kind: type[Section], key: str, schema: Mapping[str, Any]) -> str:
    field = kind.model_fields[key]
    if field.is_required():
        left_out = "it is needed"
    else:
        entry = toml_entry(key, field.get_default(call_default_factory=True))
        left_out = "nothing" if entry.startswith("#") else f"`{entry.partition(' = ')[2]}`"
    cells = (f"`{key}`", _may_be(schema["properties"][key], schema), left_out, field.description or "")
    escaped = (cell.replace("|", r"\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def _may_be(schema: Mapping[str, Any], whole: Mapping[str, Any]) -> str:
    """Return in words what a JSON schema allows."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return _may_be(whole["$defs"][name], whole)
    if "anyOf" in schema:
        kinds = [_may_be(each, whole) for each in schema["anyOf"] if each.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "const" in schema:
        return f'`"{schema["const"]}"`'
    if "enum" in schema:
        return ", ".join(f'`"{value}"`' if isinstance(value, str) else f"`{value}`" for value in schema["enum"])
    kind = _TYPES.get(str(schema.get("type")), "any")
    bounds = [f"{sign} {schema[name]:g}" for name, sign in _BOUNDS if name in schema]
    if kind == "list":
        items = schema.get("items") or {}
        kind = f"list of {_may_be(items, whole)}" if items else kind
    return f"{kind} {' and '.join(bounds)}" if bounds else kind


def _choice(kinds: Sequence[Any]) -> str:
    """Return the key by which a section's kinds are told apart; empty where there is one kind alone."""
    if len(kinds) < 2:
        return ""
    return next(key for key, field in kinds[0].model_fields.items() if len(get_args(field.annotation)) == 1)


def main() -> None:
    """Write both pages."""
    (_HERE / "run-file.md").write_text(run_file_page())
    (_HERE / "site-file.md").write_text(site_file_page())


if __name__ == "__main__":
    main()
