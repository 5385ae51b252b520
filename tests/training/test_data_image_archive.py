"""Pictures in .npz files."""

from pathlib import Path

import numpy as np
import pytest

from fedlora.common.errors import DataError
from fedlora.training.data.image_archive import read_image_archive

GREY = np.arange(4 * 8 * 8, dtype=np.uint8).reshape(4, 8, 8)
COLOUR = np.zeros((3, 8, 8, 3), np.uint8)


def archive(folder: Path, **arrays: np.ndarray) -> Path:
    path = folder / "pictures.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def test_domains_become_groups_and_numbers_become_words(tmp_path: Path) -> None:
    path = archive(
        tmp_path, a_images=GREY, a_labels=np.array([1, 0, 1, 0]), b_images=GREY, b_labels=np.array(["x", "y", "x", "y"])
    )

    source = read_image_archive(path, image_size=8)

    assert source.groups.tolist() == ["a"] * 4 + ["b"] * 4
    assert source.labels.tolist() == ["1", "0", "1", "0", "x", "y", "x", "y"]
    assert isinstance(source.inputs, np.ndarray)
    assert np.array_equal(source.inputs[4:, :, :, 0], GREY)


def test_plain_keys_have_no_groups_and_other_keys_are_left_alone(tmp_path: Path) -> None:
    path = archive(tmp_path, images=GREY, labels=np.arange(4), names=np.array(["u"]))

    assert set(read_image_archive(path, image_size=8).groups.tolist()) == {""}


def test_grey_becomes_colour_beside_colour(tmp_path: Path) -> None:
    path = archive(tmp_path, a_images=GREY, a_labels=np.arange(4), b_images=COLOUR, b_labels=np.arange(3))

    inputs = read_image_archive(path, image_size=8).inputs

    assert isinstance(inputs, np.ndarray)
    assert inputs.shape == (7, 8, 8, 3)
    assert np.array_equal(inputs[:4, :, :, 1], GREY)


@pytest.mark.parametrize("images", [GREY, GREY[..., np.newaxis], COLOUR])
def test_pictures_of_another_size_are_resized(tmp_path: Path, images: np.ndarray) -> None:
    flat = np.full_like(images, 77)

    inputs = read_image_archive(archive(tmp_path, images=flat, labels=np.arange(len(flat))), image_size=12).inputs

    assert isinstance(inputs, np.ndarray)
    assert inputs.shape == (len(flat), 12, 12, 3 if images is COLOUR else 1)
    assert np.all(inputs == 77)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": np.arange(4)}, "no key with pictures; its keys are 'labels'; expected images and labels"),
        ({"a_images": GREY, "a_emoji": np.arange(4)}, "a_images without a_labels; its keys are 'a_images', 'a_emoji'"),
        (
            {"images": GREY, "labels": np.arange(4), "a_images": GREY, "a_labels": np.arange(4)},
            "both images and a_images",
        ),
        ({"images": GREY * 1j, "labels": np.arange(4)}, r"images is complex128 of shape \(4, 8, 8\); expected uint8"),
        (
            {"images": GREY.reshape(2, 8, 2, 8), "labels": np.arange(2)},
            r"uint8 of shape \(2, 8, 2, 8\); each picture is",
        ),
        ({"images": GREY[0], "labels": np.arange(8)}, r"images is uint8 of shape \(8, 8\); expected"),
        ({"images": GREY, "labels": np.arange(3)}, r"labels has shape \(3,\); expected \(4,\)"),
        ({"images": GREY, "labels": np.ones(4)}, "labels is float64; expected whole numbers or text"),
        ({"images": GREY[:0], "labels": np.arange(0)}, "no pictures in it"),
        ({"images": np.array([{}]), "labels": np.arange(1)}, "cannot be read as .npz"),
    ],
)
def test_other_arrays_are_refused_in_one_line(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_image_archive(archive(tmp_path, **arrays), image_size=8)
    assert "\n" not in str(caught.value)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path, images=GREY, labels=np.arange(4))
    whole = path.read_bytes()
    for content in (b"", b"no archive", whole[:200], whole.replace(GREY.tobytes()[:9], b"corrupted")):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"pictures.npz: cannot be read as .npz \(.+\); write it with numpy"):
            read_image_archive(path, image_size=8)


def test_a_single_array_under_the_name_of_an_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pictures.npz"
    with open(path, "wb") as file:
        np.save(file, GREY)

    with pytest.raises(DataError, match="a single array; expected images and labels"):
        read_image_archive(path, image_size=8)
