"""A run's data, from its file to its clients."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedlora.common.config import (
    EMBEDDED_DIGITS,
    DataSection,
    Dirichlet,
    Iid,
    ImageClassification,
    LabelShards,
    ModelSection,
    PartitionSection,
    RunConfig,
    RunSection,
    SequenceClassification,
)
from fedlora.common.errors import DataError
from fedlora.training.data import Examples, FederatedData, load_federated_data

EMOJI = "package:fedlora.embedded/emoji_text.csv.gz"
FIVE = Iid(num_clients=5)


def text_run(path: Path | str, partition: PartitionSection = FIVE, *, seed: int = 0, **data: str | float) -> RunConfig:
    return RunConfig(
        run=RunSection(seed=seed),
        model=ModelSection(name="some/encoder"),
        task=SequenceClassification(),
        data=DataSection.model_validate({"path": str(path), **data}),
        partition=partition,
    )


def digits_run(path: Path | str, *, size: int = 8, test: float | str = 0.2) -> RunConfig:
    return RunConfig(task=ImageClassification(image_size=size), data=DataSection(path=str(path), test=test))


def notes(folder: Path, num_rows: int = 40, labels: str = "xyz", name: str = "notes.csv") -> Path:
    path = folder / name
    rows = [f"text {row},{labels[row % len(labels)]},{'north' if row % 4 else 'south'}" for row in range(num_rows)]
    path.write_text("\n".join(["text,label,ward", *rows]) + "\n")
    return path


def texts(examples: Examples) -> list[str]:
    return [given for given in examples.inputs if isinstance(given, str)]


def all_texts(data: FederatedData) -> list[str]:
    held = [texts(part) for client in data.clients.values() for part in (client.training, client.validation)]
    return sorted(text for part in [*held, texts(data.test)] for text in part)


def test_the_embedded_digits_have_five_clients_of_1080_120_and_300_examples() -> None:
    data = load_federated_data(digits_run(EMBEDDED_DIGITS, size=56))

    assert data.labels == tuple("0123456789")
    assert list(data.clients) == ["mnist", "mono", "optdigits", "sans", "serif"]
    assert {(len(client.training), len(client.validation)) for client in data.clients.values()} == {(1080, 120)}
    assert np.unique(data.test.groups, return_counts=True)[1].tolist() == [300] * 5
    assert np.all(np.diff(data.test.labels) >= 0)
    for name, client in data.clients.items():
        assert set(client.training.groups.tolist()) == {name}


@pytest.mark.parametrize("by", ["group", "iid", "dirichlet"])
def test_an_emoji_is_in_training_validation_or_test_and_never_in_two_of_them(by: str) -> None:
    partitions: dict[str, PartitionSection] = {"iid": FIVE, "dirichlet": Dirichlet(num_clients=6)}
    run = text_run(EMOJI, partitions.get(by, RunConfig().partition), label="group", group="language", split_by="emoji")
    # The emoji itself in place of the text shows where each row went.
    run = run.model_copy(update={"data": run.data.model_copy(update={"text": "emoji"})})

    data = load_federated_data(run)

    training = {text for client in data.clients.values() for text in texts(client.training)}
    validation = {text for client in data.clients.values() for text in texts(client.validation)}
    test = set(texts(data.test))
    assert not training & validation
    assert not training & test
    assert not validation & test
    assert len(all_texts(data)) == 1644 * 6
    assert len(training) > len(test) > len(validation) > 100
    for client in data.clients.values():
        share = len(client.validation) / (len(client.validation) + len(client.training))
        assert share == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize(
    "partition", [FIVE, Dirichlet(num_clients=3, alpha=1.0), LabelShards(num_clients=3, shards_per_client=2)]
)
def test_every_example_goes_to_one_place_and_the_seed_decides_which(
    tmp_path: Path, partition: PartitionSection
) -> None:
    path = notes(tmp_path)

    def load(seed: int) -> FederatedData:
        return load_federated_data(text_run(path, partition, seed=seed, group="ward"))

    def places(data: FederatedData) -> list[list[str]]:
        return [texts(data.test), *(texts(client.training) for client in data.clients.values())]

    assert all_texts(load(0)) == sorted(f"text {row}" for row in range(40))
    assert places(load(0)) == places(load(0)) != places(load(1))
    assert load(0).fingerprint == load(1).fingerprint


def test_the_labels_of_an_example_stay_with_it(tmp_path: Path) -> None:
    data = load_federated_data(text_run(notes(tmp_path), group="ward"))

    for part in (data.test, *(client.training for client in data.clients.values())):
        for text, label, group in zip(texts(part), part.labels, part.groups, strict=True):
            row = int(text.split()[1])
            assert data.labels[label] == "xyz"[row % 3]
            assert group == ("north" if row % 4 else "south")


def test_no_share_for_the_test_gives_an_empty_test_set(tmp_path: Path) -> None:
    data = load_federated_data(text_run(notes(tmp_path), test=0.0, validation=0.0))

    assert len(data.test) == 0
    assert [len(client.validation) for client in data.clients.values()] == [0] * 5
    assert sum(len(client.training) for client in data.clients.values()) == 40


def test_a_share_that_holds_out_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.test = 0.01 holds out none of the 40 examples of 1 groups; raise it"):
        load_federated_data(text_run(notes(tmp_path), test=0.01))


def test_a_given_test_set_is_read_with_the_same_columns_and_vocabulary(tmp_path: Path) -> None:
    test = notes(tmp_path, 6, labels="zy", name="test.csv")

    data = load_federated_data(text_run(notes(tmp_path), test=str(test), group="ward"))

    assert sum(len(client.training) + len(client.validation) for client in data.clients.values()) == 40
    assert [data.labels[label] for label in data.test.labels] == ["y"] * 3 + ["z"] * 3
    assert data.fingerprint != load_federated_data(text_run(notes(tmp_path), group="ward")).fingerprint


def test_a_test_label_that_training_lacks_is_refused(tmp_path: Path) -> None:
    test = notes(tmp_path, 6, labels="xq", name="test.csv")
    with pytest.raises(DataError, match=r"test.csv: labels that are not in the run's vocabulary: 'q'; it has 'x', 'y'"):
        load_federated_data(text_run(notes(tmp_path), test=str(test)))


def test_a_value_in_both_training_and_given_test_set_is_refused(tmp_path: Path) -> None:
    test = notes(tmp_path, 6, name="test.csv")
    with pytest.raises(
        DataError, match=r"values of 'text' \(data.split_by\) that are in the training set too: 'text 0'"
    ):
        load_federated_data(text_run(notes(tmp_path), test=str(test), split_by="text"))


def test_whole_numbers_are_sorted_by_value_and_words_by_letter(tmp_path: Path) -> None:
    images = np.zeros((3, 8, 8), np.uint8)
    for labels, expected in (([10, 9, -2], ("-2", "9", "10")), (["b", "9", "10"], ("10", "9", "b"))):
        np.savez(tmp_path / "a.npz", d_images=images, d_labels=np.array(labels))
        assert load_federated_data(digits_run(tmp_path / "a.npz", test=0.0)).labels == expected


def test_one_label_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"notes.csv: only the label 'x'; a classification needs at least two"):
        load_federated_data(text_run(notes(tmp_path, labels="x")))


def test_pictures_without_domains_cannot_be_dealt_out_by_group(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((10, 8, 8), np.uint8), labels=np.arange(10))
    with pytest.raises(DataError, match=r'the examples have no groups.*set partition.by = "iid"'):
        load_federated_data(digits_run(tmp_path / "a.npz"))


def test_what_is_missing_or_of_another_kind_is_refused_with_what_would_do(tmp_path: Path) -> None:
    (tmp_path / "notes.xlsx").write_bytes(b"")
    (tmp_path / "pictures").mkdir()
    with pytest.raises(DataError, match=r"nowhere.csv: no such file or folder \(looked in /"):
        load_federated_data(text_run("nowhere.csv"))
    with pytest.raises(DataError, match=r"notes.xlsx: expected a file in .csv, .csv.gz, .tsv, .*, .parquet"):
        load_federated_data(text_run(tmp_path / "notes.xlsx"))
    with pytest.raises(DataError, match=r"notes.xlsx: expected an image folder or an .npz file"):
        load_federated_data(digits_run(tmp_path / "notes.xlsx"))
    with pytest.raises(DataError, match=r'holds pictures; set task.kind = "image_classification", or name a file in'):
        load_federated_data(text_run(tmp_path / "pictures"))
    with pytest.raises(DataError, match=r'a table of texts; set task.kind = "sequence_classification", or name an'):
        load_federated_data(digits_run(notes(tmp_path)))


def test_the_data_loads_without_torch_or_flower() -> None:
    heavy = ("torch", "transformers", "peft", "flwr", "pyarrow", "datasets")
    script = f"import sys, fedlora.training.data; print(set({heavy}) & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert loaded == "set()\n"
