"""What a run file names as data, by the kind of its task and by what lies there."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedlora.common.config import RunConfig
from fedlora.common.errors import DataError
from fedlora.training.data import Examples, FederatedData, load_federated_data, load_own_data
from fedlora.training.data.examples import Conversation

ROWS: list[dict[str, object]] = [
    {
        "prompt": f"Q{number}",
        "completion": f"A{number}",
        "label": "xyz"[number % 3],
        "ward": ("north", "south")[number % 2],
        "patient": f"p{number // 2}",
    }
    for number in range(60)
]


def run(path: Path | str, *, kind: str = "causal_lm", **sections: dict[str, object]) -> RunConfig:
    data: dict[str, object] = {"path": str(path), "group": "ward", **sections.pop("data", {})}
    return RunConfig.model_validate({"model": {"name": "some/model"}, "task": {"kind": kind}, "data": data, **sections})


def write(path: Path, rows: list[dict[str, object]] = ROWS) -> Path:
    path.parent.mkdir(exist_ok=True)
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif name.endswith(".csv"):
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        content = json.dumps(rows) if name.endswith(".json") else "".join(f"{json.dumps(row)}\n" for row in rows)
        path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())
    return path


def prompts(examples: Examples) -> list[str]:
    return [given.turns[0].content for given in examples.inputs if isinstance(given, Conversation)]


def everything(data: FederatedData) -> list[Examples]:
    return [data.test, *(part for held in data.clients.values() for part in (held.training, held.validation))]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.csv", "a.parquet"])
def test_every_kind_of_file_gives_the_same_conversations(tmp_path: Path, name: str) -> None:
    data = load_federated_data(run(write(tmp_path / name)))

    assert data.labels == ()
    assert list(data.clients) == ["north", "south"]
    assert sorted(prompt for part in everything(data) for prompt in prompts(part)) == sorted(
        str(row["prompt"]) for row in ROWS
    )
    assert {int(prompt[1:]) % 2 for prompt in prompts(data.clients["north"].training)} == {0}
    assert all(not part.labels.any() for part in everything(data))


def test_a_folder_and_a_pattern_of_files_are_read_one_after_another(tmp_path: Path) -> None:
    whole = load_federated_data(run(write(tmp_path / "whole.jsonl")))
    write(tmp_path / "shards" / "b.parquet", ROWS[20:])
    write(tmp_path / "shards" / "a.jsonl", ROWS[:20])

    folder = load_federated_data(run(tmp_path / "shards"))
    pattern = load_federated_data(run(tmp_path / "shards" / "*"))

    for data in (folder, pattern):
        assert [prompts(part) for part in everything(data)] == [prompts(part) for part in everything(whole)]
    assert folder.fingerprint == pattern.fingerprint
    with pytest.raises(DataError, match=r"\*.csv: no such file or folder"):
        load_federated_data(run(tmp_path / "shards" / "*.csv"))


def test_labels_are_read_only_where_they_decide_who_holds_what(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl")
    shards = {"by": "label_shards", "num_clients": 3, "shards_per_client": 1}

    data = load_federated_data(run(path, partition=shards, data={"test": 0.0, "validation": 0.0}))

    assert data.labels == ()
    dealt = sorted(
        sorted({str(ROWS[int(prompt[1:])]["label"]) for prompt in prompts(held.training)})
        for held in data.clients.values()
    )
    assert dealt == [["x"], ["y"], ["z"]]
    without = [{key: value for key, value in row.items() if key != "label"} for row in ROWS]
    assert len(load_federated_data(run(write(path, without))).clients) == 2
    with pytest.raises(
        DataError, match=r'line 1: no column \'label\' \(data.label, by which partition.by = "label_shards" deals out\)'
    ):
        load_federated_data(run(path, partition=shards))


def test_by_size_every_client_has_its_share(tmp_path: Path) -> None:
    size = {"by": "size", "num_clients": 4, "alpha": 0.5}
    data = load_federated_data(run(write(tmp_path / "a.jsonl"), partition=size, data={"test": 0.0, "validation": 0.0}))
    sizes = [len(held.training) for held in data.clients.values()]
    assert sum(sizes) == 60
    assert min(sizes) >= 1
    assert len(set(sizes)) > 1


def test_conversations_with_one_value_are_on_one_side_of_every_split(tmp_path: Path) -> None:
    data = load_federated_data(
        run(write(tmp_path / "a.jsonl"), data={"split_by": "patient", "test": 0.3, "validation": 0.3})
    )
    sides = [
        [data.test],
        [held.training for held in data.clients.values()],
        [held.validation for held in data.clients.values()],
    ]
    patients = [{ROWS[int(prompt[1:])]["patient"] for part in side for prompt in prompts(part)} for side in sides]
    assert all(patients)
    assert sum(map(len, patients)) == 30


def test_a_site_of_conversations_has_the_split_of_its_client_in_a_simulation(tmp_path: Path) -> None:
    config = run(write(tmp_path / "a.jsonl"), partition={"by": "group"})
    simulated = load_federated_data(config).clients["south"]
    own = load_own_data(config, client="south", only_group="south")
    assert own.labels == ()
    assert prompts(own.clients["south"].training) == prompts(simulated.training)
    assert prompts(own.clients["south"].validation) == prompts(simulated.validation)


def test_a_site_needs_no_labels_whatever_the_run_deals_out_by(tmp_path: Path) -> None:
    without = [{key: value for key, value in row.items() if key != "label"} for row in ROWS]
    own = load_own_data(
        run(write(tmp_path / "a.jsonl", without), partition={"by": "dirichlet"}), client="south", only_group="south"
    )
    assert len(own.clients["south"].training) > 20


def test_a_given_test_set_of_conversations_is_read_in_the_same_way(tmp_path: Path) -> None:
    test = write(tmp_path / "test.parquet", ROWS[:4])
    data = load_federated_data(run(write(tmp_path / "a.jsonl", ROWS[4:]), data={"test": str(test)}))
    assert prompts(data.test) == ["Q0", "Q1", "Q2", "Q3"]


def test_a_task_of_ones_own_gets_rows_as_they_are(tmp_path: Path) -> None:
    data = load_federated_data(run(write(tmp_path / "a.jsonl"), kind="own"))
    assert data.labels == ()
    rows: list[Any] = [row for part in everything(data) for row in part.inputs]
    assert sorted(rows, key=lambda row: int(row["prompt"][1:])) == ROWS
    assert {row["ward"] for row in data.clients["north"].training.inputs if isinstance(row, dict)} == {"north"}


def test_a_task_of_ones_own_gets_pictures_with_their_labels(tiny_digits: Path) -> None:
    task: dict[str, object] = {"kind": "own", "settings": {"image_size": 16}}
    data = load_federated_data(
        RunConfig.model_validate({"task": task, "model": {"name": "some/model"}, "data": {"path": str(tiny_digits)}})
    )
    assert data.labels == ("0", "1", "2")
    assert isinstance(data.test.inputs, np.ndarray)
    assert data.test.inputs.shape[1:] == (16, 16, 1)


def test_texts_with_labels_come_from_parquet_too(tmp_path: Path) -> None:
    texts = [{"text": f"t{number}", "label": number % 2, "ward": "a"} for number in range(10)]
    data = load_federated_data(run(write(tmp_path / "a.parquet", texts), kind="sequence_classification"))
    assert data.labels == ("0", "1")
    write(tmp_path / "a.parquet", [{**texts[0], "label": 0.5}])
    with pytest.raises(DataError, match=r"a.parquet, row 1: 'label' is 0.5; expected text or a whole number"):
        load_federated_data(run(tmp_path / "a.parquet", kind="sequence_classification"))


def test_pictures_for_a_language_model_are_refused(tiny_digits: Path) -> None:
    with pytest.raises(DataError, match=r"tiny_digits.npz: holds pictures; .* or name a file in .csv, .*.parquet"):
        load_federated_data(run(tiny_digits))
