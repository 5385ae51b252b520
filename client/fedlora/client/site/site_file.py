"""The site file: what a site decides for itself. TOML in, a checked SiteConfig out.

The run fixes what all sites must share; this says where a site's own data lie, which column is which, and what the
site allows. Its limits win over the run's wishes, and none of it is sent.
"""

import tomllib
from pathlib import Path

from pydantic import Field, ValidationError, field_validator

from fedlora.client.site.limits_section import LimitsSection
from fedlora.common.config import SPLITS, DataSection, Fraction, RunConfig, Section, Splits, TextFormat
from fedlora.common.config.training import DEVICES, Device
from fedlora.common.errors import ConfigError
from fedlora.common.parsing import toml_in
from fedlora.common.resources import DATASETS_PREFIX, PACKAGE_PREFIX


class SiteSection(Section):
    name: str = Field(min_length=1, max_length=60, description="the site's name, as it was invited")
    state: str | None = Field(
        None, description="folder for key, adapters and undelivered results; NAME.site beside this file if left out"
    )

    @field_validator("name")
    @classmethod
    def _is_the_name_of_a_folder(cls, name: str) -> str:
        if name.startswith(".") or not name.isprintable() or "/" in name or "\\" in name:
            raise ValueError(f"is {name!r}; expected a name without slash or leading dot")
        return name


class SiteDataSection(Section):
    path: str = Field(
        min_length=1,
        description="image folder, .npz, .csv, .tsv, .jsonl, .json, .parquet, package:MODULE/FILE, datasets:NAME; "
        "never sent",
    )
    only_group: str | None = Field(None, description="of a source with groups: the examples of this one")
    test: Fraction | None = Field(None, description="share held out for the test, in place of the run's")
    validation: Fraction | None = Field(None, description="share kept for validation, in place of the run's")
    splits: Splits | None = Field(None, description=f"{SPLITS}; in place of the run's")
    format: TextFormat | None = Field(None, description="of the rows of a language model, in place of the run's")
    text: str | None = Field(None, description="the text's column, in place of the run's")
    prompt: str | None = Field(None, description="the prompt's column, in place of the run's")
    completion: str | None = Field(None, description="the answer's column, in place of the run's")
    image: str | None = Field(None, description="the picture's column, in place of the run's")
    ignore: tuple[str, ...] | None = Field(
        None, strict=False, description="columns and message keys that are left aside on purpose, in place of the run's"
    )
    label: str | None = Field(None, description="the label's column, in place of the run's")
    group: str | None = Field(None, description="column of the natural group, in place of the run's")
    split_by: str | None = Field(None, description="as the run's data.split_by")


class SiteModelSection(Section):
    path: str | None = Field(
        None, description="where the run's base model lies here; its fingerprint must be the run's"
    )


class WorkerSection(Section):
    device: Device = Field("auto", description=DEVICES)
    gpu: str | None = Field(
        None, description='the GPU\'s number, where there are several; "0,1" with device = "cuda_all" for a large model'
    )


# Stands for the data of a site whose own trainer has them.
_BROUGHT = "trainer:"


class SiteConfig(Section):
    """One site, whole."""

    site: SiteSection
    data: SiteDataSection
    model: SiteModelSection = SiteModelSection()
    limits: LimitsSection = LimitsSection()
    worker: WorkerSection = WorkerSection()

    @property
    def brings_trainer(self) -> bool:
        """Whether the site trains with a trainer of its own, which has the data."""
        return self.data.path == _BROUGHT


def load_site(path: Path, *, needs_data: bool = True) -> SiteConfig:
    """Return the site in a TOML file.

    Args:
        needs_data: whether it must name data; without, one that names none is a site with a trainer of its own.

    Raises:
        ConfigError: the file is missing or no TOML, or a key or value is wrong; one line for each finding.
    """
    try:
        table = toml_in(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; expected a site file with [site] name and [data] path") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    if not needs_data and "data" not in table:
        table["data"] = {"path": _BROUGHT}
    try:
        return SiteConfig.model_validate(table)
    except ValidationError as error:
        lines = [_finding(path, table, detail["loc"], detail["type"], detail["msg"]) for detail in error.errors()]
        raise ConfigError("\n".join(lines)) from error


def state_folder(path: Path, site: SiteConfig) -> Path:
    """Return the folder of a site's state, for the site file at `path`."""
    return path.parent / Path(site.site.state or f"{site.site.name}.site").expanduser()


def for_site(run: RunConfig, site: SiteConfig, *, beside: Path) -> RunConfig:
    """Return the run as this site does it: its own data and device, its own copy of the base model.

    Args:
        beside: the folder that relative paths of the site file start from.
    """
    given = {key: value for key, value in site.data.model_dump().items() if value is not None and key != "only_group"}
    # Where the site has a trainer of its own, nothing is read by what the run says of data.
    given["path"] = run.data.path if site.brings_trainer else _located(given["path"], beside, is_always_path=True)
    # A test set of its own, named by the server, would be a path on this machine.
    share = run.data.test if isinstance(run.data.test, float) else 0.0
    data = DataSection.model_validate({**run.data.model_dump(), "test": share, **given})
    changes: dict[str, object] = {
        "data": data,
        "train": run.train.model_copy(update={"device": site.worker.device}),
        "federation": run.federation.model_copy(update={"start_from": None}),
    }
    if site.model.path is not None:
        changes["model"] = run.model.model_copy(update={"name": _located(site.model.path, beside), "revision": None})
    return run.model_copy(update=changes)


def _located(name: str, beside: Path, *, is_always_path: bool = False) -> str:
    """Return a path of the site file as one that holds from anywhere; a package's or a hub's name stays."""
    path = beside / Path(name).expanduser()
    is_path = not name.startswith((PACKAGE_PREFIX, DATASETS_PREFIX)) and (is_always_path or path.exists())
    return str(path.resolve()) if is_path else name


def _finding(path: Path, table: dict[str, object], location: tuple[int | str, ...], kind: str, message: str) -> str:
    key = ".".join(str(part) for part in location[:2])
    if kind == "missing":
        return f"{path}: {key} is missing; a site file needs [site] name and [data] path"
    if kind == "extra_forbidden":
        names = SiteConfig.model_fields
        section = names[str(location[0])].annotation if len(location) > 1 else SiteConfig
        known = ", ".join(getattr(section, "model_fields", names))
        return f"{path}: {key} is unknown; expected one of {known}"
    value: object = table
    for part in location[:2]:
        value = value.get(str(part)) if isinstance(value, dict) else None
    if kind == "model_type":
        return f"{path}: {key} is {value!r}; expected a section: [{key}] and its keys below"
    if kind == "value_error":
        return f"{path}: {key} {message.removeprefix('Value error, ')}"
    return f"{path}: {key} is {value!r}: {message[0].lower()}{message[1:]}"
