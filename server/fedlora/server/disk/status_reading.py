"""What a status.json must hold to be shown: one that is cut, or somebody else's, is said in a line."""

from pathlib import Path

from pydantic import BaseModel, ValidationError

from fedlora.common.errors import StoreError
from fedlora.common.folder_version import RUN_FOLDER, version_of
from fedlora.common.parsing import json_in
from fedlora.common.run_folder import STATUS_FILE


class SiteStanding(BaseModel):
    """Where a site stands: a state, and more about it."""

    state: str
    detail: str


class StatusContent(BaseModel):
    """What whoever reads a status relies on; the file has more, and server status adds whether it is running."""

    run: str
    pid: int
    port: int
    phase: str
    written: str
    failure: str
    waiting_for: str
    round: int
    num_rounds: int
    sites: dict[str, SiteStanding]
    cohort: list[str]
    accepted: list[str]
    refused: dict[str, str]
    last_round: int | None
    metric: float | None
    error_before: float | None
    error_after: float | None
    seconds: dict[str, float]
    totals: dict[str, int]


def checked_status(folder: Path) -> dict[str, object]:
    """Return what lies in the status file of a run folder.

    Raises:
        StoreError: no server has run there, the file is damaged, or the folder is of a newer version.
    """
    version_of(folder, RUN_FOLDER)
    path = folder / STATUS_FILE
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise StoreError(f"{folder}: no server has run there; expected the folder given to server start") from error
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror})") from error
    return status_in(raw, origin=str(path))


def status_in(raw: bytes, *, origin: str) -> dict[str, object]:
    """Return the status in a file's bytes; `origin` names the file in errors.

    Raises:
        StoreError: it is damaged.
    """
    try:
        StatusContent.model_validate_json(raw)
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"])) or "as a whole"
        raise StoreError(f"{origin} is damaged ({place}); a server that runs there writes it anew") from error
    found: dict[str, object] = json_in(raw)
    return found
