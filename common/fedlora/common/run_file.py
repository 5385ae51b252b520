"""The run file: TOML in, a checked RunConfig out, and back as commented TOML."""

import difflib
import logging
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

import tomli_w
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from fedlora.common.config import RunConfig
from fedlora.common.config.aggregation import ELSEWHERE, settings_of_all
from fedlora.common.errors import ConfigError
from fedlora.common.parsing import toml_in
from fedlora.common.section import Section
from fedlora.common.spelling import twins_in_words

logger = logging.getLogger(__name__)

Table = dict[str, Any]

# Setting one key of a group on the command line replaces the choice that the file made.
_CHOICES = {"task": "kind", "partition": "by", "aggregation": "method"}
_EXCLUSIVE = {"train.steps": "epochs", "train.epochs": "steps"}


def load_run(path: Path, overrides: Iterable[str] = (), *, aggregates_elsewhere: bool = False) -> RunConfig:
    """Return the run in a TOML file, with `section.key=value` overrides applied.

    Args:
        aggregates_elsewhere: as for `parse_toml`; also for who only reads what a run has left.

    Raises:
        ConfigError: the file is missing or no TOML, or a key or value is wrong; one line for each finding.
    """
    try:
        # Some editors put a byte order mark in front, which TOML does not know.
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path}: no such file; `fedlora simulate --print-config > {path.name}` writes one"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    return parse_toml(text, overrides, origin=str(path), aggregates_elsewhere=aggregates_elsewhere)


def parse_toml(
    text: str, overrides: Iterable[str] = (), *, origin: str, aggregates_elsewhere: bool = False
) -> RunConfig:
    """Return the run in TOML.

    Args:
        origin: names the source in errors.
        aggregates_elsewhere: whether the aggregation method need not be installed here.
    """
    try:
        table = toml_in(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{origin}: not valid TOML: {error}") from error
    try:
        return parse_run(table, overrides, origin=origin, aggregates_elsewhere=aggregates_elsewhere)
    except RecursionError as error:  # A key of very many parts is a table in a table in a table.
        raise ConfigError(f"{origin}: tables are nested too deeply; expected keys in sections") from error


def parse_run(
    table: Table, overrides: Iterable[str] = (), *, origin: str = "run", aggregates_elsewhere: bool = False
) -> RunConfig:
    """Return the run in a parsed TOML table; the arguments are those of `parse_toml`."""
    table = {name: dict(section) if isinstance(section, dict) else section for name, section in table.items()}
    for override in sorted(overrides, key=lambda text: not _is_choice(text)):
        _apply(table, override)
    _fill_defaults(table)
    try:
        return RunConfig.model_validate(table, context={ELSEWHERE: aggregates_elsewhere})
    except ValidationError as error:
        findings: dict[str, str] = {}
        for detail in error.errors():
            path, finding = _describe(detail)
            findings[path] = f"{findings[path]}, or {detail['msg'].lower()}" if path in findings else finding
        raise ConfigError("\n".join(f"{origin}: {finding}" for finding in findings.values())) from error


def require_labels(config: RunConfig, *, origin: str = "") -> None:
    """Check that a classification names its labels, and warn of those that look alike; `origin` is for errors.

    Raises:
        ConfigError: it does not, and a deployment cannot find them out.
    """
    if config.task.kind.endswith("_classification") and not config.data.labels:
        raise ConfigError(
            f"{origin and f'{origin}: '}data.labels is empty; a deployment must name the labels, because they do not "
            'leave the sites: labels = ["cat", "dog"] under [data]'
        )
    if twins := twins_in_words(config.data.labels):
        logger.warning("data.labels that look alike are kept apart: %s; name each label once", twins)


def to_toml(config: RunConfig, *, comments: bool = True) -> str:
    """Return the whole run as TOML, each key with its description; a key without value is commented out."""
    lines: list[str] = []
    for name in RunConfig.model_fields:
        section: Section = getattr(config, name)
        lines += ["", f"[{name}]"]
        for key, value, description in section.entries():
            entry = toml_entry(key, value)
            lines.append(f"{entry:<34} # {description}" if comments else entry)
    return "\n".join(lines[1:]) + "\n"


def differences(one: RunConfig, other: RunConfig) -> dict[str, tuple[object, object]]:
    """Return the dotted keys in which two runs differ, sorted, with both values."""
    left, right = (dict(_flat(config.model_dump(mode="json"))) for config in (one, other))
    return {
        key: (left.get(key), right.get(key))
        for key in sorted(left.keys() | right.keys())
        if left.get(key) != right.get(key)
    }


def _fill_defaults(table: Table) -> None:
    """Write into `table` what a section leaves open: which variant it is, and that epochs replace the default steps."""
    for name, key in _CHOICES.items():
        if isinstance(section := table.get(name), dict):
            section.setdefault(key, getattr(RunConfig(), name).model_dump()[key])
    train = table.get("train")
    if isinstance(train, dict) and train.get("epochs") is not None:
        train.setdefault("steps", None)


def _is_choice(override: str) -> bool:
    section, _, key = override.partition("=")[0].strip().partition(".")
    return _CHOICES.get(section) == key


def _apply(table: Table, override: str) -> None:
    path, equals, text = override.partition("=")
    section, dot, key = path.strip().partition(".")
    if not (equals and dot and section and key):
        raise ConfigError(f"--set {override}: expected section.key=value, such as train.learning_rate=0.001")
    values = table.setdefault(section, {})
    if not isinstance(values, dict):
        raise ConfigError(f"--set {override}: {section} is not a section")
    value = toml_value(text.strip())
    if _CHOICES.get(section) == key and values.get(key) != value:
        values.clear()
    if other := _EXCLUSIVE.get(f"{section}.{key}"):
        values[other] = None
    values[key] = value


def toml_value(text: str) -> object:
    """Return `text` as a TOML value; what is no TOML value is a string without its quotes."""
    try:
        return toml_in(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def toml_entry(key: str, value: object) -> str:
    """Return `key = value`; commented out without a value."""
    return f"# {key} =" if value is None else f"{key} = {_toml(value)}"


def _toml(value: object) -> str:
    """Return one value in TOML, on one line."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(tomli_w.dumps({key: item}).strip() for key, item in value.items())}}}"
    return tomli_w.dumps({"value": value}).strip().removeprefix("value = ")


def _describe(detail: ErrorDetails) -> tuple[str, str]:
    """Return the key's path, and in words what is wrong with it."""
    path = _without_tag(detail["loc"])
    if detail["type"] == "extra_forbidden":
        return path, _unknown(path, detail["loc"])
    if detail["type"] == "union_tag_invalid":
        context = detail["ctx"]
        path = f"{path}.{_CHOICES[path]}"
        return path, f"{path} is {context['tag']!r}; expected one of {context['expected_tags']}"
    if detail["type"] == "value_error":
        reason = str(detail["ctx"]["error"])
        return path, f"{path} {reason}" if path else reason
    if detail["type"] in ("model_type", "model_attributes_type"):
        return path, f"{path} is {detail['input']!r}; expected a section: [{path}] and its keys below"
    message = detail["msg"][0].lower() + detail["msg"][1:]
    return path, f"{path} is {detail['input']!r}: {message}"


def _without_tag(location: tuple[int | str, ...]) -> str:
    """Return pydantic's location as the key's path: without the union's tag and pydantic's own type names."""
    parts = [str(part) for part in location]
    if len(parts) > 1 and parts[0] in _CHOICES and parts[1] not in _section_keys(parts[0]):
        del parts[1]
    return ".".join(parts[:2])


def _unknown(path: str, location: tuple[int | str, ...]) -> str:
    section, dot, key = path.partition(".")
    if not dot:
        close = difflib.get_close_matches(section, RunConfig.model_fields, n=1)
        hint = f"did you mean [{close[0]}]?" if close else f"the sections are {', '.join(RunConfig.model_fields)}"
        return f"{path}: unknown section; {hint}"
    known = {name: _section_keys(name) for name in RunConfig.model_fields}
    if key in known[section]:
        return f"{path} does not go with {section}.{_CHOICES[section]} = {str(location[1])!r}; remove one of them"
    everywhere = {key: f"{name}.{key}" for name, keys in known.items() for key in keys}
    if close := difflib.get_close_matches(key, known[section], n=1):
        return f"{path}: unknown key; did you mean {section}.{close[0]}?"
    if close := difflib.get_close_matches(key, everywhere, n=1):
        return f"{path}: unknown key; did you mean {everywhere[close[0]]}?"
    return f"{path}: unknown key; [{section}] has {', '.join(known[section])}"


def _section_keys(name: str) -> list[str]:
    """Return the keys that a section may have, over all its variants."""
    if name == "aggregation":
        return list(settings_of_all())
    annotation = RunConfig.model_fields[name].annotation
    variants = get_args(annotation) or (annotation,)
    return list(dict.fromkeys(key for variant in variants for key in variant.model_fields))


def _flat(table: Table, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
