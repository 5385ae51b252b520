"""Pictures in the columns of tables: bytes of files, Hugging Face's Image feature, paths."""

import json
from io import BytesIO
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fedlora.common.config import RunConfig
from fedlora.common.errors import DataError
from fedlora.training.data import FederatedData, load_federated_data, load_own_data


def png(shade: int, mode: str = "L") -> bytes:
    content = BytesIO()
    Image.new(mode, (6, 6), shade).save(content, "PNG")
    return content.getvalue()


def run(path: Path | str, **data: object) -> RunConfig:
    partition = {"by": "group"} if "group" in data else {"by": "iid", "num_clients": 2}
    return RunConfig.model_validate(
        {
            "task": {"kind": "image_classification", "image_size": 8},
            "data": {"path": str(path), "test": 0.0, "validation": 0.0, **data},
            "partition": partition,
        }
    )


def shades_by_label(data: FederatedData) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {label: set() for label in data.labels}
    for held in data.clients.values():
        for picture, label in zip(held.training.inputs, held.training.labels.tolist(), strict=True):
            assert isinstance(picture, np.ndarray)
            found[data.labels[label]] |= set(np.unique(picture).tolist())
    return found


def parquet(path: Path, images: list[object], **columns: list[object]) -> Path:
    labels = ["dark", "light"] * (len(images) // 2)
    pq.write_table(pa.table({"image": images, "label": labels, **columns}), path)
    return path


DARK_AND_LIGHT = [png(9), png(200)] * 4
EXPECTED = {"dark": {9}, "light": {200}}


@pytest.mark.parametrize("is_struct", [False, True], ids=["bytes", "bytes and path"])
def test_a_parquet_of_pictures_gives_them_with_labels_and_groups(tmp_path: Path, is_struct: bool) -> None:
    images = [{"bytes": one, "path": "x.png"} for one in DARK_AND_LIGHT] if is_struct else DARK_AND_LIGHT
    path = parquet(tmp_path / "a.parquet", list(images), ward=["north", "south", "south", "north"] * 2)

    data = load_federated_data(run(path, group="ward"))

    assert shades_by_label(data) == EXPECTED
    assert list(data.clients) == ["north", "south"]
    own = load_own_data(run(path, group="ward", labels=["dark", "light"]), client="north", only_group="north")
    assert len(own.clients["north"].training) == 4
    with pytest.raises(
        DataError, match=r"a table of texts; .*none is 'photo'; the columns are 'image', 'label', 'ward'"
    ):
        load_federated_data(run(path, image="photo"))


def test_a_saved_data_set_of_pictures_has_the_names_of_its_labels(tmp_path: Path) -> None:
    features = datasets.Features({"img": datasets.Image(), "digit": datasets.ClassLabel(names=["light", "dark"])})
    shades = [200, 9] * 4
    rows = {"img": [Image.new("L", (6, 6), shade) for shade in shades], "digit": [0, 1] * 4}
    data_set = datasets.Dataset.from_dict(rows, features=features)
    data_set.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": data_set, "test": data_set.select(range(2))}).save_to_disk(tmp_path / "split")

    one = load_federated_data(run(tmp_path / "saved", image="img", label="digit"))
    split = load_federated_data(run(tmp_path / "split", image="img", label="digit"))

    assert shades_by_label(one) == shades_by_label(split) == EXPECTED
    assert len(split.test) == 2


def test_shards_in_a_folder_as_the_hub_has_them_keep_their_splits(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for number in range(2):
        parquet(tmp_path / "data" / f"train-0000{number}-of-00002.parquet", list(DARK_AND_LIGHT))
    parquet(tmp_path / "data" / "test-00000-of-00001.parquet", [png(50), png(60)])

    data = load_federated_data(run(tmp_path))

    assert shades_by_label(data) == EXPECTED
    assert sum(len(held.training) for held in data.clients.values()) == 16
    assert np.unique(np.asarray(data.test.inputs)).tolist() == [50, 60]


def test_paths_start_from_the_table_and_the_pictures_are_in_the_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    for number, content in enumerate(DARK_AND_LIGHT):
        (tmp_path / "files" / f"{number}.png").write_bytes(content)
    rows = [{"image": f"files/{number}.png", "label": ("dark", "light")[number % 2]} for number in range(8)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    before = load_federated_data(run(path))
    assert shades_by_label(before) == EXPECTED
    (tmp_path / "files" / "0.png").write_bytes(png(10))
    assert load_federated_data(run(path)).fingerprint != before.fingerprint
    (tmp_path / "files" / "0.png").unlink()
    with pytest.raises(DataError, match=r"a.jsonl, line 1: 'image': .*files/0.png cannot be read \(No such file"):
        load_federated_data(run(path))


def test_pictures_of_one_thing_in_a_table_stay_on_one_side_of_a_split(tmp_path: Path) -> None:
    images, things = [png(shade) for shade in range(40)], [f"thing {shade // 2}" for shade in range(40)]
    path = parquet(tmp_path / "a.parquet", list(images), thing=things, ward=["north", "south"] * 20)

    data = load_federated_data(run(path, group="ward", split_by="thing", test=0.3, validation=0.3))

    parts = [data.test, *(part for held in data.clients.values() for part in (held.training, held.validation))]
    test, *others = ({int(np.max(picture)) // 2 for picture in part.inputs} for part in parts)
    assert len(data.test) == 12
    assert not test & set.union(*others)
    assert not others[0] & others[3]  # where one validates, no other trains
    assert not others[1] & others[2]


def test_a_column_to_split_by_is_refused_where_there_are_no_columns(tmp_path: Path) -> None:
    for label in ("dark", "light"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "1.png").write_bytes(png(9))
    np.savez(tmp_path / "a.npz", images=np.zeros((4, 6, 6), np.uint8), labels=np.array([0, 1, 0, 1]))
    for path in tmp_path, tmp_path / "a.npz":
        with pytest.raises(DataError, match=r"npz file, without a column 'thing' \(data.split_by\); name a table"):
            load_federated_data(run(path, split_by="thing"))


def test_deep_pictures_in_a_table_have_the_range_of_the_run(tmp_path: Path) -> None:
    def deep(top: int) -> bytes:
        content = BytesIO()
        Image.fromarray(np.linspace(0, top, 64).reshape(8, 8).astype(np.uint16)).save(content, "PNG")
        return content.getvalue()

    path = parquet(tmp_path / "a.parquet", [deep(4095), deep(2000)] * 3)
    assert load_federated_data(run(path)).pixel_range == (0, 4095)
    with pytest.raises(DataError, match=r"a.parquet, row 1: 'image': deeper than 8 bits.*pixel_range = \[0, 4095\]"):
        load_own_data(run(path, labels=["dark", "light"]), client="a")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, r"row 2: 'image' is empty; expected a picture: a file's bytes, \{bytes, path\}, or a path"),
        (b"no picture", r"row 2: 'image': not a picture \(10 bytes\); replace or remove it"),
        (png(9)[:50], r"row 2: 'image': cannot be read as a picture \(.+\); replace or remove it"),
    ],
)
def test_a_row_without_a_picture_is_named(tmp_path: Path, image: object, message: str) -> None:
    path = parquet(tmp_path / "a.parquet", [png(9), image, png(9), png(9)])
    with pytest.raises(DataError, match=message) as caught:
        load_federated_data(run(path))
    assert "\n" not in str(caught.value)


def test_numbers_in_the_column_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 1: 'image' is a int; expected a picture"):
        load_federated_data(run(parquet(tmp_path / "a.parquet", [1, 2])))
