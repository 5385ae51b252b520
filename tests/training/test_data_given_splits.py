"""Data that are split already: train is trained on, test is the test set, validation goes to the clients."""

import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fedlora.common.config import RunConfig
from fedlora.common.errors import DataError
from fedlora.training.data import Examples, FederatedData, federated_data_from, load_federated_data, load_own_data

# Each split has its own grey values, so that a picture shows where it was.
SHADES = {"train": 10, "validation": 100, "test": 200}


def picture(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), shade).save(path)


def pictures(folder: Path, names: dict[str, str], domains: tuple[str, ...] = ("",), num: int = 10) -> Path:
    """Write folders of two classes: `names` gives each split its folder's name."""
    for split, name in names.items():
        for domain in domains:
            for label in ("cat", "dog"):
                for number in range(num):
                    picture(folder / name / domain / label / f"{number}.png", SHADES[split])
    return folder


def rows(split: str, num: int = 12) -> list[dict[str, object]]:
    return [
        {"text": f"{split} {number}", "label": "xy"[number % 2], "ward": ("north", "south")[number // 2 % 2]}
        for number in range(num)
    ]


def write(path: Path, split: str, num: int = 12) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows(split, num)), path)
    elif path.suffix == ".csv":
        lines = [",".join(map(str, row.values())) for row in rows(split, num)]
        path.write_text("\n".join(["text,label,ward", *lines]) + "\n")
    else:
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows(split, num)))
    return path


def run(path: Path, *, kind: str = "image_classification", by: str = "iid", **data: object) -> RunConfig:
    task: dict[str, object] = {"kind": kind, **({"image_size": 8} if kind.startswith("image") else {})}
    model = {} if kind.startswith("image") else {"model": {"name": "some/model"}}
    partition: dict[str, object] = {"by": by, **({} if by == "group" else {"num_clients": 2})}
    return RunConfig.model_validate(
        {**model, "task": task, "data": {"path": str(path), **data}, "partition": partition}
    )


def shades(examples: Examples) -> set[int]:
    assert isinstance(examples.inputs, np.ndarray)
    return set(np.unique(examples.inputs).tolist())


def splits_of(examples: Examples) -> set[str]:
    return {text.split()[0] for text in examples.inputs if isinstance(text, str)}


def said(data: FederatedData) -> str:
    return "\n".join(note.text for note in data.notes if note.is_warning)


@pytest.mark.parametrize(
    "names",
    [
        {"train": "train", "test": "test"},
        {"train": "Training", "test": "Testing", "validation": "Valid"},
        {"train": "train", "test": "test", "validation": "val"},
        {"train": "train_images", "test": "test_images", "validation": "dev-images"},
        {"train": "data/train", "test": "data/test"},
        {"train": "train", "validation": "validation"},
    ],
)
def test_folders_of_pictures_keep_their_splits(tmp_path: Path, names: dict[str, str]) -> None:
    picture(tmp_path / "@eaDir" / "train" / "1.png", 0)
    data = load_federated_data(run(pictures(tmp_path, names)))

    assert data.labels == ("cat", "dog")
    has_test, has_validation = "test" in names, "validation" in names
    for held in data.clients.values():
        assert shades(held.training) == {SHADES["train"]}
        assert shades(held.validation) == {SHADES["validation" if has_validation else "train"]}
        assert set(held.training.labels.tolist()) == {0, 1}
    assert shades(data.test) == {SHADES["test" if has_test else "train"]}
    assert len(data.test) == (20 if has_test else 4)
    assert sum(len(held.training) for held in data.clients.values()) + (0 if has_test else 4) >= (
        20 if has_validation else 18
    )
    assert "is split already: train to train on" in said(data)
    assert ("test as the test set, whatever share data.test = 0.2 is" in said(data)) == has_test
    assert ("validation: dealt out to the clients in equal parts" in said(data)) == has_validation


def test_domains_inside_the_splits_are_the_groups(tmp_path: Path) -> None:
    pictures(tmp_path, {"train": "train", "test": "test", "validation": "val"}, ("hall", "field"))
    picture(tmp_path / "val" / "attic" / "cat" / "1.png", SHADES["validation"])

    data = load_federated_data(run(tmp_path, by="group"))

    assert list(data.clients) == ["field", "hall"]
    for name, held in data.clients.items():
        assert set(held.training.groups.tolist()) == set(held.validation.groups.tolist()) == {name}
        assert (len(held.training), len(held.validation)) == (20, 20)
    assert sorted(set(data.test.groups.tolist())) == ["field", "hall"]
    assert "each client has those of its group; 1 of no client's group are left out" in said(data)


def test_a_site_keeps_the_splits_that_its_folder_has(tmp_path: Path) -> None:
    pictures(tmp_path, {"train": "train", "test": "test", "validation": "val"}, ("hall", "field"))

    whole = load_own_data(run(tmp_path, labels=["cat", "dog"], test="/of/the/server.npz"), client="school")
    one = load_own_data(run(tmp_path, labels=["cat", "dog"]), client="school", only_group="hall")

    for data, num in ((whole, 40), (one, 20)):
        held = data.clients["school"]
        assert [len(part) for part in (held.training, held.validation, data.test)] == [num, num, num]
        assert [shades(part) for part in (held.training, held.validation, data.test)] == [{10}, {100}, {200}]
    assert whole.fingerprint != one.fingerprint


@pytest.mark.parametrize(
    "names",
    [
        {"train": "train.jsonl", "test": "test.jsonl"},
        {"train": "train.jsonl", "test": "test.csv", "validation": "validation.parquet"},
        {"train": "train-00000-of-00001.parquet", "test": "test-00000-of-00001.parquet"},
        {"train": "data/train-0.parquet", "test": "data/test-0.parquet", "validation": "data/dev-0.parquet"},
        {"train": "notes_train.csv", "test": "notes_test.csv"},
        {"train": "train/a.csv", "test": "test/b.csv"},
    ],
)
def test_tables_keep_their_splits(tmp_path: Path, names: dict[str, str]) -> None:
    for split, name in names.items():
        write(tmp_path / name, split)

    data = load_federated_data(run(tmp_path, kind="sequence_classification", by="group", group="ward"))

    assert list(data.clients) == ["north", "south"]
    for held in data.clients.values():
        assert splits_of(held.training) == {"train"}
        assert splits_of(held.validation) <= {"validation" if "validation" in names else "train"}
    assert splits_of(data.test) == {"test"}
    assert len(data.test) == 12


def test_several_files_of_a_split_are_all_of_it_and_a_pattern_is_recognised_too(tmp_path: Path) -> None:
    for number in range(2):
        write(tmp_path / f"train-{number}.jsonl", "train")
    write(tmp_path / "test-0.jsonl", "test")

    for path in (tmp_path, tmp_path / "*.jsonl"):
        data = load_federated_data(run(path, kind="sequence_classification", validation=0.0))
        assert sum(len(held.training) for held in data.clients.values()) == 24
        assert splits_of(data.test) == {"test"}
    for path in (tmp_path / "train-*.jsonl", tmp_path / "train-0.jsonl"):
        assert load_federated_data(run(path, kind="sequence_classification")).notes == ()


def test_a_dictionary_of_data_sets_keeps_its_splits_and_says_what_is_left_out(tmp_path: Path) -> None:
    found = {split: datasets.Dataset.from_list(rows(split)) for split in ("train", "test", "unsupervised")}
    datasets.DatasetDict(found).save_to_disk(tmp_path / "saved")

    data = load_federated_data(run(tmp_path / "saved", kind="sequence_classification"))

    assert splits_of(data.test) == {"test"}
    assert {split for held in data.clients.values() for split in splits_of(held.training)} == {"train"}
    assert "'unsupervised' left out" in said(data)
    only = load_federated_data(run(tmp_path / "saved" / "train", kind="sequence_classification"))
    assert splits_of(only.test) == {"train"}


@pytest.mark.parametrize("domains", [("",), ("_a", "_b")])
def test_keys_of_an_archive_keep_their_splits(tmp_path: Path, domains: tuple[str, ...]) -> None:
    arrays: dict[str, np.ndarray] = {}
    for split, name in (("train", "train"), ("validation", "val"), ("test", "test")):
        for domain in domains:
            arrays[f"{name}{domain}_images"] = np.full((10, 8, 8), SHADES[split], np.uint8)
            arrays[f"{name}{domain}_labels"] = (np.arange(10) % 2)[:, np.newaxis]  # as MedMNIST has them
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]

    data = load_federated_data(run(tmp_path / "a.npz", by="group" if domains[1:] else "iid"))

    assert list(data.clients) == (["a", "b"] if domains[1:] else ["client-1", "client-2"])
    parts = [shades(part) for held in data.clients.values() for part in (held.training, held.validation)]
    assert parts == [{10}, {100}] * 2
    assert shades(data.test) == {200}


def test_a_test_set_that_the_run_names_comes_before_that_of_the_folder(tmp_path: Path) -> None:
    pictures(tmp_path / "one", {"train": "train", "test": "test"})
    pictures(tmp_path / "other", {"train": "train", "validation": "test"})

    data = load_federated_data(run(tmp_path / "one", test=str(tmp_path / "other")))

    assert shades(data.test) == {SHADES["validation"]}
    assert "test left out for data.test = " in said(data)
    pictures(tmp_path / "third", {"train": "train", "validation": "val"})
    with pytest.raises(DataError, match=r"third: is split already and has no part for the test \(data.test\)"):
        load_federated_data(run(tmp_path / "one", test=str(tmp_path / "third")))


def test_what_lies_beside_the_folders_of_splits_is_refused_or_said(tmp_path: Path) -> None:
    pictures(tmp_path, {"train": "train", "test": "test"})
    (tmp_path / "README.md").write_text("cats")
    assert "'README.md' left out" in said(load_federated_data(run(tmp_path)))
    picture(tmp_path / "loose.png", 5)
    with pytest.raises(DataError, match=r"named as splits are 'train', 'test', and not so what is beside them: 'loose"):
        load_federated_data(run(tmp_path))


def test_a_run_without_validation_leaves_that_part_out(tmp_path: Path) -> None:
    data = load_federated_data(run(pictures(tmp_path, {"train": "train", "validation": "val"}), validation=0.0))
    assert [len(held.validation) for held in data.clients.values()] == [0, 0]
    assert {shade for held in data.clients.values() for shade in shades(held.training)} == {SHADES["train"]}
    assert "validation left out, for data.validation = 0" in said(data)


def test_with_splits_off_the_folders_are_domains_and_the_files_one_set(tmp_path: Path) -> None:
    pictures(tmp_path / "pictures", {"train": "train", "test": "test"})
    domains = load_federated_data(run(tmp_path / "pictures", by="group", splits="off"))
    assert list(domains.clients) == ["test", "train"]

    for split in ("train", "test"):
        write(tmp_path / "rows" / f"{split}.jsonl", split)
    data = load_federated_data(run(tmp_path / "rows", kind="sequence_classification", splits="off"))
    assert {split for held in data.clients.values() for split in splits_of(held.training)} == {"train", "test"}
    assert domains.notes == data.notes == ()


def test_the_name_of_a_class_or_of_a_single_file_is_no_split(tmp_path: Path) -> None:
    for label in ("bus", "train", "car"):
        for number in range(10):
            picture(tmp_path / "vehicles" / label / f"{number}.png", 5)
    assert load_federated_data(run(tmp_path / "vehicles")).labels == ("bus", "car", "train")
    for name in ("pretrain.jsonl", "contest.jsonl"):
        write(tmp_path / "rows" / name, "train")
    assert load_federated_data(run(tmp_path / "rows", kind="sequence_classification")).notes == ()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["clinic/cat", "train/cat", "test/cat"],
            r"named as splits are 'train', 'test', and not so what is beside them: 'clinic'; write "
            r"data.path = \".*/train\" and data.test = \".*/test\", or data.splits",
        ),
        (
            ["clinic/cat", "test/cat"],
            r"named as splits are 'test', and not so .* 'clinic'; move .*/test elsewhere and name it in",
        ),
        (["test/cat", "val/dog"], r"'val', 'test' and none for training; move .*/test elsewhere"),
        (["train/cat", "val/cat", "dev/cat"], r"'dev' and 'val' are both named as the validation part"),
        (["cat/train", "cat/test", "dog/train"], r"pictures are 'test', 'train', which are splits and no classes"),
    ],
)
def test_folders_of_which_only_some_are_splits_are_refused(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        picture(tmp_path / name / "1.png", 5)
    with pytest.raises(DataError, match=message) as caught:
        load_federated_data(run(tmp_path))
    assert "\n" not in str(caught.value)
    assert 'data.splits = "off"' in str(caught.value)


def test_splits_inside_domains_are_refused_with_the_order_that_would_do(tmp_path: Path) -> None:
    picture(tmp_path / "hall" / "train" / "cat" / "1.png", 5)
    with pytest.raises(DataError, match=r"a folder too deep; .* has train/ and test/ first, as train/domain/class/"):
        load_federated_data(run(tmp_path))


def test_a_hidden_file_that_is_named_is_read_and_one_that_lies_in_a_folder_is_not(tmp_path: Path) -> None:
    write(tmp_path / ".hidden.csv", "train")
    write(tmp_path / "a.csv", "train")
    write(tmp_path / "._a.csv", "train").write_bytes(b"\x00\x05\x16\x07")
    for path in (tmp_path / ".hidden.csv", tmp_path):
        data = load_federated_data(run(path, kind="sequence_classification", test=0.0, validation=0.0))
        assert sum(len(held.training) for held in data.clients.values()) == 12


def test_files_of_which_only_some_are_splits_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "north.csv", "train")
    write(tmp_path / "test.csv", "test")
    with pytest.raises(DataError, match=r"test.csv', and not so what is beside them: .*north.csv'.*one set of rows"):
        load_federated_data(run(tmp_path, kind="sequence_classification"))


def test_an_error_in_a_held_out_part_says_for_what_the_part_was_taken(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", "train")
    (tmp_path / "test.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(DataError, match=r"test.jsonl, line 1: no column 'label'.*\(taken for the test by its name; to"):
        load_federated_data(run(tmp_path, kind="sequence_classification"))


def test_one_value_in_two_given_parts_is_refused(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        write(tmp_path / f"{split}.jsonl", "same")
    with pytest.raises(
        DataError, match=r"values of 'text' \(data.split_by\) that are in the training set too: 'same 0'"
    ):
        load_federated_data(run(tmp_path, kind="sequence_classification", split_by="text"))


def test_clients_in_python_that_are_splits_are_refused_unless_the_run_says_so() -> None:
    pairs = [(f"text {number}", number % 2) for number in range(10)]
    with pytest.raises(DataError, match=r"the clients are 'train', 'validation', which are splits of one data set"):
        federated_data_from({"train": pairs, "validation": pairs})
    off = run(Path("x"), kind="sequence_classification", splits="off").data
    assert list(federated_data_from({"train": pairs, "test": pairs}, data=off).clients) == ["test", "train"]
