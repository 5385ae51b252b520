"""The guide's own task, as it stands there: installed, found by its entry point, trained in a federation."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from guide_pages import ROOT, piece_with

from fedlora.common.config import RunConfig
from fedlora.common.errors import ConfigError, ModelError
from fedlora.models.base_model import load_base_model
from fedlora.simulation import simulate

MakeRun = Callable[..., RunConfig]
PAGE = ROOT / "deploy" / "guide" / "extending.md"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the guide's task, and one that is broken, where pip would have put them; workers find them there too."""
    site = tmp_path / "site-packages"
    (site / "stars_task-1.0.dist-info").mkdir(parents=True)
    (site / "stars_task.py").write_text(piece_with(PAGE, "python", "class Stars"))
    (site / "broken_task.py").write_text("import no_such_module\n")
    (site / "stars_task-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: stars-task\nVersion: 1.0\n"
    )
    (site / "stars_task-1.0.dist-info" / "entry_points.txt").write_text(
        "[fedlora.tasks]\nstars = stars_task:Stars\nbroken = broken_task:Broken\n"
    )
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.delitem(sys.modules, "stars_task", raising=False)
    return site


@pytest.fixture
def stars_run(text_run: MakeRun, tmp_path: Path) -> MakeRun:
    """Return a function that gives a run over reviews whose stars follow from their words."""
    words = {"great": 5, "good": 4, "fine": 3, "poor": 2, "awful": 1}
    lines = ["review,stars,shop"]
    for number in range(120):
        word = list(words)[number % 5]
        lines.append(f"the film was {'very ' * (number % 3)}{word},{words[word]},{('north', 'south')[number % 2]}")
    (tmp_path / "reviews.csv").write_text("\n".join(lines) + "\n")

    def make(**sections: dict[str, object]) -> RunConfig:
        base = text_run().model_dump()
        table = {
            "model": {"name": base["model"]["name"]},
            "task": {"kind": "own", "name": "stars", "settings": {"text": "review", "target": "stars"}},
            "data": {"path": str(tmp_path / "reviews.csv"), "group": "shop"},
            "lora": {"rank": 4},
            "train": {"steps": 30, "batch_size": 16, "learning_rate": 0.01, "device": "cpu"},
            "federation": {"rounds": 3},
        }
        return RunConfig.model_validate(table | sections)

    return make


@pytest.mark.usefixtures("installed")
def test_a_task_of_ones_own_learns_in_a_federation(stars_run: MakeRun, tmp_path: Path) -> None:
    result = simulate(stars_run(), out=tmp_path / "run", num_workers=2)
    scores = [report.held_out.overall for report in result.reports if report.held_out is not None]
    assert scores[-1].metric < 0.5 * scores[0].metric
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.usefixtures("installed")
def test_a_task_that_nobody_installed_is_refused_with_those_that_are(stars_run: MakeRun) -> None:
    with pytest.raises(ConfigError, match=r"no task 'moons' \(installed are broken, stars\).*fedlora\.tasks"):
        load_base_model(stars_run(task={"kind": "own", "name": "moons"}), ())


@pytest.mark.usefixtures("installed")
def test_a_task_that_cannot_be_imported_is_refused(stars_run: MakeRun) -> None:
    with pytest.raises(ConfigError, match=r"'broken' cannot be imported \(No module named 'no_such_module'\)"):
        load_base_model(stars_run(task={"kind": "own", "name": "broken"}), ())


@pytest.mark.usefixtures("installed")
def test_what_a_task_raises_is_told_in_one_line(stars_run: MakeRun) -> None:
    with pytest.raises(ModelError, match="'stars' raised KeyError: 'text'"):
        load_base_model(stars_run(task={"kind": "own", "name": "stars"}), ())
