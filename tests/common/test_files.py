"""Files that are whole or absent, on disks that are full and in folders that are none."""

import hashlib
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fedlora.common.errors import StoreError
from fedlora.common.files import open_replacing, sha256_of, write_file

# A limit on a file's size fails like a full disk: in the middle of a write, after some bytes.
WRITE_BEYOND_THE_LIMIT = """
import resource, sys
from pathlib import Path
from fedlora.common.errors import StoreError
from fedlora.common.files import write_file

resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_file(Path(sys.argv[1]), b"x" * 5000)
except StoreError as error:
    print(error)
"""


def write_beyond_the_limit(path: Path) -> str:
    command = [sys.executable, "-c", WRITE_BEYOND_THE_LIMIT, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout


def entries(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_file_is_written_with_the_folders_above_it_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.json"
    write_file(path, "größer\n")
    assert path.read_bytes() == "größer\n".encode()
    write_file(path, b"\0\1")
    assert path.read_bytes() == b"\0\1"
    assert entries(path.parent) == ["file.json"]


def test_on_a_full_disk_the_former_file_stays_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"former")
    message = write_beyond_the_limit(path)
    assert message.startswith(f"cannot write {path} (5,000 bytes): File too large; free some space or choose another")
    assert path.read_bytes() == b"former"
    assert entries(tmp_path) == ["file"]


def test_on_a_full_disk_a_new_file_is_absent(tmp_path: Path) -> None:
    assert write_beyond_the_limit(tmp_path / "file").startswith("cannot write")
    assert entries(tmp_path) == []


def test_where_no_file_can_be_the_reason_is_said_and_nothing_is_changed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("former")
    (tmp_path / "folder").mkdir()
    for path, reason in [
        (tmp_path / "file" / "below", "Not a directory|File exists"),
        (tmp_path / "file" / "far" / "below", "Not a directory"),
        (tmp_path / "folder", "Is a directory"),
        (tmp_path / ("x" * 300), "File name too long"),
        (Path("/proc/file"), "No such file or directory|Permission denied"),
    ]:
        with pytest.raises(StoreError, match=rf"cannot write .* \(3 bytes\): ({reason}); free some space"):
            write_file(path, "new")
    assert entries(tmp_path) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "former"


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path, size, is_over = tmp_path / "file", 200_000, threading.Event()
    write_file(path, b"a" * size)
    seen: set[bytes] = set()

    def read() -> None:
        while not is_over.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for letter in b"bcdefghij":
        write_file(path, bytes([letter]) * size)
    is_over.set()
    reader.join()
    assert all(len(content) == size and len(set(content)) == 1 for content in seen)


def test_a_temporary_file_of_a_killed_process_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "file.tmp").write_bytes(b"torn")
    write_file(tmp_path / "file", b"whole")
    assert entries(tmp_path) == ["file"]


def test_a_file_written_in_parts_appears_whole_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    with open_replacing(path, size_bytes=5) as file:
        file.seek(3)
        file.write(b"de")
        file.seek(0)
        file.write(b"abc")
        assert entries(path.parent) == ["file.tmp"]
    assert path.read_bytes() == b"abcde"
    assert entries(path.parent) == ["file"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_the_former_file_and_nothing_beside_it(
    error: type[BaseException], tmp_path: Path
) -> None:
    def write_half() -> None:
        with open_replacing(tmp_path / "file", size_bytes=5) as file:
            file.write(b"ab")
            raise error("half")

    (tmp_path / "file").write_bytes(b"former")
    with pytest.raises(error, match="half"):
        write_half()
    assert (tmp_path / "file").read_bytes() == b"former"
    assert entries(tmp_path) == ["file"]


def test_the_sha256_is_that_of_the_files_one_after_the_other(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"a" * 3_000_000)
    other.write_bytes(b"b")
    assert sha256_of([one, other]) == hashlib.sha256(b"a" * 3_000_000 + b"b").hexdigest()
    assert sha256_of([one, other]) != sha256_of([other, one])
