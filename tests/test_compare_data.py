"""deploy/runs/compare/make_data.py: what it makes of a package's content, and what it says where it has none."""

import importlib.util
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[1] / "deploy" / "runs" / "compare" / "make_data.py"
WHEEL = {
    "vaderSentiment-0.5.dist-info/METADATA": "Metadata-Version: 2.1\nName: vaderSentiment\nVersion: 0.5\n",
    "vaderSentiment-0.5.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "vaderSentiment-0.5.dist-info/RECORD": "",
}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_data", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def made(what: str, *, index: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """Return what the script said, with a folder in place of the package index."""
    environment = {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index)}
    command = [sys.executable, str(SCRIPT), what, "--out", str(out)]
    return subprocess.run(command, env=environment, check=False, capture_output=True, text=True)


def test_rated_texts_are_the_clearly_rated_ones_by_document(script: ModuleType) -> None:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for prefix in script.DOMAINS.values():
            lines = b'3_1\t1.5\tGood, "I say".\r\n3_2\t-0.5\tSo so.\r\n4\t-0.55\tBad. \xc3\xa9\r\n'
            member = tarfile.TarInfo(f"hutto_ICWSM_2014/{prefix}_GroundTruth.txt")
            member.size = len(lines)
            archive.addfile(member, io.BytesIO(lines))
    content.seek(0)
    with tarfile.open(fileobj=content) as archive:
        rows = script.rated_texts(archive)
    assert [row[1] for row in rows[::2]] == ["tweets", "film", "amazon", "news"]
    assert rows[2:4] == [
        ("positive", "film", "film 3", 'Good, "I say".'),
        ("negative", "film", "film 4", "Bad. é"),
    ]


def test_a_package_that_cannot_be_had_or_is_another_is_said_in_a_line_and_nothing_is_written(tmp_path: Path) -> None:
    index, out = tmp_path / "index", tmp_path / "out"
    index.mkdir()
    absent = made("rated_texts", index=index, out=out)
    with zipfile.ZipFile(index / "vaderSentiment-0.5-py3-none-any.whl", "w") as wheel:
        for name, text in WHEEL.items():
            wheel.writestr(name, text)
    other = made("rated_texts", index=index, out=out)
    for result, words in (absent, "No matching distribution found for vaderSentiment==0.5"), (other, "expected 5d97c3"):
        assert result.returncode == 1
        assert result.stderr.startswith("error: ")
        assert words in result.stderr
        assert result.stderr.count("\n") == 1
    assert not out.exists()


def test_what_is_there_is_replaced_whole_or_not_at_all(script: ModuleType, tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        with script.whole(path) as place:
            place.mkdir()
            (place / "first").touch()
            raise OSError("disk full")

    file, folder = tmp_path / "file", tmp_path / "folder"
    for path, content in (file, "x"), (folder, None):
        with script.whole(path) as place:
            place.mkdir() if content is None else place.write_text(content)
        with pytest.raises(OSError, match="disk full"):
            fail(path)
    with script.whole(folder) as place:
        place.mkdir()
        (place / "second").touch()
    assert {path.name for path in tmp_path.rglob("*")} == {"file", "folder", "second"}
    assert file.read_text() == "x"
