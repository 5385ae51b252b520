"""Every command with --json: one object of its schema, also where it fails, and the exit status as ever."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import jsonschema
import pytest
import typer.main

from fedlora.cli.main import app
from fedlora.cli.schema import KINDS, error_schema, schema_of
from fedlora.common.config import RunConfig
from fedlora.common.run_file import to_toml
from fedlora.server.disk.audit import AuditLog
from fedlora.server.identity.authority import Authority
from fedlora.server.run_queue.store import RunStore
from fedlora.simulation import SimulationResult, simulate

if TYPE_CHECKING:
    from conftest import Done

Fedlora = Callable[..., "Done"]
MakeRun = Callable[..., RunConfig]

# They print no JSON: what a schema is, is JSON anyway.
WITHOUT = {"schema"}


def leaves(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Yield each command with its name as it is typed, behind `fedlora`."""
    if not hasattr(command, "list_commands"):
        yield " ".join(path), command
        return
    group: Any = command
    for name in group.list_commands(click.Context(group)):
        yield from leaves(group.get_command(click.Context(group), name), (*path, name))


COMMANDS = dict(leaves(typer.main.get_command(app)))


@pytest.fixture(scope="module")
def run(vision_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> SimulationResult:
    """Return a finished run: not to be changed."""
    config = vision_run(federation={"rounds": 1}, train={"steps": 1})
    return simulate(config, out=tmp_path_factory.mktemp("run") / "out", num_workers=1)


@pytest.fixture
def run_file(vision_run: MakeRun, tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(to_toml(vision_run(data={"labels": ["0", "1", "2"]}, federation={"rounds": 1}, train={"steps": 1})))
    return path


@pytest.fixture
def asked(fedlora: Fedlora) -> Callable[..., Any]:
    """Return a function that runs a command with --json, and returns what it prints once that is as its schema says."""

    def ask(command: str, *arguments: object, code: int = 0) -> Any:
        done = fedlora(*command.split(), *map(str, arguments), "--json")
        assert done.code == code, done.err
        found = json.loads(done.out)
        is_error = isinstance(found, dict) and "error" in found
        jsonschema.validate(found, error_schema() if is_error else schema_of(command))
        return found["error"] if is_error else found

    return ask


def test_every_command_has_it_and_a_schema() -> None:
    assert {name for name, command in COMMANDS.items() if any("--json" in each.opts for each in command.params)} == {
        *KINDS
    }
    assert set(COMMANDS) - WITHOUT == set(KINDS)


@pytest.mark.parametrize("command", sorted(KINDS))
def test_a_schema_is_one_and_says_what_it_is_of(command: str, fedlora: Fedlora) -> None:
    done = fedlora("schema", *command.split())
    found = json.loads(done.out)
    jsonschema.Draft202012Validator.check_schema(found)
    assert found["title"] == f"fedlora {command} --json"
    assert found["description"]


def test_all_schemas_come_at_once_and_a_command_that_there_is_not_is_said(fedlora: Fedlora) -> None:
    assert set(json.loads(fedlora("schema").out)) == {*KINDS, "error"}
    done = fedlora("schema", "server", "begin")
    assert (done.code, "there is no command 'server begin' with --json" in done.err) == (1, True)


# What fails for each command, whatever there is on the machine.
FAILS: dict[str, tuple[str, ...]] = {
    "init": ("--kind", "films", "--data", "somewhere"),
    "simulate": ("no-such.toml",),
    "compare": ("no-such.toml",),
    "plan": ("no-such.toml",),
    "aggregate": ("no-such-folder", "--out", "out"),
    "export": ("no-such-folder", "--out", "out"),
    "doctor": ("--listen", "nowhere"),
    "server start": ("no-such.toml", "--out", "out"),
    "server status": ("--out", "no-such-folder"),
    "server stop": ("--out", "no-such-folder"),
    "server renew": ("--out", "no-such-folder"),
    "server audit": ("--out", "no-such-folder"),
    "sites invite": ("north", "--out", "no-such-folder"),
    "sites list": ("--out", "no-such-folder"),
    "sites revoke": ("north", "--out", "no-such-folder"),
    "runs submit": ("no-such.toml", "--store", "no-such-folder"),
    "runs list": ("--store", "no-such-folder"),
    "runs show": ("digits", "--store", "no-such-folder"),
    "runs stop": ("digits", "--store", "no-such-folder"),
    "client join": ("127.0.0.1:1", "--site", "no-such.toml"),
    "client status": ("--site", "no-such.toml"),
    "client pause": ("--site", "no-such.toml"),
    "client resume": ("--site", "no-such.toml"),
    "client leave": ("--site", "no-such.toml"),
    "adapters list": ("127.0.0.1:1", "--insecure"),
    "adapters download": ("127.0.0.1:1", "--insecure", "--out", "out"),
    "adapters rollback": ("--out", "no-such-folder"),
    "adapters watch": ("127.0.0.1:1", "--insecure", "--out", "out"),
    "dashboard": ("no-such-folder",),
    "data preview": ("no-such.toml",),
}


@pytest.mark.parametrize("command", sorted(KINDS.keys() - {"methods"}))
def test_what_fails_is_an_object_with_code_message_and_hint(
    command: str, asked: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    error = asked(command, *FAILS[command], code=1)
    assert error["code"] in ("config", "data", "model", "adapter", "store", "run")
    assert error["message"].endswith(error["hint"])
    assert error["message"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", sorted(KINDS))
def test_what_is_typed_wrong_is_an_object_too(command: str, asked: Callable[..., Any]) -> None:
    error = asked(command, "--no-such-option", code=2)
    assert error == {"code": "usage", "message": "No such option '--no-such-option'.", "hint": ""}


def test_runs_and_what_they_leave(
    asked: Callable[..., Any], run: SimulationResult, run_file: Path, tmp_path: Path
) -> None:
    outcome = asked("simulate", run_file, "--out", tmp_path / "out", "--workers", "1")
    assert (outcome["rounds"], outcome["metric"], outcome["refused"]) == (1, "accuracy", 0)
    assert Path(outcome["adapter"]).is_dir()
    assert Path(outcome["report"]).is_file()
    assert outcome["groups"].keys() == {"chalk", "pencil", "print"}
    found = asked("compare", run.folder, "--out", tmp_path / "page")
    assert Path(found["report"]).is_file()
    written = asked("export", run.folder, "--out", tmp_path / "exported")
    assert (written["is_merged"], written["largest_difference"]) == (False, None)
    merged = asked("export", run.folder, "--out", tmp_path / "merged", "--merge")
    assert merged["largest_difference"] is not None
    averaged = asked("aggregate", run.folder / "adapter", tmp_path / "out" / "adapter", "--out", tmp_path / "average")
    assert averaged["report"]["error_before"] is not None


def test_what_is_looked_at(asked: Callable[..., Any], run_file: Path) -> None:
    assert {method["name"] for method in asked("methods")["methods"]} >= {"lora_fair", "fedit"}
    assert asked("plan", run_file)["num_clients"] == 3
    preview = asked("data preview", run_file, "--examples", "1")
    assert len(preview["examples"]) == 1
    assert all(finding["status"] != "problem" for finding in asked("doctor", "--listen", "127.0.0.1:0"))


def test_a_servers_folder(asked: Callable[..., Any], fedlora: Fedlora, run_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "server"
    Authority.open(out / "identity", datetime.now(UTC))
    AuditLog(out).append({"event": "started"})
    invited = asked("sites invite", "north", "--out", out, "--run", "digits")
    assert invited["token"].startswith("fl1-")
    assert invited["join"].startswith("fedlora client join ")
    assert [site["status"] for site in asked("sites list", "--out", out)] == ["invited"]
    assert asked("sites revoke", "north", "--out", out) == {"done": "revoked", "name": "north"}
    lines = fedlora("server", "audit", "--out", out, "--json").out.splitlines()
    for line in lines:
        jsonschema.validate(json.loads(line), schema_of("server audit"))
    assert [json.loads(line)["event"] for line in lines] == ["begun", "started", "invited", "revoked"]
    RunStore.opened(tmp_path / "store")
    at = ("--store", tmp_path / "store")
    submitted = asked("runs submit", run_file, *at)
    assert (submitted["num_before"], submitted["is_served"]) == (0, False)
    name = submitted["name"]
    assert [each["state"] for each in asked("runs list", *at)["runs"]] == ["waiting"]
    assert asked("runs show", name, *at)["status"] is None
    assert asked("runs stop", name, *at)["state"] == "stopped"
    assert asked("runs stop", name, *at, code=1)["message"] == f"{name} is stopped already"


def test_an_error_is_one_object_whatever_the_log_is_written_in(asked: Callable[..., Any], tmp_path: Path) -> None:
    for form in ("text", "json"):
        error = asked("server start", tmp_path / "no.toml", "--out", tmp_path / "out", "--log-format", form, code=1)
        assert error["code"] == "config"
    RunStore.opened(tmp_path / "store")
    assert asked("server status", "--out", tmp_path / "store") == {"is_served": False, "server": {}, "runs": []}


def test_a_command_that_is_interrupted_says_so(
    asked: Callable[..., Any], run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    # What Ctrl-C raises wherever the command is.
    monkeypatch.setattr("fedlora.cli.simulate.simulate", interrupted)
    assert asked("simulate", run_file, "--out", tmp_path / "out", code=130)["code"] == "interrupted"
