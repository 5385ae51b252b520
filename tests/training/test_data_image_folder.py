"""Pictures in folders."""

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedlora.common.errors import DataError
from fedlora.training.data.image_folder import read_image_folder
from fedlora.training.data.source import Source

RED = (200, 10, 30)


def save(path: Path, picture: Image.Image | None = None, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (picture or Image.new("RGB", (10, 6), RED)).save(path, **options)
    return path


def pixels(source: Source) -> np.ndarray:
    assert isinstance(source.inputs, np.ndarray)
    return source.inputs


def test_two_levels_are_domain_and_class_in_the_order_of_the_names(tmp_path: Path) -> None:
    for name in ("photo/dog/2.png", "photo/cat/1.jpg", "drawing/dog/1.webp", "photo/dog/10.bmp"):
        save(tmp_path / name)

    source = read_image_folder(tmp_path, image_size=8)

    assert source.groups.tolist() == ["drawing", "photo", "photo", "photo"]
    assert source.labels.tolist() == ["dog", "cat", "dog", "dog"]
    assert pixels(source).shape == (4, 8, 8, 3)
    assert pixels(source).dtype == np.uint8
    assert np.all(np.abs(pixels(source).astype(int) - RED) < 6)  # within what JPEG and WebP lose


def test_each_picture_stays_beside_its_label(tmp_path: Path) -> None:
    for label in range(20, 60):
        save(tmp_path / f"{label}/1.png", Image.new("L", (8, 8), label))

    source = read_image_folder(tmp_path, image_size=8)

    assert [str(picture.max()) for picture in pixels(source)] == source.labels.tolist()


def test_one_level_is_the_class_without_groups(tmp_path: Path) -> None:
    save(tmp_path / "cat/1.png")

    source = read_image_folder(tmp_path, image_size=8)

    assert (source.labels.tolist(), source.groups.tolist()) == (["cat"], [""])


def test_hidden_files_are_left_alone_and_others_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path / "cat/1.PNG", format="PNG")
    save(tmp_path / ".thumbnails/cat/deep/er/1.png")
    (tmp_path / "cat/.DS_Store").write_bytes(b"")

    with caplog.at_level(logging.WARNING):
        assert len(read_image_folder(tmp_path, image_size=8).labels) == 1
        assert not caplog.records
        (tmp_path / "cat/readme.txt").write_text("cats")
        assert len(read_image_folder(tmp_path, image_size=8).labels) == 1
    assert "left out what is no picture: 1 ('.txt'), such as cat/readme.txt" in caplog.text


def test_what_systems_leave_is_neither_domain_nor_class_nor_picture_and_is_said(tmp_path: Path) -> None:
    save(tmp_path / "photo/cat/1.png")
    litter = (
        "@eaDir/cat/1.png", "__MACOSX/photo/cat/1.png", "lost+found/1.png", "#recycle/cat/1.png", "$RECYCLE.BIN/1.png",
        ".ipynb_checkpoints/cat/1.png", "photo/@eaDir/1.png", "photo/.ipynb_checkpoints/1-checkpoint.png",
        "photo/cat/@eaDir/1.png/SYNOPHOTO_THUMB_M.png", "photo/cat/._1.png",
    )  # fmt: skip
    for name in litter:
        save(tmp_path / name)
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store"):
        (tmp_path / "photo/cat" / name).write_bytes(b"x")

    source = read_image_folder(tmp_path, image_size=8)

    assert (source.labels.tolist(), source.groups.tolist()) == (["cat"], ["photo"])
    [note] = source.notes
    assert note.is_warning
    assert "passed over 13 that systems leave in folders: '#recycle', '$RECYCLE.BIN', '.DS_Store'" in note.text


def test_what_is_done_to_pictures_is_counted_and_said(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    save(tmp_path / "a/1.jpg", exif=exif)
    save(tmp_path / "a/2.png", Image.new("RGBA", (8, 8), (0, 0, 0, 9)))
    save(tmp_path / "a/3.png", Image.new("RGBA", (8, 8), (0, 0, 0, 255)))
    save(tmp_path / "a/4.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)))
    frames = [Image.new("L", (8, 8), shade) for shade in (9, 90)]
    save(tmp_path / "a/5.tiff", frames[0], save_all=True, append_images=frames[1:])
    save(tmp_path / "a/6.gif", frames[0], save_all=True, append_images=frames[1:])

    source = read_image_folder(tmp_path, image_size=8)

    said = {note.text.removeprefix(f"{tmp_path}: "): note.is_warning for note in source.notes}
    assert said == {
        "1 of 6 pictures CMYK turned into RGB": False,
        "2 of 6 pictures of several frames or pages, of which the first is taken": True,
        "1 of 6 pictures put on white where transparent": False,
        "1 of 6 pictures turned upright by the EXIF orientation": False,
    }
    red = pixels(source)[3, 4, 4].tolist()
    assert red[0] > 200 > 60 > max(red[1:])
    assert np.all(pixels(source)[4:] == 9)


def test_a_picture_is_turned_upright_by_its_exif_orientation(tmp_path: Path) -> None:
    picture = Image.new("RGB", (16, 8), "black")
    picture.paste((255, 255, 255), (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: what is left comes to the top
    save(tmp_path / "a/1.png", picture, exif=exif)

    [upright] = pixels(read_image_folder(tmp_path, image_size=8))

    assert upright[:3].min() == 255
    assert upright[5:].max() == 0


@pytest.mark.parametrize(
    ("picture", "options", "expected"),
    [
        (Image.new("RGBA", (8, 8), (0, 0, 0, 0)), {}, (255, 255, 255)),
        (Image.new("LA", (8, 8), (0, 0)), {}, (255, 255, 255)),
        (Image.new("RGBA", (8, 8), (*RED, 255)), {}, RED),
        (Image.new("RGB", (8, 8), RED).quantize(4), {}, RED),
        (Image.new("P", (8, 8), 0), {"transparency": b"\x00"}, (255, 255, 255)),
        (Image.fromarray(np.full((8, 8), 0x8000, np.uint16)), {}, (128, 128, 128)),
        (Image.new("1", (8, 8), 1), {}, (255, 255, 255)),
        (Image.new("L", (8, 8), 90), {}, (90, 90, 90)),
    ],
    ids=["clear", "clear grey", "opaque", "palette", "clear palette", "16-bit grey", "bilevel", "grey"],
)
def test_every_kind_of_picture_becomes_colour_on_white(
    tmp_path: Path, picture: Image.Image, options: dict[str, Any], expected: tuple[int, int, int]
) -> None:
    save(tmp_path / "a/1.png", picture, **options)

    assert np.all(pixels(read_image_folder(tmp_path, image_size=8)) == expected)


def test_a_large_jpeg_decodes_at_a_fraction_to_nearly_the_same_pixels(tmp_path: Path) -> None:
    smooth = Image.linear_gradient("L").resize((512, 512)).convert("RGB")
    for suffix in (".jpg", ".bmp"):
        save(tmp_path / f"a/1{suffix}", smooth)

    bmp, jpeg = pixels(read_image_folder(tmp_path, image_size=16)).astype(int)

    assert np.abs(bmp - jpeg).max() <= 4


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["cat/1.png", "photo/cat/1.png"], "different depths, such as cat/1.png and photo/cat/1.png; expected class/"),
        (["1.png"], "1.png lies in no class folder; expected class/picture.png, or domain/class/picture.png"),
        (["a/b/c/1.png"], "a/b/c: a folder too deep; expected class/"),
        (["cat/1.heic", "cat/2.svg"], "no pictures .only '.heic', '.svg'.; expected .*the suffixes are .png .jpg"),
        ([], "no pictures .empty."),
    ],
)
def test_another_arrangement_is_refused(tmp_path: Path, files: list[str], message: str) -> None:
    for name in files:
        save(tmp_path / name, format="PNG")

    with pytest.raises(DataError, match=message):
        read_image_folder(tmp_path, image_size=8)


def test_a_picture_that_cannot_be_read_is_named_with_the_reason_in_one_line(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8))
    path = save(tmp_path / "cat/1.png", noise)
    save(tmp_path / "cat/2.png")
    whole = path.read_bytes()
    cases = {
        b"": r"not a picture \(0 bytes\)",
        b"<html>": r"not a picture \(6 bytes\)",
        whole[:800]: r"cannot be read as a picture \(.*truncated.*\)",
        whole[:2000] + bytes(200) + whole[2200:]: r"cannot be read as a picture \(.+\)",
    }
    for content, message in cases.items():
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"cat/1.png: {message}; replace or remove it$") as caught:
            read_image_folder(tmp_path, image_size=8)
        assert "\n" not in str(caught.value)


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "cat/1.png", Image.new("L", (64, 64)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)

    with pytest.raises(DataError, match=r"cat/1.png: cannot be read as a picture \(Image size \(4096 pixels\) exceeds"):
        read_image_folder(tmp_path, image_size=8)


def test_the_fingerprint_changes_with_a_pixel_and_with_a_name_and_not_with_the_place(tmp_path: Path) -> None:
    def fingerprint(folder: Path) -> str:
        return read_image_folder(folder, image_size=8).fingerprint

    save(tmp_path / "one/cat/1.png")
    save(tmp_path / "two/dog/1.png")
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    assert fingerprint(tmp_path / "one") == fingerprint(tmp_path / "copy") != fingerprint(tmp_path / "two")
    save(tmp_path / "copy/cat/1.png", Image.new("RGB", (10, 6), (0, 0, 0)))
    assert fingerprint(tmp_path / "one") != fingerprint(tmp_path / "copy")
