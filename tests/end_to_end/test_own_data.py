"""A person's own pictures and texts, by the command that the README shows."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Command = Callable[..., object]


def picture(random: np.random.Generator, *, label: int, size: int = 20) -> Image.Image:
    """Return noise with a bright bar: on the left for label 0, on the right for label 1."""
    pixels = random.integers(0, 80, (size, size, 3), dtype=np.uint8)
    pixels[:, : size // 2] += np.uint8(120 if label == 0 else 0)
    pixels[:, size // 2 :] += np.uint8(120 if label == 1 else 0)
    return Image.fromarray(pixels)


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for domain in ("clinic a", "clinic b"):
        for label, name in enumerate(("left", "right")):
            folder = tmp_path / "pictures" / domain / name
            folder.mkdir(parents=True)
            for index in range(20):
                picture(random, label=label).save(folder / f"{index}.png")
    return tmp_path / "pictures"


@pytest.fixture
def text_table(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    path = tmp_path / "reviews.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["review", "verdict", "shop"])
        for index in range(120):
            good = index % 2 == 0
            words = random.choice(["good", "great", "fine"] if good else ["bad", "poor", "awful"], 3)
            writer.writerow([" ".join(words), "good" if good else "bad", f"shop {index % 3}"])
    return path


def reports(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def test_an_image_folder_trains_with_one_client_per_domain(
    fedlora: Command, image_folder: Path, tiny_vision_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "run.toml").write_text(
        f"""
        [run]
        name = "clinics"
        [model]
        name = "{tiny_vision_model}"
        [task]
        image_size = 16
        [data]
        path = "{image_folder}"
        [train]
        learning_rate = 0.02
        batch_size = 8
        [federation]
        rounds = 3
        """
    )
    done = fedlora("simulate", "run.toml", "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "clinic a" in done.stdout
    first, *_, last = reports(tmp_path / "runs" / "clinics")
    assert set(last["clients"]) == {"clinic a", "clinic b"}
    assert last["held_out"]["overall"]["metric"] > max(0.8, first["held_out"]["overall"]["metric"])
    html = (tmp_path / "runs" / "clinics" / "report.html").read_text()
    assert "clinic b" in html
    assert "data:image/png;base64" in html


@pytest.mark.parametrize("head", ["linear", "auto"])
def test_a_csv_of_texts_trains_split_by_label_skew(
    fedlora_here: Command, text_table: Path, tiny_text_model: Path, tmp_path: Path, head: str
) -> None:
    (tmp_path / "run.toml").write_text(
        f"""
        [run]
        name = "reviews"
        [model]
        name = "{tiny_text_model}"
        head = "{head}"
        [task]
        kind = "sequence_classification"
        [data]
        path = "{text_table}"
        text = "review"
        label = "verdict"
        group = "shop"
        [partition]
        by = "dirichlet"
        num_clients = 2
        alpha = 1.0
        [train]
        epochs = 1.0
        batch_size = 8
        learning_rate = 0.02
        [federation]
        rounds = 2
        """
    )
    done = fedlora_here("simulate", "run.toml", "--workers", "1")
    assert done.returncode == 0, done.stderr
    first, *_, last = reports(tmp_path / "runs" / "reviews")
    assert set(last["clients"]) == {"client-1", "client-2"}
    assert set(last["held_out"]["groups"]) == {"shop 0", "shop 1", "shop 2"}
    assert last["held_out"]["overall"]["loss"] < first["held_out"]["overall"]["loss"]
