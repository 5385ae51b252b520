"""Labels and groups that read the same, from every kind of source."""

import logging
import unicodedata
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from fedlora.client.worker.source import WorkbenchSource
from fedlora.common.config import RunConfig
from fedlora.common.errors import ConfigError, DataError
from fedlora.common.run_file import parse_toml, require_labels
from fedlora.training.data import FederatedData, federated_data_from, load_federated_data, load_own_data

COMPOSED, DECOMPOSED = "Ödem", unicodedata.normalize("NFD", "Ödem")
GREY = np.full((8, 8), 9, np.uint8)


def texts(path: Path, found: list[str], **data: object) -> RunConfig:
    rows = "".join(f"t{row}-{copy},{label},ward {label}\n" for copy in range(4) for row, label in enumerate(found))
    path.write_text(f"text,label,ward\n{rows}", encoding="utf-8")
    section = {"path": str(path), "test": 0.0, **data}
    return RunConfig.model_validate(
        {
            "model": {"name": "some/model"},
            "task": {"kind": "sequence_classification"},
            "partition": {"by": "group"} if "group" in data else {"by": "iid", "num_clients": 2},
            "data": section,
        }
    )


def from_table(folder: Path, labels: list[str]) -> FederatedData:
    return load_federated_data(texts(folder / "notes.csv", labels))


def from_folders(folder: Path, labels: list[str]) -> FederatedData:
    for place, label in enumerate(labels):
        (folder / "pictures" / f"domain{place}" / label).mkdir(parents=True)
        for number in range(3):
            Image.fromarray(GREY).save(folder / "pictures" / f"domain{place}" / label / f"{number}.png")
    task: dict[str, object] = {"kind": "image_classification", "image_size": 8}
    return load_federated_data(RunConfig.model_validate({"task": task, "data": {"path": str(folder / "pictures")}}))


def from_archive(folder: Path, labels: list[str]) -> FederatedData:
    np.savez(folder / "a.npz", images=np.stack([GREY] * 12), labels=np.resize(labels, 12))
    data = {"path": str(folder / "a.npz")}
    return load_federated_data(RunConfig.model_validate({"data": data, "partition": {"by": "iid", "num_clients": 2}}))


def from_python(_: Path, labels: list[str]) -> FederatedData:
    return federated_data_from({"a": [(f"t{number}", label) for number, label in enumerate(labels * 4)]})


Read = Callable[[Path, list[str]], FederatedData]
SOURCES = [from_table, from_folders, from_archive, from_python]


@pytest.mark.parametrize("read", SOURCES)
def test_both_forms_of_unicode_are_one_label(tmp_path: Path, read: Read, caplog: pytest.LogCaptureFixture) -> None:
    assert read(tmp_path, [COMPOSED, DECOMPOSED, "well"]).labels == ("well", COMPOSED)
    assert not caplog.records


@pytest.mark.parametrize("read", SOURCES)
@pytest.mark.parametrize(
    ("twins", "shown"),
    [
        (("True", "TRUE"), "'TRUE' and 'True'"),
        (("1", "1.0"), "'1' and '1.0'"),
        (("cat", "cat\u200b"), r"'cat' and 'cat\u200b'"),
    ],
)
def test_labels_that_look_alike_are_kept_apart_and_warned_of(
    tmp_path: Path, read: Read, twins: tuple[str, str], shown: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert set(read(tmp_path, [*twins, "other"]).labels) == {*twins, "other"}
    assert [f"labels that look alike are kept apart ({shown})" in record.message for record in caplog.records] == [True]


def test_the_vocabulary_of_a_run_is_spelled_in_one_way() -> None:
    run = """
        [data]
        labels = [{}]
    """
    assert parse_toml(run.format(f'"{DECOMPOSED}", "well "'), origin="a").data.labels == (COMPOSED, "well")
    for labels, message in [
        (f'"{DECOMPOSED}", "{COMPOSED}"', "data.labels has 'Ödem' twice, in two spellings; expected it once"),
        ('"a", "b", "a"', "data.labels has 'a' twice"),
        ('"a", ""', "data.labels has an empty name"),
        ('"a"', "data.labels has one label, 'a'; expected two at least"),
    ]:
        with pytest.raises(ConfigError, match=message):
            parse_toml(run.format(labels), origin="run.toml")


def test_the_clients_of_a_run_are_spelled_in_one_way() -> None:
    run = parse_toml(f'[lora]\nclient_ranks = {{"{DECOMPOSED}" = 2}}', origin="run.toml")
    assert run.lora.client_ranks == {COMPOSED: 2}
    with pytest.raises(ConfigError, match=r"lora.client_ranks has 'Ödem' twice, in two spellings"):
        parse_toml(f'[lora]\nclient_ranks = {{"{DECOMPOSED}" = 2, "{COMPOSED}" = 1}}', origin="run.toml")
    assert run.lora.rank_of(DECOMPOSED) == run.lora.rank_of(COMPOSED) == 2
    with pytest.raises(DataError, match="clients has 'Ödem' twice, in two spellings"):
        federated_data_from({COMPOSED: [("t", 1)], DECOMPOSED: [("u", 2)]})
    assert list(federated_data_from({DECOMPOSED: [("t", 1), ("u", 2)]}).clients) == [COMPOSED]


def test_labels_that_look_like_the_runs_are_refused_with_the_difference(tmp_path: Path) -> None:
    config = texts(tmp_path / "notes.csv", ["cat\u200b", "dog"], labels=("cat", "dog"))
    with pytest.raises(DataError, match=r"'cat\\u200b' looks like 'cat' and is another label; write both in one way"):
        load_federated_data(config)
    decomposed = texts(tmp_path / "notes.csv", [DECOMPOSED, "dog"], labels=(COMPOSED, "dog"))
    assert load_federated_data(decomposed).labels == (COMPOSED, "dog")


def test_groups_have_one_spelling_and_those_that_look_alike_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = texts(tmp_path / "notes.csv", [COMPOSED, DECOMPOSED, "well"], group="ward")
    assert list(load_federated_data(config).clients) == ["ward well", f"ward {COMPOSED}"]
    named = texts(tmp_path / "notes.csv", [COMPOSED, "well"], group="ward", labels=(COMPOSED, "well"))
    own = load_own_data(named, client="site", only_group=f"ward {DECOMPOSED}")
    assert set(own.clients["site"].training.groups.tolist()) == {f"ward {COMPOSED}"}
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        load_own_data(texts(tmp_path / "notes.csv", ["a", "A"], group="ward"), client="site")
    assert [record.message.partition(": ")[2].split(" (")[0] for record in caplog.records] == [
        "groups that look alike are kept apart",
        "labels that look alike are kept apart",
    ]


def test_a_worker_does_not_repeat_what_whoever_started_it_was_told(
    tmp_path: Path, tiny_text_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = texts(tmp_path / "notes.csv", ["True", "TRUE"])
    config = config.model_copy(update={"model": config.model.model_copy(update={"name": str(tiny_text_model)})})
    with caplog.at_level(logging.WARNING):
        assert WorkbenchSource("key", config, moments_folder=tmp_path).load().describe("client-1").labels == (
            "TRUE",
            "True",
        )
        assert not caplog.records
        load_own_data(config, client="site")
        assert len(caplog.records) == 1


def test_a_server_is_told_of_labels_that_look_alike_before_sites_are(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        require_labels(parse_toml('[data]\nlabels = ["1", "1.0", "2"]', origin="run.toml"))
    assert [record.message for record in caplog.records] == [
        "data.labels that look alike are kept apart: '1' and '1.0'; name each label once"
    ]


def test_labels_of_thousands_of_digits_are_text(tmp_path: Path) -> None:
    assert from_table(tmp_path, ["9" * 5_000, "10", "2"]).labels == ("10", "2", "9" * 5_000)


def test_rows_of_a_data_set_are_pairs_of_the_columns_that_the_run_names() -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["sad", "glad"])}
    )
    rows = datasets.Dataset.from_list([{"text": f"t{row}", "label": row % 2} for row in range(4)], features=features)
    data = federated_data_from({"a": rows, "b": [{"text": "u", "label": "glad"}]}, rows, validation=0.0)
    assert data.labels == ("glad", "sad")
    assert data.clients["a"].training.inputs == ["t0", "t1", "t2", "t3"]
    assert data.clients["a"].training.labels.tolist() == [1, 0, 1, 0]
    as_tensors = federated_data_from(
        {"a": rows.with_format("torch"), "b": [("u", np.array(0)), ("v", torch.tensor(1))]}
    )
    assert as_tensors.labels == ("0", "1", "glad", "sad")
    hidden = datasets.Dataset.from_list([{"text": "t", "label": -1}], features=features)
    with pytest.raises(DataError, match=r"test set '', example 0: label -1; expected 0 to 1"):
        federated_data_from({"a": rows}, hidden)
    with pytest.raises(DataError, match=r"client 'a', example 0: no column 'label' \(data\.label\)"):
        federated_data_from({"a": [{"text": "t"}]})
    with pytest.raises(DataError, match="client 'a' has a DatasetDict; expected a data set"):
        federated_data_from({"a": datasets.DatasetDict({"train": rows})})
