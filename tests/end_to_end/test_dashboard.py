"""The dashboard on the folder of a real run."""

import hashlib
import io
import tarfile
import urllib.request
from pathlib import Path

import torch

from fedlora.adapters import load_adapter
from fedlora.dashboard.serving import dashboard_beside
from fedlora.simulation import SimulationResult


def test_a_finished_run_is_shown_and_its_adapter_comes_as_peft_has_it(
    finished_run: SimulationResult, tmp_path: Path
) -> None:
    folder = finished_run.folder
    before = digests(folder)
    with dashboard_beside(folder, "127.0.0.1:0") as dashboard:
        page = asked(dashboard.url).decode()
        archive = asked(f"{dashboard.url}adapters/?name=newest")
    assert "finished" in page
    assert "Loss by round" in page
    assert "cannot be shown" not in page
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        # A filter is not known before 3.11.4, and what is in it is our own.
        tar.extractall(tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    (unpacked,) = tmp_path.iterdir()
    downloaded, own = load_adapter(unpacked), load_adapter(folder / "adapter")
    assert downloaded.layers.keys() == own.layers.keys()
    assert all(torch.equal(downloaded.layers[path].B, own.layers[path].B) for path in own.layers)
    assert digests(folder) == before


def asked(url: str) -> bytes:
    with urllib.request.urlopen(url) as answer:
        content: bytes = answer.read()
    return content


def digests(folder: Path) -> dict[Path, str]:
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}
