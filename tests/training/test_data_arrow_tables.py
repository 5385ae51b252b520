"""Rows of .parquet files and of data sets of the library `datasets`, written by the libraries themselves."""

import datetime
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedlora.common.errors import DataError
from fedlora.training.data.arrow_tables import (
    is_saved_dataset,
    read_named_dataset,
    read_parquet,
    read_saved_dataset,
)
from fedlora.training.data.tables import Table

ROWS: list[dict[str, object]] = [
    {"messages": [{"role": "user", "content": f"Q{number} 🌊"}], "number": number, "empty": None} for number in range(5)
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def rows_of(table: Table) -> list[Any]:
    return [placed.row for placed in table.rows]


def test_a_parquet_gives_its_rows_with_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "chats.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=2)

    table = read_parquet(path)

    assert rows_of(table) == ROWS
    assert [placed.where for placed in table.rows] == [f"{path}, row {number}" for number in range(1, 6)]
    assert table.fingerprint == read_parquet(path).fingerprint


def test_a_saved_data_set_gives_the_same_rows_wherever_it_lies(tmp_path: Path) -> None:
    shuffled = datasets.Dataset.from_list(ROWS[::-1])
    shuffled.select(range(4, -1, -1)).save_to_disk(tmp_path / "one")
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "other", num_shards=2)

    one, other = read_saved_dataset(tmp_path / "one"), read_saved_dataset(tmp_path / "other")

    assert is_saved_dataset(tmp_path / "one")
    assert not is_saved_dataset(tmp_path)
    assert rows_of(one) == rows_of(other) == ROWS
    assert one.rows[2].where == f"{tmp_path / 'one'}, row 3"
    assert one.fingerprint == other.fingerprint


def test_of_a_saved_data_set_of_splits_one_must_be_named(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).train_test_split(2, shuffle=False).save_to_disk(tmp_path / "both")

    with pytest.raises(
        DataError, match=r"both: a folder of the splits 'test', 'train'; name one of them, .*both/SPLIT"
    ):
        read_saved_dataset(tmp_path / "both")
    assert rows_of(read_saved_dataset(tmp_path / "both" / "test")) == ROWS[3:]


def test_labels_that_have_names_come_by_name_and_a_withheld_one_as_none(tmp_path: Path) -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    rows = {"text": ["a", "b", "c"], "label": [1, 0, -1]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "notes")
    assert [row["label"] for row in rows_of(read_saved_dataset(tmp_path / "notes"))] == ["good", "bad", None]


def test_a_data_set_is_loaded_by_name_and_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("notes", "clinic/notes"):
        Path(folder).mkdir(parents=True)
        (Path(folder) / "train.csv").write_text("text,label\na,x\nb,y\n")
        (Path(folder) / "test.csv").write_text(f"text,label\nof {folder},x\n")

    table = read_named_dataset("datasets:notes/train")
    assert rows_of(table) == [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
    assert table.rows[1].where == "datasets:notes/train, row 2"
    assert rows_of(read_named_dataset("datasets:clinic/notes/test")) == [{"text": "of clinic/notes", "label": "x"}]
    assert rows_of(read_named_dataset("datasets:notes/default/train")) == rows_of(table)
    assert rows_of(read_named_dataset("datasets:clinic/notes/default/train")) == rows_of(table)
    with pytest.raises(DataError, match=r'datasets:notes/dev: cannot be read \(Unknown split "dev"'):
        read_named_dataset("datasets:notes/dev")


@pytest.mark.parametrize("name", ["datasets:notes", "datasets:a/b/c/d/e", "datasets:/train", "datasets:notes/"])
def test_another_form_of_name_is_refused_with_the_expected_one(name: str) -> None:
    with pytest.raises(DataError, match=r"expected datasets:NAME/SPLIT or datasets:NAME/CONFIG/SPLIT"):
        read_named_dataset(name)


def test_what_is_damaged_or_empty_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"a.parquet: cannot be read \(.+\)") as caught:
        read_parquet(path)
    assert "\n" not in str(caught.value)
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    with pytest.raises(DataError, match=r"a.parquet: no examples in it"):
        read_parquet(path)
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    next((tmp_path / "saved").glob("*.arrow")).write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"saved: cannot be read \(.+\)"):
        read_saved_dataset(tmp_path / "saved")


def test_values_beyond_those_of_json_are_kept(tmp_path: Path) -> None:
    row = {"at": datetime.date(2026, 1, 2), "raw": b"\x00\xff", "score": 0.5}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    assert rows_of(read_parquet(tmp_path / "a.parquet")) == [row]


def test_without_the_library_the_command_that_installs_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"a.parquet: a .parquet file needs pyarrow; pip install 'fedlora\[parquet\]'"):
        read_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"notes/train: .* pip install 'fedlora\[datasets\]'"):
        read_named_dataset("datasets:notes/train")
