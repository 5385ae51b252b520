"""Folders of the first version go on, and end in the bits of a run that nobody interrupted.

`version_1` was made by fedlora 0.1.0 before its folders had versions, in the folder itself: a vision model of one
layer, pictures of two domains, `fedlora simulate run.toml --out simulation`, killed where round 2 writes its adapter,
and `fedlora server start run.toml --out server --insecure` with the sites chalk and pencil, all three killed where the
server had one update of round 2, and was about to take the other. Left out are locks, logs, and the key of the tickets.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from deployment import Deployment
from ended_runs import adapter_sha256

from fedlora.adapters import load_adapter
from fedlora.common.folder_version import RUN_FOLDER, SITE_FOLDER, VERSION_FILE, version_of
from fedlora.server.disk.audit import read_audit
from fedlora.simulation import simulate

FIRST = Path(__file__).with_name("version_1")
SITES = ("chalk", "pencil")
SECONDS = 300.0


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of what the first version left; this process works in it, for its paths are relative."""
    copy = shutil.copytree(FIRST, tmp_path / "first")
    assert not list(copy.rglob(VERSION_FILE))
    monkeypatch.chdir(copy)
    return copy


def digests(run: Path) -> list[str]:
    """Return the sha256 of the adapter after each round."""
    return [json.loads(line)["adapter_sha256"] for line in (run / "rounds.jsonl").read_text().splitlines()]


def require_same(run: Path, uninterrupted: Path, *, before: list[str]) -> None:
    """Check that both end in the same bits, where this machine computes the first rounds as the one that made them.

    Processors differ in the last bits of a sum; where they do, the runs differ as little.
    """
    ours, theirs = (load_adapter(found / "adapter").layers for found in (run, uninterrupted))
    for name, layer in ours.items():
        torch.testing.assert_close(layer.A, theirs[name].A, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer.B, theirs[name].B, rtol=1e-4, atol=1e-5)
    assert digests(run)[: len(before)] == before
    if digests(uninterrupted)[: len(before)] == before:
        assert adapter_sha256(run) == adapter_sha256(uninterrupted)
        assert digests(run) == digests(uninterrupted)


def test_runs_of_the_first_version_go_on_and_end_as_if_nothing_had_been(folder: Path) -> None:
    uninterrupted = simulate(folder / "run.toml", out=folder / "uninterrupted", num_workers=1).folder
    before = digests(folder / "simulation")
    assert len(before) == 2
    simulate(folder / "run.toml", out=folder / "simulation", num_workers=1, resume=True)
    require_same(folder / "simulation", uninterrupted, before=before)

    before = digests(folder / "server")
    num_entries = len(read_audit(folder / "server").entries)
    with Deployment(folder, folder / "run.toml", is_insecure=True) as deployment:
        deployment.server.start()
        for name in SITES:
            deployment.add_site(name, folder / f"{name}.toml").start()
        assert deployment.server.wait(SECONDS) == 0, deployment.server.text
        for site in deployment.sites.values():
            assert site.wait(60) == 0, site.text
    assert "going on with round 2" in deployment.server.text
    require_same(folder / "server", uninterrupted, before=before)
    audit = read_audit(folder / "server")
    assert (audit.fault, len(audit.entries) > num_entries) == ("", True)
    names = sorted(path.name for path in (folder / "server" / "published").iterdir())
    assert names[0] == "version-1-v0001"
    assert len(names) > 1
    for run in ("simulation", "server"):
        assert (folder / run / VERSION_FILE).exists()
        assert version_of(folder / run, RUN_FOLDER) == RUN_FOLDER.version
    for name in SITES:
        assert (folder / f"{name}.site" / VERSION_FILE).exists()
        assert version_of(folder / f"{name}.site", SITE_FOLDER) == SITE_FOLDER.version
