"""Folders of former versions become those of today, whenever a process is killed, and newer ones are left alone."""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from fedlora.common.errors import StoreError
from fedlora.common.folder_version import (
    AUTHORITY_FOLDER,
    RUN_FOLDER,
    SITE_FOLDER,
    VERSION_FILE,
    Form,
    bring_up_to_date,
    version_of,
)


def written(folder: Path, content: Mapping[str, str]) -> Path:
    for name, text in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def held(folder: Path) -> dict[str, str]:
    """Return what a folder holds, but for versions and backups."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    names = {str(path.relative_to(folder)): path.read_text() for path in paths}
    return {name: text for name, text in names.items() if not name.startswith(("migrated", VERSION_FILE))}


def joined(folder: Path) -> dict[str, bytes | None]:
    """Version 2 has one file in place of two."""
    return {"both": (folder / "sub/one").read_bytes() + (folder / "two").read_bytes(), "sub/one": None, "two": None}


def shouted(folder: Path) -> dict[str, bytes | None]:
    """Version 3 has it in capitals, and is not what it would be if this were done twice."""
    return {"both": (folder / "both").read_bytes().upper() + b"!"}


FIRST = {"sub/one": "one ", "two": "two", "kept": "kept"}
THIRD = {"both": "ONE TWO!", "kept": "kept"}
FORM = Form("run", (joined, shouted))


@pytest.mark.parametrize("form", [RUN_FOLDER, SITE_FOLDER, AUTHORITY_FOLDER], ids=lambda form: form.kind)
def test_a_folder_without_a_version_is_of_the_first_one_and_says_so_from_then_on(tmp_path: Path, form: Form) -> None:
    written(tmp_path, FIRST)
    assert version_of(tmp_path, form) == 1
    assert version_of(tmp_path / "nowhere", form) == 1
    assert bring_up_to_date(tmp_path, Form(form.kind), is_new=False) == ()
    assert json.loads((tmp_path / VERSION_FILE).read_bytes())["version"] == 1
    assert held(tmp_path) == FIRST


def test_a_folder_goes_through_all_versions_and_what_was_there_is_kept(tmp_path: Path) -> None:
    lines = bring_up_to_date(written(tmp_path, FIRST), FORM, is_new=False)
    assert [line.partition(";")[0] for line in lines] == [f"{tmp_path} is now of version {number}" for number in (2, 3)]
    assert held(tmp_path) == THIRD
    assert version_of(tmp_path, FORM) == 3
    assert bring_up_to_date(tmp_path, FORM, is_new=False) == ()
    assert held(tmp_path) == THIRD
    (tmp_path / VERSION_FILE).unlink()
    for number in (2, 1):
        for name in json.loads((tmp_path / f"migrated-from-{number}" / "changed.json").read_bytes()):
            (tmp_path / name).unlink(missing_ok=True)
        shutil.copytree(tmp_path / f"migrated-from-{number}" / "former", tmp_path, dirs_exist_ok=True)
    assert held(tmp_path) == FIRST


def test_a_new_folder_is_of_the_version_of_today(tmp_path: Path) -> None:
    assert bring_up_to_date(tmp_path, FORM, is_new=True) == ()
    assert version_of(tmp_path, FORM) == 3
    assert held(tmp_path) == {}


def test_a_newer_folder_is_refused_in_a_line_and_stays_as_it_is(tmp_path: Path) -> None:
    bring_up_to_date(written(tmp_path, FIRST), FORM, is_new=False)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    found = json.loads((tmp_path / VERSION_FILE).read_bytes()) | {"written_by": "9.8"}
    (tmp_path / VERSION_FILE).write_text(json.dumps(found))
    with pytest.raises(
        StoreError,
        match=r"is of version 3 \(a run folder, written by fedlora 9\.8\); this is fedlora \S+, which knows version 1; "
        r"pip install fedlora-9\.8-py3-none-any\.whl, or restore the backup",
    ):
        bring_up_to_date(tmp_path, RUN_FOLDER, is_new=False)
    del before[tmp_path / VERSION_FILE]
    assert before == {path: path.read_bytes() for path in before}


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"kind": "run", "version": "new", "written_by": ""}'])
def test_a_damaged_version_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / VERSION_FILE).write_text(text)
    with pytest.raises(StoreError, match=r"version.json is damaged"):
        version_of(tmp_path, RUN_FOLDER)


def test_a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    bring_up_to_date(tmp_path, SITE_FOLDER, is_new=False)
    with pytest.raises(StoreError, match=r"says site 1; expected a folder of the kind run"):
        bring_up_to_date(tmp_path, RUN_FOLDER, is_new=False)


def test_a_process_killed_before_any_change_of_a_file_loses_nothing(tmp_path: Path) -> None:
    """A script migrates in processes of its own, of which the n-th ends at its n-th change of a file system."""
    script = (
        "import os, sys\n"
        f"sys.path.append({str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\n"
        "from test_folder_version import FORM, FIRST, written\n"
        "from fedlora.common.folder_version import bring_up_to_date\n"
        "left = 0\n"
        "def die(event, arguments):\n"
        "    global left\n"
        "    changes = event in ('os.rename', 'os.remove', 'os.mkdir', 'os.rmdir')\n"
        "    if changes or (event == 'open' and isinstance(arguments[1], str) and 'w' in arguments[1]):\n"
        "        left -= 1\n"
        "        if left == 0:\n"
        "            os._exit(9)\n"
        "sys.addaudithook(die)\n"
        "number, status = 0, 9\n"
        "while status:\n"
        "    number += 1\n"
        "    folder = Path(sys.argv[1]) / f'{number:03d}'\n"
        "    written(folder, FIRST)\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        left = number\n"
        "        bring_up_to_date(folder, FORM, is_new=False)\n"
        "        os._exit(0)\n"
        "    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])\n"
        "    assert status in (0, 9)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, timeout=120)
    folders = sorted(tmp_path.iterdir())
    assert len(folders) > 20
    versions = {version_seen_by_former(folder) for folder in folders}
    assert versions == {1, 2, 3}
    for folder in folders:
        if version_seen_by_former(folder) == 1:
            assert held(folder) == FIRST
        bring_up_to_date(folder, FORM, is_new=False)
        assert held(folder) == THIRD
        former = {name: (folder / "migrated-from-1" / "former" / name).read_text() for name in ("sub/one", "two")}
        assert former == {"sub/one": "one ", "two": "two"}


def version_seen_by_former(folder: Path) -> int:
    """Return the version that a program which knows the first one alone finds, or refuses."""
    try:
        return version_of(folder, Form("run"))
    except StoreError:
        return int(json.loads((folder / VERSION_FILE).read_bytes())["version"])


def test_what_a_former_program_writes_after_a_migration_that_came_to_nothing_is_migrated_too(tmp_path: Path) -> None:
    """All that the migration says is on disk, and no file is changed yet: the folder is of the former version."""
    written(tmp_path, FIRST)
    written(tmp_path / "migrated-from-1", {"changed.json": '["two"]', "new/two": "stale"})
    bring_up_to_date(tmp_path, Form("run"), is_new=False)
    (tmp_path / "two").write_text("more")
    bring_up_to_date(tmp_path, FORM, is_new=False)
    assert held(tmp_path) == {"both": "ONE MORE!", "kept": "kept"}


def test_a_migration_that_is_half_done_is_refused_by_a_former_program_and_gone_on_with(tmp_path: Path) -> None:
    bring_up_to_date(written(tmp_path, FIRST), Form("run", (joined,)), is_new=False)
    (tmp_path / "both").unlink()
    found = json.loads((tmp_path / VERSION_FILE).read_bytes()) | {"is_migrating": True}
    (tmp_path / VERSION_FILE).write_text(json.dumps(found))
    with pytest.raises(StoreError, match="is of version 2"):
        bring_up_to_date(tmp_path, Form("run"), is_new=False)
    bring_up_to_date(tmp_path, FORM, is_new=False)
    assert held(tmp_path) == THIRD
    assert "is_migrating" not in json.loads((tmp_path / VERSION_FILE).read_bytes())
