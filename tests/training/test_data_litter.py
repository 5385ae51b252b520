"""What lies beside data and is none, in folders of tables and under patterns."""

import logging
from pathlib import Path

import pytest

from fedlora.common.config import RunConfig
from fedlora.common.errors import DataError
from fedlora.training.data import load_federated_data
from fedlora.training.data.litter import is_litter

LITTER = ["@eaDir", "#recycle", ".DS_Store", "._a.csv", "Thumbs.db", "desktop.ini", "__MACOSX", "~$notes.csv", ".git"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shards = tmp_path / ".data" / "shards"
    shards.mkdir(parents=True)
    for name, begin in (("a.csv", 0), ("b.csv", 10)):
        rows = "".join(f"t{number},{'xy'[number % 2]}\n" for number in range(begin, begin + 10))
        (shards / name).write_text(f"text,label\n{rows}")
    return shards


def num_examples(path: Path | str) -> int:
    model, task = {"name": "some/model"}, {"kind": "sequence_classification"}
    data, partition = {"path": str(path), "test": 0.0, "validation": 0.0}, {"by": "iid", "num_clients": 2}
    config = RunConfig.model_validate({"model": model, "task": task, "data": data, "partition": partition})
    return sum(len(held.training) for held in load_federated_data(config).clients.values())


def test_litter_is_told_by_its_name() -> None:
    assert all(is_litter(Path("data") / name) for name in LITTER)
    assert not any(is_litter(Path("@eaDir") / name) for name in ("a.csv", "tmp", "recycle", "nan", "#1", "@home"))


def test_litter_in_a_folder_of_tables_is_left_alone(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in LITTER:
        if name.endswith("csv") or "." in name[1:]:
            (folder / name).write_bytes(b"\x00\x05\x16\x07")
        else:
            (folder / name).mkdir()
            (folder / name / "a.csv@SynoResource").write_bytes(b"\x00")
            (folder / name / "c.csv").write_bytes(b"\x00")

    assert num_examples(folder) == 20
    assert num_examples(folder / "*") == 20
    assert num_examples(folder.parent / "**" / "*.csv") == 20
    assert not caplog.records


def test_files_that_describe_a_data_set_are_left_out_with_a_word(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "dataset_info.json").write_bytes(b"")
    (folder / "state.json").write_text("{}")
    for path in (folder, folder / "*"):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert num_examples(path) == 20
        assert [record.message for record in caplog.records] == [
            f"{path}: left out what describes a data set and holds no rows: 'dataset_info.json', 'state.json'"
        ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "config.json",
            b'{"a": 1}',
            "config.json: dict; expected a list of objects; if it holds no examples, name the",
        ),
        ("c.json", b"", "c.json: empty, no examples in it; fill it or remove it"),
        ("c.jsonl", b" \n", "c.jsonl: empty, no examples in it"),
        ("c.parquet", b"", "c.parquet: empty, no examples in it"),
    ],
)
def test_another_file_that_holds_no_rows_is_refused_by_its_name(
    folder: Path, name: str, content: bytes, message: str
) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        num_examples(folder)


def test_of_the_files_under_a_pattern_the_one_that_is_no_table_is_named(folder: Path) -> None:
    (folder / "notes.docx").write_bytes(b"")
    with pytest.raises(DataError, match=r"shards/\* \(notes\.docx\): expected a file in \.csv"):
        num_examples(folder / "*")


def test_only_a_description_is_no_data(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    (folder / "dataset_info.json").write_text("{}")
    with pytest.raises(DataError, match=r"shards: .*a file in \.csv"):
        num_examples(folder)
