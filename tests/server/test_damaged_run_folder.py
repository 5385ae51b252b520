"""A run goes on from a folder whose files were cut or damaged, or says in one line which one it cannot do without."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from stub_runs import run_config, served
from stub_site import StubSite

from fedlora.common.errors import FedloraError
from fedlora.server.disk.store import RunFolder
from fedlora.server.record.events import Event, RoundEnded

CONFIG = run_config(2, federation={"rounds": 2}, exchange={"precision": "bfloat16"})


class Cut(Exception):  # noqa: N818 (what happens)
    """Ends a server in the middle."""


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that was cut off after its first of two rounds, and its sites' beside it."""
    folder = tmp_path_factory.mktemp("stopped")

    def cut(event: Event) -> None:
        if isinstance(event, RoundEnded) and event.report.round == 1:
            raise Cut

    with pytest.raises(Cut):
        served(CONFIG, folder / "run", [StubSite(name, folder / name) for name in ("anna", "bert")], listener=cut)
    return folder


# What is read when a server starts, or goes on: by a pattern, the file to damage.
FILES = [
    "sites.json", "manifest.json", "run.toml", "rounds.jsonl", "report.html", "audit.jsonl",
    "adapter/adapter_config.json", "rounds/0001/report.json", "rounds/0001/adapter.safetensors",
    "exchange/ticket.key", "exchange/offers/*.json", "exchange/newest/*.json",
    "exchange/whole/*", "exchange/uploads/*/*", "exchange/updates/*/*",
    "published/*/adapter.json",
]  # fmt: skip
NEEDED = {"manifest.json", "run.toml", "sites.json"}
OTHER_RUN = "holds a run that differs from this one"
OFTEN = {*NEEDED, "exchange/offers/*.json"}
# One of a kind: a journal, a round, what sites are to be sent and what they have brought, what is published.
CUT = {
    "rounds.jsonl", "rounds/0001/adapter.safetensors", "exchange/newest/*.json", "exchange/updates/*/*",
    "published/*/adapter.json",
}  # fmt: skip
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda raw: raw[: len(raw) // 2],
    "empty": lambda _raw: b"",
    "other": lambda _raw: b"[1, 2]",
    "noise": lambda raw: bytes(byte ^ 0xA5 for byte in raw),
}


# In every run, those that no run can do without, and the one that once ended a server, in every way; of the others one
# of each kind, cut.
CASES = [
    pytest.param(name, damage, marks=() if name in OFTEN or (name in CUT and damage == "cut") else pytest.mark.slow)
    for name in FILES
    for damage in DAMAGES
]


@pytest.mark.parametrize(("name", "damage"), CASES)
def test_a_damaged_file_is_made_again_or_named(stopped: Path, tmp_path: Path, name: str, damage: str) -> None:
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    paths = list((tmp_path / "run").glob(name))
    assert paths
    for path in paths:
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
    sites = [StubSite(site, tmp_path / site) for site in ("anna", "bert")]
    if name in NEEDED:
        with pytest.raises(FedloraError) as caught:
            served(CONFIG, tmp_path / "run", sites)
        (line,) = str(caught.value).splitlines()
        # An empty run.toml is one of another run.
        assert f"{name} is damaged" in line or (name == "run.toml" and ("run.toml" in line or OTHER_RUN in line))
    else:
        served(CONFIG, tmp_path / "run", sites)
        checkpoint = RunFolder(tmp_path / "run").latest()
        assert checkpoint is not None
        assert checkpoint.round == 2
