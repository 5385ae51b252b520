"""A server whose run waits for its sites, and an operator who goes back to an earlier adapter and returns."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from deployment import Deployment, Process

from fedlora.common.published import CODEC, METADATA_FILE, read_published
from fedlora.server.disk.audit import read_audit

FIRST = Path(__file__).with_name("version_1")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a run whose server has published two adapters."""
    copy = shutil.copytree(FIRST, tmp_path / "run")
    published = copy / "server" / "published"
    second = shutil.copytree(published / "version-1-v0001", published / "version-1-v0002")
    found = read_published(second)
    assert found is not None
    content = CODEC.dump(replace(found, name="version-1-v0002", version=2, round=2))
    (second / METADATA_FILE).write_text(content)
    monkeypatch.chdir(copy)
    return copy


def test_an_operator_goes_back_and_returns_and_those_who_follow_the_run_with_them(folder: Path) -> None:
    with Deployment(folder, folder / "run.toml", is_insecure=True) as deployment:
        deployment.server.start()
        deployment.server.wait_for("site pencil: away")
        caller = ("--insecure", "--name", "north")
        arguments = ["adapters", "watch", deployment.address, "--out", str(folder / "out"), *caller]
        watching = Process("watching", arguments, folder / "watching.log", folder)
        deployment.sites["watching"] = watching
        watching.start()
        watching.wait_for(r"v0001\n.*v0002\n")

        back = deployment.command("adapters", "rollback", "--out", "server")
        assert back.returncode == 0, back.stderr
        assert back.stdout == (
            "version-1-v0001 (round 1) is offered in place of newer ones; withdrawn: v0002\n"
            "until a better one is published, or: fedlora adapters rollback --undo --out server\n"
        )
        watching.wait_for(r"v0001\n.*v0002\n.*v0001\n")
        deployment.server.wait_for("WARNING rolled back to version-1-v0001 by ")
        got = deployment.command("adapters", "download", deployment.address, "--out", "got", *caller)
        assert got.stdout.strip().endswith("got/version-1-v0001")
        said = deployment.command("server", "status", "--out", "server").stdout
        assert "\n  rollback  version-1-v0001 is offered in place of newer ones, since " in said

        undone = deployment.command("adapters", "rollback", "--undo", "--out", "server")
        assert undone.stdout == "all adapters are offered again\n"
        watching.wait_for(r"v0002\n.*v0001\n.*v0002\n")
        status = json.loads(deployment.command("server", "status", "--out", "server", "--json").stdout)
        assert (status["rolled_back"], status["not_published"]) == (None, {})
    events = [(entry["event"], entry.get("adapter")) for entry in read_audit(folder / "server").entries]
    assert ("rolled back", "version-1-v0001") in events
    assert events.index(("rolled back", "version-1-v0001")) < events.index(("rollback undone", None))
    assert all(entry["by"] for entry in read_audit(folder / "server").entries if "roll" in str(entry["event"]))
