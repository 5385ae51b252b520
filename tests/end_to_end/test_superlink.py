"""Flower's own runtime as the door: `flwr run` at a SuperLink with two SuperNodes, all of them real processes."""

import json
import math
import os
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import psutil
import pytest
from ended_runs import adapter_sha256
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

import fedlora.client.worker.app as client_app
from fedlora.client import supernode_app
from fedlora.common.errors import ConfigError
from fedlora.common.messages import (
    DescribeRequest,
    EvaluateRequest,
    Failure,
    InitialiseReceipt,
    InitialiseRequest,
    SiteDescription,
    TrainReceipt,
    TrainRequest,
)
from fedlora.common.records import from_peer, from_record, to_record
from fedlora.common.schema import parse
from fedlora.server import superlink_app
from fedlora.simulation import simulate
from fedlora.v1 import messages_pb2

RunFile = Callable[..., Path]
Run = Callable[[str], dict[str, object]]
AskSite = Callable[..., RecordDict]

ROOT = Path(__file__).parents[2]
APP = ROOT / "deploy" / "flower"
BIN = Path(sys.executable).parent
GROUPS = ("chalk", "pencil")
TRAIN = TrainRequest(run="r", round=1, attempt=0, seed=0, num_rounds=1, validation_examples=0)


@pytest.fixture
def two_groups(tiny_digits: Path, tmp_path: Path) -> Path:
    """Return an archive of the pictures that the two sites have between them."""
    path = tmp_path / "two_groups.npz"
    with np.load(tiny_digits) as arrays:
        np.savez(path, **{name: arrays[name] for name in arrays.files if name.startswith(GROUPS)})
    return path


@pytest.fixture
def run(run_file: RunFile, two_groups: Path) -> Path:
    return run_file(f"data.path={two_groups}", 'data.labels=["0", "1", "2"]', "federation.sites=2")


@pytest.fixture
def sites(tiny_digits: Path, tiny_vision_model: Path, tmp_path: Path) -> list[Path]:
    """Return the site files of the two groups."""
    paths = [tmp_path / f"{group}.toml" for group in GROUPS]
    for group, path in zip(GROUPS, paths, strict=True):
        path.write_text(
            f"""
            [site]
            name = "{group}"
            [data]
            path = "{tiny_digits}"
            only_group = "{group}"
            [worker]
            device = "cpu"
            [limits]
            base_models = ["{tiny_vision_model}"]
            least_examples = 1
            """
        )
    return paths


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Return the variables for Flower's processes: off the network, and with a home of their own."""
    return {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",  # They start each other by name.
        "FLWR_HOME": str(tmp_path / "flower"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "NO_PROXY": "127.0.0.1",
    }


@pytest.fixture
def flwr_run(environment: dict[str, str], sites: Sequence[Path], tmp_path: Path) -> Iterator[Run]:
    """Return a function that gives a run config to `flwr run`, and returns the finished run as `flwr list` shows it."""
    port = free_port()
    home = Path(environment["FLWR_HOME"])
    home.mkdir()
    (home / "config.toml").write_text(f'[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n')

    def flwr(*arguments: str) -> dict[str, object]:
        command = [str(BIN / "flwr"), *arguments, "--format", "json"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=600, check=True)
        answer: dict[str, object] = json.loads(done.stdout)
        assert answer["success"], answer
        return answer

    def run_to_its_end(run_config: str) -> dict[str, object]:
        number = flwr("run", str(APP), "here", "--run-config", run_config)["run-id"]
        deadline = time.monotonic() + 900
        while time.monotonic() < deadline:
            shown = flwr("list", "here", "--run-id", str(number))["runs"][0]  # type: ignore[index]
            if shown["status"].startswith("finished"):
                return dict(shown)
            time.sleep(4)  # The command itself takes seconds of a core.
        pytest.fail(f"the run did not end; see {tmp_path}/*.log")

    with started("flower-superlink", "--port", str(port), environment=environment, log=tmp_path / "superlink.log"):
        deadline = time.monotonic() + 60
        while not accepts_connections(port):
            assert time.monotonic() < deadline, (tmp_path / "superlink.log").read_text()
            time.sleep(0.1)
        first, second = (
            started(
                *("flower-supernode", "--superlink", f"127.0.0.1:{port}", "--port", str(free_port())),
                *("--node-config", f'site="{site}"'),
                environment=environment,
                log=site.with_suffix(".log"),
            )
            for site in sites
        )
        with first, second:
            yield run_to_its_end


@contextmanager
def started(*command: str, environment: dict[str, str], log: Path) -> Iterator[None]:
    """Run a command of Flower's; at the end, end it and everything that it started."""
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [str(BIN / command[0]), *command[1:], "--insecure"], env=environment, stdout=output, stderr=output
        )
    try:
        yield
    finally:
        with suppress(psutil.NoSuchProcess):
            below = psutil.Process(process.pid).children(recursive=True)
            for one in (psutil.Process(process.pid), *below):
                with suppress(psutil.NoSuchProcess):
                    one.kill()
            psutil.wait_procs(below, timeout=10)
        process.wait(timeout=10)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def accepts_connections(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@pytest.mark.slow
def test_flwr_run_at_a_superlink_gives_the_adapter_of_the_simulation(
    run: Path, flwr_run: Run, tiny_digits: Path, tmp_path: Path
) -> None:
    out = tmp_path / "over-superlink"
    done = flwr_run(f'run="{run}" out="{out}"')
    assert done["status"] == "finished:completed", done
    reports = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    assert [sorted(report["clients"]) for report in reports] == [[], [*GROUPS], [*GROUPS]]
    assert sorted(reports[-1]["held_out"]["groups"]) == [*GROUPS]
    assert reports[-1]["held_out"]["is_complete"]
    assert "chalk" in (out / "report.html").read_text()
    own_path = str(tiny_digits).encode()
    assert not [file for file in out.rglob("*") if file.is_file() and own_path in file.read_bytes()]
    assert adapter_sha256(out) == adapter_sha256(simulate(run, out=tmp_path / "simulated", num_workers=2).folder)

    missing = flwr_run(f'run="{tmp_path}/none.toml" out="{out}"')
    assert missing["status"] == "finished:failed"
    assert f"{tmp_path}/none.toml: no such file" in str(missing["status-details"])


@pytest.mark.parametrize("given", [{}, {"run": "", "out": "/x"}, {"run": "run.toml", "out": "/x"}])
def test_a_run_config_without_an_absolute_path_is_refused(given: dict[str, str]) -> None:
    context = Context(1, 0, {}, RecordDict(), given)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"run config: run is .* expected an absolute path"):
        superlink_app.app(None, context)  # type: ignore[arg-type]


def test_a_run_of_secure_sums_is_refused(run_file: RunFile, tmp_path: Path) -> None:
    run = run_file('data.labels=["0", "1", "2"]', "privacy.secure_sums=true")
    context = Context(1, 0, {}, RecordDict(), {"run": str(run), "out": str(tmp_path / "out")})
    with pytest.raises(ConfigError, match="which a SuperLink does not show them"):
        superlink_app.app(None, context)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_a_run_without_named_labels_is_refused(run_file: RunFile, tmp_path: Path) -> None:
    context = Context(1, 0, {}, RecordDict(), {"run": str(run_file()), "out": str(tmp_path / "out")})
    with pytest.raises(ConfigError, match=r"data\.labels is empty"):
        superlink_app.app(None, context)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


@pytest.fixture
def ask_site(run: Path, sites: list[Path], monkeypatch: pytest.MonkeyPatch) -> AskSite:
    """Return a function that asks the ClientApp as a SuperNode would, with lines added to its site file."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)

    def ask(request: object, message_type: str, *, added: str = "", run_toml: str | None = None) -> RecordDict:
        if isinstance(request, TrainRequest | EvaluateRequest):
            first = ask(InitialiseRequest(0), "query.initialise")
            request = replace(request, adapter=from_record(first, InitialiseReceipt).adapter)  # type: ignore[arg-type]
        sites[0].write_text(f"{sites[0].read_text()}\n{added}\n")
        message = Message(to_record(request), 1, message_type)
        message.content["run.toml"] = ConfigRecord({"run.toml": run_toml or run.read_text()})
        node_config: dict[str, bool | float | int | str] = {"site": str(sites[0]), "partition-id": 7}
        # Every message meets a new process there.
        monkeypatch.setattr(client_app, "_resident", {})
        return supernode_app.app(message, Context(1, 1, node_config, RecordDict(), {})).content

    return ask


def test_a_site_under_a_supernode_tells_neither_labels_nor_paths(
    ask_site: AskSite, tmp_path: Path, tiny_vision_model: Path
) -> None:
    (tmp_path / "own-copy").symlink_to(tiny_vision_model)
    added = f'[model]\npath = "{tmp_path}/own-copy"'
    content = ask_site(DescribeRequest(), "query.describe", added=added)
    told = parse(cast(bytes, content.config_records["fedlora"]["message"]), "SiteDescription")
    assert {field.name for field, _ in told.ListFields()}.isdisjoint({"labels", "base_model", "notes"})
    # As the server's door to the SuperLink takes it in.
    known = messages_pb2.SiteDescription(labels=["0", "1", "2"], base_model=str(tiny_vision_model))
    described = from_record(from_peer(content, known=known), SiteDescription, with_local=True)
    assert described.client == "chalk"
    assert described.base_model == str(tiny_vision_model)
    assert described.labels == ("0", "1", "2")
    assert described.has_own_held_out


@pytest.mark.parametrize(
    ("request_", "message_type", "added", "code"),
    [
        (TRAIN, "train", 'quiet_hours = "00:00-23:59:59.999999"', "quiet_hours"),
        (TRAIN, "train", "max_rank = 1", "over_a_limit"),
        (EvaluateRequest("r", 1, None, 0, 1, False), "evaluate", "metrics = []", "withheld"),
        (TRAIN, "train", "[nonsense]", "config"),
    ],
)
def test_a_site_under_a_supernode_keeps_its_own_rules_and_answers_a_code_alone(
    ask_site: AskSite, request_: object, message_type: str, added: str, code: str
) -> None:
    assert from_record(ask_site(request_, message_type, added=added), Failure) == Failure(code)


def test_a_site_under_a_supernode_withholds_the_numbers_that_its_file_does_not_allow(ask_site: AskSite) -> None:
    request = replace(TRAIN, validation_examples=4)
    receipt = from_record(ask_site(request, "train", added="metrics = []"), TrainReceipt)
    assert receipt.status == "ok"
    assert receipt.num_steps == 3
    assert math.isnan(receipt.loss)
    assert (receipt.before, receipt.after, receipt.withheld) == (None, None, ("loss", "scores"))


def test_a_message_without_a_readable_run_file_is_answered_with_a_code(ask_site: AskSite) -> None:
    assert from_record(ask_site(TRAIN, "train", run_toml="[run"), Failure) == Failure("config")


def test_the_bundle_is_of_this_version_and_holds_no_code() -> None:
    project, bundle = (tomllib.loads((folder / "pyproject.toml").read_text()) for folder in (ROOT, APP))
    assert bundle["project"]["version"] == project["project"]["version"]
    assert set(bundle["project"]["dependencies"]) <= set(project["project"]["dependencies"])
    assert not list(APP.rglob("*.py"))
