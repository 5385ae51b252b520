"""The runs and sites under deploy/: each is read without a complaint, and each site fits a run."""

from pathlib import Path

import pytest

from fedlora.client.site.site_file import for_site, load_site
from fedlora.client.site.terms import objection_to
from fedlora.common.run_file import load_run, require_labels
from fedlora.training.data import load_own_data

DEPLOY = Path(__file__).parents[1] / "deploy"
RUNS = sorted((DEPLOY / "runs").glob("*.toml"))
SITES = {"mnist": "digits", "sans": "digits", "emoji-en": "emoji", "emoji-fr": "emoji"}


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_a_run_is_valid_and_named_after_its_file(path: Path) -> None:
    assert load_run(path).run.name == path.stem


def test_the_runs_that_the_readme_names_are_there() -> None:
    assert {"digits", "emoji", "pictures", "smollm2"} == {path.stem for path in RUNS}


@pytest.mark.parametrize("site", SITES)
def test_a_site_has_data_for_its_run(site: str) -> None:
    path = DEPLOY / "sites" / f"{site}.toml"
    config, run = load_site(path), load_run(DEPLOY / "runs" / f"{SITES[site]}.toml")
    require_labels(run)
    assert config.site.name == site
    assert objection_to(run, config) is None
    own = for_site(run, config, beside=path.parent)
    data = load_own_data(own, client=site, only_group=config.data.only_group)
    assert len(data.clients[site].training) > 100
    assert data.labels == run.data.labels
