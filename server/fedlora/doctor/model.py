"""Whether the run's base model and data are here, and whether the hub can be reached for what is not."""

import os
import shlex
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from fedlora.common.config import RunConfig
from fedlora.common.errors import DataError, ModelError
from fedlora.common.resources import PACKAGE_PREFIX, resolve_path
from fedlora.doctor.finding import Finding, ok, problem, warning
from fedlora.doctor.subject import Subject

_HUB_SECONDS = 4.0


def hub(subject: Subject) -> Iterator[Finding]:
    """Find out whether the hub can be reached; nothing but a model that is not here needs it."""
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        yield ok("hub", "not asked: HF_HUB_OFFLINE is set")
        return
    if (reason := _out_of_reach(ENDPOINT)) is None:
        yield ok("hub", f"{ENDPOINT} answers")
    else:
        remedy = "export HF_HUB_OFFLINE=1" if _is_here(subject.run) else "export https_proxy=http://PROXY:PORT"
        yield warning("hub", f"{ENDPOINT} cannot be reached ({reason}); models that are here need it not", remedy)


def base_model(subject: Subject) -> Iterator[Finding]:
    """Find out whether the run's base model, or a site's own copy, lies on this machine."""
    if subject.site is not None and subject.path is not None:
        if subject.site.model.path is not None:
            yield _own_copy(subject.path.parent / Path(subject.site.model.path).expanduser(), subject)
        return
    if subject.run is None:
        return
    name = subject.run.model.name
    location = resolve_path(name, error=ModelError)
    if isinstance(location, Path):
        yield _own_copy(location, subject)
    elif (folder := _cached(subject.run)) is not None:
        yield ok("base model", f"{name} is in the hub's cache, {_size_text(folder)}")
    else:
        revision = f" --revision {shlex.quote(subject.run.model.revision)}" if subject.run.model.revision else ""
        yield warning(
            "base model",
            f"{name} is neither a folder nor in the hub's cache; the first round would fetch it",
            f"hf download {shlex.quote(name)}{revision}",
        )


def fingerprint(subject: Subject) -> Iterator[Finding]:
    """Say what pins the base model of a run that lies here, or that the run file pins another."""
    if subject.run is None:
        return
    from fedlora.models.pins import local_checkpoint, pin_lines

    if (folder := local_checkpoint(subject.run)) is None:
        return
    lines, is_other = pin_lines(subject.run, folder)
    for line in lines:
        if is_other:
            remedy = f"correct [model] in {subject.path}, or fetch the model that it is of"
            yield problem("fingerprint", f"the run file pins another base model than is here: {line}", remedy)
        else:
            is_pinned = subject.run.model.fingerprint is not None
            yield ok("fingerprint", f"{line}{'' if is_pinned else ', under [model], pins it for all sites'}")


def data(subject: Subject) -> Iterator[Finding]:
    """Find out whether what the data are named by is there; `fedlora data preview` looks into it."""
    if subject.site is not None and subject.path is not None:
        if subject.site.brings_trainer:
            yield ok("data", "the file names none: a trainer of one's own brings them, or [data] path is missing")
            return
        name, beside = subject.site.data.path, subject.path.parent
    elif subject.run is not None and subject.folder is None:
        name, beside = subject.run.data.path, Path()
    else:
        return
    if name.startswith("datasets:"):
        yield ok("data", f"{name}, of the hub or its cache")
        return
    location = name if name.startswith(PACKAGE_PREFIX) else str(beside / Path(name).expanduser())
    found = resolve_path(location, error=DataError)
    if isinstance(found, Path):
        yield ok("data", f"{found} is there")
    else:
        remedy = f"ls {shlex.quote(str(Path(location).parent))}, and correct data.path in {subject.path}"
        yield problem("data", f"{location}: no such file or folder", remedy)


def _own_copy(folder: Path, subject: Subject) -> Finding:
    if not (folder / "config.json").is_file():
        key = "model.path" if subject.site is not None else "model.name"
        remedy = f"ls {shlex.quote(str(folder))}, and correct {key} in {subject.path}"
        return problem("base model", f"{folder}: no config.json; expected what save_pretrained wrote", remedy)
    return ok("base model", f"{folder}, {_size_text(folder)}")


def _is_here(run: RunConfig | None) -> bool:
    if run is None:
        return True
    return isinstance(resolve_path(run.model.name, error=ModelError), Path) or _cached(run) is not None


def _cached(run: RunConfig) -> Path | None:
    from fedlora.models.pins import cached_folder

    return cached_folder(run.model.name, run.model.revision)


def _out_of_reach(address: str) -> str | None:
    request = urllib.request.Request(address, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=_HUB_SECONDS):
            return None
    except urllib.error.HTTPError:
        return None  # whatever it says, it is there
    except OSError as error:
        return str(getattr(error, "reason", error))


def _size_text(folder: Path) -> str:
    size = sum(os.stat(path).st_size for path in folder.iterdir() if path.is_file())
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
