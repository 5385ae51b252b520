"""Digests that are remembered: computed once, again after a change, and without a memory too."""

import json
import os
from pathlib import Path

import pytest

from fedlora.common.file_digests import cache_folder, remembered_sha256
from fedlora.common.files import sha256_of


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file in which digests are remembered."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fedlora" / "file_digests.json"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights")
    return path


def change_unseen(path: Path, content: bytes) -> None:
    """Write other content of the same size in such a way that size, times and place stay as they were."""
    before = path.stat()
    assert before.st_size == len(content)
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_digest_is_that_of_the_content_and_is_computed_once(model: Path) -> None:
    first = sha256_of([model])
    assert remembered_sha256([model]) == first
    change_unseen(model, b"WEIGHTS")
    assert remembered_sha256([model]) == first


def test_a_change_of_content_is_seen_by_size_time_or_file(model: Path, tmp_path: Path) -> None:
    seen = {remembered_sha256([model])}
    model.write_bytes(b"more weights")
    seen.add(remembered_sha256([model]))
    change_unseen(model, b"MORE WEIGHTS")
    os.utime(model, ns=(0, 1))
    seen.add(remembered_sha256([model]))
    other = tmp_path / "other"
    other.write_bytes(b"less weights")
    os.utime(other, ns=(0, 1))
    other.replace(model)
    seen.add(remembered_sha256([model]))
    assert len(seen) == 4
    assert remembered_sha256([model]) == sha256_of([model])


def test_the_order_of_files_counts(model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"head")
    assert remembered_sha256([model, other]) == sha256_of([model, other])
    assert remembered_sha256([other, model]) == sha256_of([other, model])


def test_a_file_by_another_name_is_the_same_file(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = remembered_sha256([model])
    change_unseen(model, b"WEIGHTS")
    monkeypatch.chdir(tmp_path)
    assert remembered_sha256([Path("model.safetensors")]) == first


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"a": 1}', b'"text"'])
def test_a_damaged_memory_is_written_anew(model: Path, memory: Path, damage: bytes) -> None:
    remembered_sha256([model])
    memory.write_bytes(damage)
    assert remembered_sha256([model]) == sha256_of([model])
    assert sha256_of([model]) in json.loads(memory.read_text()).values()


def test_a_cache_that_cannot_be_written_only_costs_time(model: Path, memory: Path) -> None:
    memory.parent.parent.write_text("a file where the folder should be")
    for content in (b"weights", b"WEIGHTS"):
        model.write_bytes(content)
        assert remembered_sha256([model]) == sha256_of([model])
    assert memory.parent.parent.is_file()


def test_the_memory_does_not_grow_without_end(model: Path, memory: Path) -> None:
    memory.parent.mkdir(parents=True)
    memory.write_text(json.dumps({f"old {number}": "0" for number in range(2_000)}))
    remembered_sha256([model])
    kept = json.loads(memory.read_text())
    assert len(kept) == 1_000
    assert sha256_of([model]) in kept.values()
    assert "old 1999" in kept
    assert "old 0" not in kept


def test_a_missing_file_is_an_error_and_not_remembered(tmp_path: Path, memory: Path) -> None:
    with pytest.raises(FileNotFoundError):
        remembered_sha256([tmp_path / "nowhere"])
    assert not memory.exists()


def test_the_cache_is_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == tmp_path / "cache" / "fedlora"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "fedlora"
