"""A method that is given in Python is what run.toml, and so manifest and report, say of the run."""

from pathlib import Path
from typing import ClassVar

import pytest

from fedlora.aggregation import METHODS, FedExLora, FedIT, LoraFair
from fedlora.common.config import OwnMethod, RunConfig
from fedlora.common.errors import ConfigError, StoreError
from fedlora.common.run_file import load_run, parse_run, to_toml
from fedlora.server.disk.claim import Claim
from fedlora.server.report.run_line import summary
from fedlora.server.run_method import method_of, naming
from fedlora.simulation import simulate


class Scaled(FedIT):
    name: ClassVar[str] = "scaled"
    factor: float = 0.5


class Wordless(FedIT):
    name: ClassVar[str] = "wordless"
    __repr__ = object.__repr__


@pytest.mark.parametrize("name", METHODS)
def test_a_method_of_ours_is_recorded_with_its_settings(name: str) -> None:
    method = METHODS[name]()
    named = naming(method, RunConfig())
    assert named.method_name == name
    assert method_of(named) == method
    assert method_of(parse_run({}, ["aggregation.method=fedit"])) == FedIT()


def test_the_settings_are_those_of_the_method_and_not_of_the_run() -> None:
    named = naming(LoraFair(ridge=0.5, corrects="A"), RunConfig())
    assert "ridge = 0.5" in to_toml(named)
    assert method_of(named) == LoraFair(ridge=0.5, corrects="A")
    assert "fedit" in summary(naming(FedIT(), RunConfig()), num_clients=2)


def test_a_method_of_ones_own_is_recorded_by_its_name_and_by_what_it_says_of_itself(tmp_path: Path) -> None:
    named = naming(Scaled(), RunConfig())
    assert named.aggregation == OwnMethod(name="scaled", settings="Scaled(factor=0.5)")
    assert "scaled" in summary(named, num_clients=2)
    assert "object at" not in str(naming(Wordless(), RunConfig()).aggregation)
    with Claim(tmp_path / "run", named, resume=False):
        (tmp_path / "run" / "manifest.json").write_text("{}")
    assert load_run(tmp_path / "run" / "run.toml") == named
    with Claim(tmp_path / "run", naming(Scaled(), RunConfig()), resume=True):
        pass
    for other in (naming(Scaled(factor=0.1), RunConfig()), naming(FedIT(), RunConfig()), RunConfig()):
        with pytest.raises(StoreError, match=r"holds a run that differs from this one: aggregation"):
            Claim(tmp_path / "run", other, resume=True)


def test_a_method_that_does_not_go_with_the_run_is_refused_in_one_line() -> None:
    config = parse_run({"lora": {"client_ranks": {"a": 2}}})
    with pytest.raises(ConfigError, match=r"simulate\(method=...\): aggregation.method = fedex_lora needs one rank"):
        naming(FedExLora(), config)


def test_a_run_of_somebodys_own_method_does_not_start_without_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"aggregation.method is 'own', scaled: .* simulate\(config, method=...\)"):
        simulate(naming(Scaled(), RunConfig()), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
