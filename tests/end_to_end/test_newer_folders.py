"""Each command refuses a folder that a newer fedlora has written, in one line, before it does anything."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fedlora.common.folder_version import AUTHORITY_FOLDER, RUN_FOLDER, SITE_FOLDER, STORE_FOLDER, VERSION_FILE, Form

Command = Callable[..., subprocess.CompletedProcess[str]]


def written_by_newer(folder: Path, form: Form) -> Path:
    folder.mkdir(parents=True)
    content = {"kind": form.kind, "version": form.version + 1, "written_by": "9.8"}
    (folder / VERSION_FILE).write_text(json.dumps(content))
    # What this program knows nothing of is not its reason.
    if form is STORE_FOLDER:
        (folder / "queue.json").write_text("{}")
    else:
        (folder / "run.toml").write_text("[of_the_future]\n")
    if form is RUN_FOLDER:
        adapter = folder / "published" / "digits-v0001"
        adapter.mkdir(parents=True)
        (adapter / "adapter.json").write_text("{}")
    return folder


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("place", "form", "command"),
    [
        ("out", RUN_FOLDER, ["simulate", "run.toml", "--out", "out", "--resume"]),
        ("out", RUN_FOLDER, ["server", "start", "run.toml", "--out", "out"]),
        ("out", RUN_FOLDER, ["server", "status", "--out", "out"]),
        ("out", RUN_FOLDER, ["export", "out", "--out", "exported"]),
        ("out", RUN_FOLDER, ["server", "stop", "--out", "out"]),
        ("out", RUN_FOLDER, ["server", "audit", "--out", "out"]),
        ("out", RUN_FOLDER, ["server", "renew", "--out", "out"]),
        ("out", RUN_FOLDER, ["sites", "invite", "north", "--out", "out"]),
        ("out", RUN_FOLDER, ["sites", "revoke", "north", "--out", "out"]),
        ("out", RUN_FOLDER, ["adapters", "rollback", "--out", "out"]),
        ("out", RUN_FOLDER, ["adapters", "rollback", "--undo", "--out", "out"]),
        ("out", STORE_FOLDER, ["server", "stop", "--out", "out"]),
        ("out", STORE_FOLDER, ["server", "start", "--store", "out"]),
        ("out", STORE_FOLDER, ["sites", "invite", "north", "--out", "out"]),
        ("out", STORE_FOLDER, ["runs", "submit", "run.toml", "--store", "out"]),
        ("out/identity", AUTHORITY_FOLDER, ["server", "renew", "--out", "out"]),
        ("north.site", SITE_FOLDER, ["client", "pause", "--site", "north.toml"]),
        ("out/identity", AUTHORITY_FOLDER, ["sites", "list", "--out", "out"]),
        ("out/identity", AUTHORITY_FOLDER, ["sites", "invite", "north", "--run", "digits", "--out", "out"]),
        ("north.site", SITE_FOLDER, ["client", "join", "127.0.0.1:1", "--site", "north.toml", "--insecure"]),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_a_folder_of_a_newer_version_is_refused_by_each_command_in_a_line(
    tmp_path: Path, fedlora_here: Command, place: str, form: Form, command: list[str]
) -> None:
    written_by_newer(tmp_path / place, form)
    (tmp_path / "run.toml").write_text(
        f'[run]\nname = "digits"\n[data]\nlabels = {json.dumps([str(label) for label in range(10)])}\n'
    )
    (tmp_path / "north.toml").write_text('[site]\nname = "north"\n[data]\npath = "."\n')
    before = contents(tmp_path)
    done = fedlora_here(*command)
    assert done.returncode == 1, done.stdout
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert f"is of version {form.version + 1} (a {form.kind} folder, written by fedlora 9.8); this is fedlora" in line
    assert "; pip install fedlora-9.8-py3-none-any.whl, or restore the backup made before the upgrade" in line
    assert contents(tmp_path) == before
