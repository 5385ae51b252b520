"""Pictures deeper than 8 bits: one black and one white for the whole run, whatever the files and arrays hold."""

import logging
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedlora.common.config import RunConfig
from fedlora.common.errors import ConfigError, DataError
from fedlora.common.run_file import parse_run, to_toml
from fedlora.training.data import (
    FederatedData,
    federated_data_from,
    load_federated_data,
    load_own_data,
    with_found_range,
)
from fedlora.training.data.in_memory import unlabelled
from fedlora.training.data_preview import preview_data

Write = Callable[[Path, np.ndarray], None]

# 12 bits: each picture goes evenly from 0 to its own top.
RAMP = np.linspace(0, 1, 64).reshape(8, 8)


def png(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def tiff(path: Path, values: np.ndarray) -> None:
    png(path.with_suffix(".tiff"), values)


def folder(path: Path, *, dtype: Any = np.uint16, top: float = 4095, write: Write = png) -> Path:
    """Write two clinics with two classes of ten pictures, the brightest of each clinic another."""
    for clinic, share in (("a", 1.0), ("b", 0.9)):
        for label, shape in (("up", RAMP), ("down", RAMP[::-1])):
            for number in range(10):
                write(path / clinic / label / f"{number}.png", (shape * top * share).astype(dtype))
    return path


def run(path: Path, **task: object) -> RunConfig:
    table = {"kind": "image_classification", "image_size": 8, **task}
    return RunConfig.model_validate({"task": table, "data": {"path": str(path)}})


def grey_values(data: FederatedData, client: str = "a") -> np.ndarray:
    inputs = data.clients[client].training.inputs
    assert isinstance(inputs, np.ndarray)
    return inputs


def texts(data: FederatedData) -> str:
    return "\n".join(f"{'!' * note.is_warning}{note.text}" for note in data.notes)


@pytest.mark.parametrize(
    ("dtype", "top", "write", "ends"),
    [
        (np.uint16, 4095, png, (0, 4095)),
        (np.uint16, 255, png, (0, 255)),
        (np.uint16, 60_000, png, (0, 65_535)),
        (np.uint16, 1000, tiff, (0, 1023)),
        (np.int32, 4095, tiff, (0, 4095)),
        (np.float32, 1.0, tiff, (0, 1)),
        (np.float32, 3.5, tiff, (0, 3.5)),
    ],
)
def test_a_simulation_finds_the_range_over_all_clients_and_keeps_the_grey_values(
    tmp_path: Path, dtype: Any, top: float, write: Write, ends: tuple[float, float]
) -> None:
    data = load_federated_data(run(folder(tmp_path, dtype=dtype, top=top, write=write)))

    assert data.pixel_range == ends
    found = grey_values(data)
    assert len(np.unique(found)) >= 60
    # The dimmer clinic stays the dimmer one: what is white is the same for both.
    assert grey_values(data, "b").max() == pytest.approx(0.9 * found.max(), abs=1)
    assert found.max() == pytest.approx(255 * top / ends[1], abs=1)
    assert "40 of 40 pictures are deeper than 8 bits" in texts(data)
    assert "is unused" not in texts(data)


def test_signed_values_go_from_the_smallest_to_the_largest(tmp_path: Path) -> None:
    def shifted(path: Path, values: np.ndarray) -> None:
        tiff(path, values - 1024)

    data = load_federated_data(run(folder(tmp_path, dtype=np.int32, top=4000, write=shifted)))

    assert data.pixel_range == (-1024, 2976)
    assert (grey_values(data).min(), grey_values(data).max()) == (0, 255)


def test_8_bit_data_in_16_bit_files_are_as_those_in_8_bit_files(tmp_path: Path) -> None:
    deep = load_federated_data(run(folder(tmp_path / "deep", dtype=np.uint16, top=255)))
    plain = load_federated_data(run(folder(tmp_path / "plain", dtype=np.uint8, top=255)))

    assert np.array_equal(grey_values(deep), grey_values(plain))
    assert (plain.pixel_range, plain.notes) == (None, ())
    assert with_found_range(run(tmp_path), plain) == run(tmp_path)


def test_a_site_needs_the_range_from_the_run_and_all_sites_use_the_same(tmp_path: Path) -> None:
    folder(tmp_path)
    with pytest.raises(DataError, match=r"/a/down/0.png: deeper than 8 bits.*\[task\], pixel_range = \[0, 4095\]"):
        load_own_data(run(tmp_path), client="a", only_group="a")

    given = run(tmp_path, pixel_range=[0, 4095])
    sites = [load_own_data(given, client=name, only_group=name) for name in ("a", "b")]
    simulated = load_federated_data(given)
    for name, site in zip(("a", "b"), sites, strict=True):
        assert np.array_equal(grey_values(site, name), grey_values(simulated, name))
    plain = folder(tmp_path / "plain", dtype=np.uint8, top=255)
    assert load_own_data(run(plain), client="a", only_group="a").pixel_range is None


def test_values_outside_of_the_range_are_cut_and_counted(tmp_path: Path) -> None:
    data = load_federated_data(run(folder(tmp_path), pixel_range=[1000, 3000]))

    assert (grey_values(data).min(), grey_values(data).max()) == (0, 255)
    outside = sum(
        10 * int(np.count_nonzero((part < 1000) | (part > 3000)))
        for share in (1.0, 0.9)
        for part in ((shape * 4095 * share).astype(int) for shape in (RAMP, RAMP[::-1]))
    )
    assert f"!{tmp_path}: {outside:,} values in 40 pictures are outside of task.pixel_range = [1000, 3000]" in texts(
        data
    )


def test_a_range_of_which_most_is_unused_is_warned_of(tmp_path: Path) -> None:
    data = load_federated_data(run(folder(tmp_path, top=4095), pixel_range=[0, 65535]))
    assert "!" in texts(data)
    assert "most of task.pixel_range = [0, 65535] is unused: nearly all values are in [" in texts(data)
    # One hot pixel does not make a range a used one.
    hot = (np.linspace(0, 400, 32 * 32).reshape(32, 32)).astype(np.uint16)
    hot[0, 0] = 65535
    np.savez(tmp_path / "hot.npz", images=np.stack([hot] * 10), labels=np.arange(10) % 2)
    spoiled = parse_run({"data": {"path": str(tmp_path / "hot.npz")}, "partition": {"by": "iid", "num_clients": 2}})
    assert "most of task.pixel_range = [0, 65535] is unused" in texts(load_federated_data(spoiled))


@pytest.mark.parametrize(
    ("images", "ends", "channels"),
    [
        (np.stack([RAMP * 4095] * 10).astype(np.uint16), (0, 4095), 1),
        (np.stack([RAMP * 2000 - 1000] * 10).astype(np.int16), (-1000, 1000), 1),
        (np.stack([RAMP] * 10), (0, 1), 1),
        (np.stack([RAMP] * 10).astype(np.float16), (0, 1), 1),
        (np.stack([np.stack([RAMP] * 3, axis=-1) * 65535] * 10).astype(np.uint16), (0, 65535), 3),
        (np.stack([np.stack([RAMP] * 3) * 65535] * 10).astype(np.uint16), (0, 65535), 3),
    ],
    ids=["12 bits", "signed", "float", "half", "colour", "channels first"],
)
def test_arrays_of_an_archive_and_from_python_are_scaled_alike(
    tmp_path: Path, images: np.ndarray, ends: tuple[float, float], channels: int
) -> None:
    labels = np.arange(10) % 2
    np.savez(tmp_path / "a.npz", a_images=images, a_labels=labels, b_images=images, b_labels=labels)
    archive = load_federated_data(run(tmp_path / "a.npz"))
    pairs = list(zip(images, labels, strict=True))
    python = federated_data_from({"a": pairs, "b": pairs}, image_size=8)

    for data in (archive, python):
        assert data.pixel_range == pytest.approx(ends)
        assert grey_values(data).shape[1:] == (8, 8, channels)
        assert np.array_equal(grey_values(data)[0, :, :, 0], np.rint(RAMP * 255).astype(np.uint8)) or np.allclose(
            grey_values(data)[0, :, :, 0], RAMP * 255, atol=1
        )


def tag_of_tiff(content: bytes, tag: int, value: int) -> bytes:
    """Return a little-endian TIFF with another value of a short tag."""
    place = next(
        place for place in range(8, len(content) - 12) if struct.unpack_from("<HHI", content, place) == (tag, 3, 1)
    )
    return content[: place + 8] + struct.pack("<HH", value, 0) + content[place + 12 :]


def test_unsigned_values_of_32_bits_are_no_negative_ones_and_white_at_0_is_refused(tmp_path: Path) -> None:
    plain = BytesIO()
    values = np.linspace(-(2**31), 2**31 - 1, 64).astype(np.int32).reshape(8, 8)
    Image.fromarray(values).save(plain, "TIFF")
    path = folder(tmp_path, dtype=np.uint8, top=255) / "a" / "up" / "x.tiff"

    path.write_bytes(tag_of_tiff(plain.getvalue(), 339, 1))
    ends = load_federated_data(run(tmp_path)).pixel_range
    assert ends is not None
    assert ends[0] >= 0
    assert ends[1] > 2**31
    path.write_bytes(tag_of_tiff(plain.getvalue(), 339, 2))
    assert load_federated_data(run(tmp_path)).pixel_range == (-(2**31), 2**31 - 1)

    inverted = BytesIO()
    Image.fromarray((RAMP * 4095).astype(np.uint16)).save(inverted, "TIFF")
    path.write_bytes(tag_of_tiff(inverted.getvalue(), 262, 0))
    with pytest.raises(DataError, match=r"x.tiff: .*16 bits with white at 0 \(PhotometricInterpretation 0\); save it"):
        load_federated_data(run(tmp_path))


def test_a_range_for_pictures_of_8_bits_changes_nothing_and_that_is_said(tmp_path: Path) -> None:
    folder(tmp_path, dtype=np.uint8, top=255)
    plain, given = load_federated_data(run(tmp_path)), load_federated_data(run(tmp_path, pixel_range=[0, 4095]))
    assert np.array_equal(grey_values(plain), grey_values(given))
    assert "!" in texts(given)
    assert "no picture is deeper than 8 bits, so that task.pixel_range = [0, 4095] changes nothing" in texts(given)


def test_pictures_that_seem_normalised_already_are_warned_of() -> None:
    normal = (RAMP - 0.485) / 0.229
    data = federated_data_from({"a": [(normal, 0), (normal, 1)]}, image_size=8)
    assert "pictures that were normalised already should be given as they were before" in texts(data)


def test_values_are_resized_before_they_are_rounded_to_8_bits() -> None:
    fine = np.full((8, 8), 16.0, np.float32)
    fine[::2] = 17
    data = unlabelled([fine], image_size=4, pixel_range=(0, 25.5)).inputs
    assert np.asarray(data).ravel()[5] in (164, 165, 166)


def test_values_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    def broken(path: Path, values: np.ndarray) -> None:
        values[3, 3] = np.nan
        tiff(path, values)

    with pytest.raises(DataError, match=r"a/down/0.tiff: has values that are not finite; replace NaN and infinity"):
        load_federated_data(run(folder(tmp_path, dtype=np.float32, top=1, write=broken)))


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def colour_png_of_16_bits(colour_type: int, channels: int) -> bytes:
    header = struct.pack(">IIBBBBB", 4, 4, 16, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + bytes(2 * channels * 4) for _ in range(4))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("name", "content", "bits"),
    [
        ("1.png", colour_png_of_16_bits(2, 3), 16),
        ("1.png", colour_png_of_16_bits(4, 2), 16),
        ("1.png", colour_png_of_16_bits(6, 4), 16),
        ("1.ppm", b"P6 2 1 4095\n" + bytes(12), 12),
    ],
)
def test_colour_that_can_be_read_only_in_part_is_refused(tmp_path: Path, name: str, content: bytes, bits: int) -> None:
    path = folder(tmp_path, dtype=np.uint8, top=255) / "a" / "up" / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{bits} bits a channel in RGBA?, of which only the upper 8 .* as an array"):
        load_federated_data(run(tmp_path))
    with pytest.raises(DataError, match=f"{bits} bits a channel"):
        unlabelled([Image.open(BytesIO(content))], image_size=8)


def test_a_pgm_has_the_values_of_its_file(tmp_path: Path) -> None:
    values = (RAMP * 4095).astype(">u2")

    def pgm(path: Path, _: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".pgm").write_bytes(b"P5 8 8 4095\n" + values.tobytes())

    assert load_federated_data(run(folder(tmp_path, write=pgm))).pixel_range == (0, 4095)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([5, 1], "expected the values of black and white, the first below the second"),
        ([0], "field required"),
        ("wide", "input should be 'auto'"),
        ([0, float("inf")], "finite number"),
    ],
)
def test_another_range_in_a_run_file_is_refused(given: object, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"task.pixel_range is .*{message}"):
        parse_run({"task": {"pixel_range": given}})


def test_the_range_is_in_the_printed_run_file_and_read_back() -> None:
    config = parse_run({"task": {"pixel_range": [0, 4095]}})
    assert "pixel_range = [0.0, 4095.0]" in to_toml(config)
    assert 'pixel_range = "auto"' in to_toml(RunConfig())


def test_the_preview_says_what_was_found_and_what_is_used(tmp_path: Path) -> None:
    found = preview_data(run(folder(tmp_path), pixel_range=[0, 65535])).notes
    said = "\n".join(note.text for note in found)
    assert "with values from 0 to 4,095; black and white are task.pixel_range = [0, 65535], as the run says" in said
    assert [note.is_warning for note in found] == [False, True]


def test_a_trained_models_deep_pictures_need_the_range_that_training_had() -> None:
    deep = (RAMP * 4095).astype(np.uint16)
    with pytest.raises(DataError, match=r"input 0: deeper than 8 bits.*pixel_range = \[0, 4095\]"):
        unlabelled([deep], image_size=8)
    assert np.asarray(unlabelled([deep], image_size=8, pixel_range=(0, 4095)).inputs).max() == 255


def test_a_simulation_writes_the_range_that_it_found_into_its_run_file(
    tmp_path: Path, vision_run: Callable[..., RunConfig], caplog: pytest.LogCaptureFixture
) -> None:
    from fedlora.common.run_file import load_run
    from fedlora.finished.trained import load_trained
    from fedlora.simulation import simulate

    config = vision_run(data={"path": str(folder(tmp_path / "pictures"))}, federation={"rounds": 1})
    with caplog.at_level(logging.WARNING):
        result = simulate(config, out=tmp_path / "run", num_workers=1)

    written = load_run(result.folder / "run.toml").task
    assert getattr(written, "pixel_range", None) == (0, 4095)
    assert "black and white are task.pixel_range = [0, 4095], found from them" in caplog.text
    assert load_trained(result.folder).predict([(RAMP * 4095).astype(np.uint16)])[0] in ("up", "down")
