"""The guide's own method, as it stands there: installed, found by its entry point, used wherever a method is."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from guide_pages import ROOT, piece_with

from fedlora.adapters import Adapter, LoraLayer, load_adapter, save_adapter
from fedlora.aggregation import FedIT, aggregate
from fedlora.common.config import MethodElsewhere, RunConfig
from fedlora.common.errors import AdapterError, ConfigError
from fedlora.common.method_names import method_points
from fedlora.common.run_file import parse_run, parse_toml, to_toml
from fedlora.methods import METHODS, Combined, Layer
from fedlora.server.disk.method_state import pack_state, unpack_state
from fedlora.server.record.events import Event, RoundEnded
from fedlora.server.run_method import naming
from fedlora.simulation import simulate

PAGE = ROOT / "deploy" / "guide" / "extending.md"
MakeRun = Callable[..., RunConfig]
Command = Callable[..., subprocess.CompletedProcess[str]]


@contextmanager
def installation(site: Path) -> Iterator[None]:
    """Put the guide's method where pip would have put it, for as long as the context lasts."""
    information = site / "momentum-1.0.dist-info"
    information.mkdir(parents=True)
    (site / "momentum_method.py").write_text(piece_with(PAGE, "python", "class Momentum"))
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: momentum\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[fedlora.methods]\nmomentum = momentum_method:Momentum\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        patch.setenv("PYTHONPATH", str(site))
        patch.delitem(sys.modules, "momentum_method", raising=False)
        method_points.cache_clear()
        yield
    method_points.cache_clear()


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[Path]:
    site = tmp_path / "site-packages"
    with installation(site):
        yield site


@pytest.fixture
def run(vision_run: MakeRun) -> RunConfig:
    return momentum_run(vision_run)


def momentum_run(vision_run: MakeRun) -> RunConfig:
    base = vision_run(federation={"rounds": 3}).model_dump(mode="json")
    return parse_run(base | {"aggregation": {"method": "momentum", "beta": 0.8}})


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


class StoppedError(Exception):
    pass


def stop_after_round_2(event: Event) -> None:
    if isinstance(event, RoundEnded) and event.report.round == 2:
        raise StoppedError


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, vision_run: MakeRun) -> Path:
    """Return a folder with a whole run and one that was stopped after two of its three rounds: not to be changed."""
    folder = tmp_path_factory.mktemp("momentum")
    with installation(folder / "site-packages"):
        config = momentum_run(vision_run)
        simulate(config, out=folder / "whole", num_workers=2)
        with pytest.raises(StoppedError):
            simulate(config, out=folder / "stopped", num_workers=1, listener=stop_after_round_2)
    return folder


@pytest.mark.usefixtures("installed")
def test_it_is_simulated_reported_and_resumed_from_what_it_keeps(run: RunConfig, runs: Path, tmp_path: Path) -> None:
    whole = runs / "whole"
    shutil.copytree(runs / "stopped", tmp_path / "stopped")
    again = simulate(run, out=tmp_path / "stopped", num_workers=1, resume=True)
    assert digest(again.folder) == digest(whole)
    states = {path.parent.name: path for path in (whole / "rounds").glob("*/state.safetensors")}
    assert set(states) == {"0002", "0003"}
    page = (whole / "report.html").read_text()
    assert "Momentum (of the means of A and of B)" in page
    assert "beta = 0.8" in (whole / "run.toml").read_text()
    assert json.loads((whole / "manifest.json").read_text())["aggregation"] == {"method": "momentum", "beta": 0.8}
    other = simulate(parse_run(run.model_dump(mode="json"), ["aggregation.beta=0.0"]), out=tmp_path / "fedavg")
    assert digest(other.folder) != digest(whole)


@pytest.mark.usefixtures("installed")
def test_a_damaged_state_is_done_again(run: RunConfig, runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "stopped", tmp_path / "run")
    (tmp_path / "run" / "rounds" / "0002" / "state.safetensors").write_bytes(b"damaged")
    again = simulate(run, out=tmp_path / "run", num_workers=1, resume=True)
    assert digest(again.folder) == digest(runs / "whole")


@pytest.mark.usefixtures("installed")
def test_it_is_listed_planned_and_aggregated_by(run: RunConfig, tmp_path: Path, fedlora_here: Command) -> None:
    listed = fedlora_here("methods").stdout
    assert "momentum\n    the means, carried on by a part of the last round's step\n    settings: beta=0.5" in listed
    (tmp_path / "run.toml").write_text(to_toml(run))
    planned = fedlora_here("plan", tmp_path / "run.toml", "--json")
    assert next(iter(json.loads(planned.stdout)["traffic"]))["method"] == "momentum"
    simulate(parse_run(run.model_dump(mode="json"), ["federation.rounds=1"]), out=tmp_path / "out", num_workers=1)
    adapter = load_adapter(tmp_path / "out" / "adapter")
    for name in ("a", "b"):
        save_adapter(adapter, tmp_path / name)
    done = fedlora_here("aggregate", "--method", "momentum", "--set", "beta=0.25", "--out", "mean", "a", "b")
    assert done.stdout.startswith("momentum (beta=0.25) over ")
    (path, *_) = adapter.layers
    assert torch.equal(load_adapter(tmp_path / "mean").layers[path].B, adapter.layers[path].B)
    refused = fedlora_here("aggregate", "--method", "momentum", "--set", "beta=1", "--out", "mean2", "a", "b")
    assert refused.stderr == "error: --set beta=1: input should be less than 1\n"


def test_a_site_without_it_takes_part_and_everybody_else_is_told_what_there_is(run_toml: str) -> None:
    elsewhere = parse_toml(run_toml, origin="the server's run", aggregates_elsewhere=True).aggregation
    assert isinstance(elsewhere, MethodElsewhere)
    with pytest.raises(ConfigError, match=r"aggregation.method is 'momentum'; expected one of 'fedex_lora', "):
        parse_toml(run_toml, origin="run.toml")


@pytest.fixture
def run_toml(installed: Path, run: RunConfig, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the run file as the server has it, at a site where the method is not installed."""
    text = to_toml(run)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(installed)])
    method_points.cache_clear()
    return text


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("import no_such_module\n", "cannot be imported"),
        ("class Momentum: pass\n", "is no method of the name 'momentum'"),
    ],
)
def test_a_broken_one_is_one_line_and_spoils_nothing_else(
    installed: Path, fedlora_here: Command, module: str, reason: str
) -> None:
    (installed / "momentum_method.py").write_text(module)
    assert parse_run({}, ["aggregation.method=fedit"]).method_name == "fedit"
    with pytest.raises(ConfigError, match=r"aggregation\.rigde: unknown key"):
        parse_run({}, ["aggregation.rigde=1"])
    listed = fedlora_here("methods")
    assert (listed.returncode, reason in listed.stdout, "fedit" in listed.stdout) == (0, True, True)
    with pytest.raises(ConfigError, match=reason):
        parse_run({}, ["aggregation.method=momentum"])


@pytest.mark.usefixtures("installed")
def test_who_lists_all_methods_imports_it() -> None:
    assert "momentum" in METHODS
    assert METHODS["momentum"]().model_dump() == {"method": "momentum", "beta": 0.5}


def test_a_site_with_a_broken_or_another_version_of_it_takes_part(
    installed: Path, run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = to_toml(run)
    for module in (
        "import no_such_module\n",
        (installed / "momentum_method.py").read_text().replace("beta:", "gamma:"),
    ):
        (installed / "momentum_method.py").write_text(module)
        monkeypatch.delitem(sys.modules, "momentum_method", raising=False)
        found = parse_toml(text, origin="the server's run", aggregates_elsewhere=True).aggregation
        assert isinstance(found, MethodElsewhere)
        with pytest.raises(ConfigError):
            parse_toml(text, origin="run.toml")


def test_an_entry_point_that_is_none_and_a_setting_without_a_default_end_no_command(
    installed: Path, fedlora_here: Command
) -> None:
    (installed / "momentum_method.py").write_text(
        "from typing import ClassVar\nfrom fedlora.methods import Method\n"
        "class Momentum(Method):\n    name: ClassVar[str] = 'momentum'\n    beta: float\n"
    )
    points = installed / "momentum-1.0.dist-info" / "entry_points.txt"
    points.write_text(points.read_text() + "odd = my-package.odd:Odd\n")
    method_points.cache_clear()
    listed = fedlora_here("methods").stdout
    assert "has a setting without a default: beta" in listed
    assert "'odd' cannot be imported" in listed


def test_of_own_methods_the_settings_and_the_limits_are_checked_too() -> None:
    with pytest.raises(ConfigError, match=r"^run: aggregation\.foo: unknown key"):
        parse_run({"aggregation": {"method": "own", "foo": 1}})

    class Hasty(FedIT):
        name: ClassVar[str] = "hasty"
        allows_late_updates: ClassVar[bool] = False

    config = parse_run({}, ['federation.late="next_round"'])
    with pytest.raises(ConfigError, match=r'simulate\(method=...\): federation.late = "next_round" does not go with'):
        naming(Hasty(), config)
    with pytest.raises(TypeError, match=r"method is object; expected an object of a subclass of fedlora\.methods"):
        naming(object(), config)  # type: ignore[arg-type]


def test_a_state_may_share_memory_and_has_names_without_dots() -> None:
    mean = torch.ones(2, 3)
    state = {"layers.0": {"A": mean, "again": mean, "part": mean[:1].T}}
    found = unpack_state(pack_state(state))
    assert all(torch.equal(found["layers.0"][name], tensor) for name, tensor in state["layers.0"].items())

    class Dotted(FedIT):
        name: ClassVar[str] = "dotted"

        def combine(self, layer: Layer) -> Combined:
            return Combined(layer.mean_A, layer.mean_B, state={"a.b": layer.mean_A})

    adapter = Adapter({"q": LoraLayer(torch.ones(2, 3), torch.ones(4, 2), 1.0)})
    with pytest.raises(ValueError, match=r"dotted keeps a state named 'a\.b'"):
        aggregate({"a": adapter}, method=Dotted())


def test_a_method_that_changes_the_base_takes_no_dora_whatever_it_says() -> None:
    class Bold(FedIT):
        name: ClassVar[str] = "bold"
        changes_base: ClassVar[bool] = True

    layer = LoraLayer(torch.ones(2, 3), torch.ones(4, 2), 1.0, magnitude=torch.ones(4))
    with pytest.raises(AdapterError, match=r"a trains DoRA, whose magnitudes bold cannot move"):
        aggregate({"a": Adapter({"q": layer}, {}, {"use_dora": True})}, method=Bold())
