"""What is nested deeper than Python reads is malformed, in a message, wherever it comes from."""

from pathlib import Path

import pytest

from fedlora.common.errors import ConfigError, StoreError
from fedlora.common.folder_version import RUN_FOLDER, VERSION_FILE, version_of
from fedlora.common.parsing import json_in, toml_in
from fedlora.common.run_file import parse_toml
from fedlora.server.disk.audit import read_audit
from fedlora.server.disk.store import RunFolder
from fedlora.server.disk.withheld import withheld_rounds
from fedlora.server.run_queue.store import RunStore

DEEP = "[" * 100_000


@pytest.mark.parametrize("text", [DEEP, '{"a":' * 100_000])
def test_json_that_is_nested_too_deeply_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        json_in(text)


def test_toml_that_is_nested_too_deeply_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        toml_in(f"a = {DEEP}")


@pytest.mark.parametrize(
    "text", [f"a = {DEEP}", "run.name." + ".".join("a" * 10_000) + " = 1", f"[run]\nname = {DEEP}"]
)
def test_a_run_of_a_server_that_is_nested_too_deeply_is_refused_in_a_line(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^the server's run: .*nested too deeply") as caught:
        parse_toml(text, origin="the server's run")
    assert len(str(caught.value)) < 200


def test_files_of_a_folder_that_are_nested_too_deeply_are_damaged_ones(tmp_path: Path) -> None:
    for name in (VERSION_FILE, "manifest.json", "unpublished.json", "audit.jsonl", "server.json"):
        (tmp_path / name).write_text(f"{DEEP}\n")
    with pytest.raises(StoreError, match=r"version\.json is damaged"):
        version_of(tmp_path, RUN_FOLDER)
    with pytest.raises(StoreError, match=r"manifest\.json is damaged"):
        RunFolder(tmp_path).manifest()
    assert withheld_rounds(tmp_path) == {}
    assert read_audit(tmp_path).fault
    assert RunStore(tmp_path).server() == {}
