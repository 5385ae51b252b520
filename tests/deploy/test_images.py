"""Dockerfile and compose file: by the tools that know them, and their commands, run outside of a container."""

import json
import os
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from deployment import Process, free_port
from images import DEPLOY, all_mapped, environment_of, laid_out, services_of, stages_of
from programs import judged, program

from fedlora.common.run_file import load_run, to_toml

ROOT = DEPLOY.parent
STAGES = stages_of(DEPLOY / "Dockerfile")
SERVICES = services_of(DEPLOY / "compose.yaml", STAGES)
SITES = ("mnist", "sans")
SECONDS = 120.0
# The same model over smaller pictures, and few of them to be judged by.
SHORT = ["federation.rounds=1", "train.steps=2", "task.image_size=28", "data.test=0.03"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_hadolint_finds_nothing_in_the_dockerfile(tmp_path: Path) -> None:
    done = judged(program("hadolint"), DEPLOY / "Dockerfile")
    assert (done.returncode, done.stdout) == (0, "")
    worse = tmp_path / "Dockerfile"
    worse.write_text((DEPLOY / "Dockerfile").read_text().replace("USER 10001:10001", "USER root"))
    assert "DL3002" in judged(program("hadolint"), worse).stdout, "it would have found that"


@pytest.mark.parametrize("overlays", [[], ["compose.gpu.yaml"]], ids=lambda names: "+".join(names) or "alone")
def test_docker_compose_reads_the_compose_files(overlays: list[str]) -> None:
    files = [part for name in ["compose.yaml", *overlays] for part in ("--file", str(DEPLOY / name))]
    done = judged(program("docker-compose"), *files, "config", "--format", "json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)["services"]
    assert set(found) == {"server", "invite", "mnist", "sans"}
    for name, service in found.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        asked = service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
        assert [device["capabilities"] for device in asked] == ([["gpu"]] if overlays and name in SITES else []), name


@pytest.mark.parametrize("target", ["server", "client"])
def test_an_image_runs_as_nobody_special_with_a_health_check_and_the_versions_of_the_project(target: str) -> None:
    stage = STAGES[target]
    assert stage.last("USER").text == "10001:10001"
    assert stage.last("HEALTHCHECK").words
    assert "/var/lib/fedlora" in stage.last("VOLUME").text.split()
    labels = stage.last("LABEL").text
    assert f'licenses="{PROJECT["license"]}"' in labels
    assert f'description="{PROJECT["description"]}"' in labels
    assert f'version="{PROJECT["version"]}"' in labels


def test_docker_compose_reads_the_overlay_for_monitoring_which_has_every_service_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GRAFANA_PASSWORD", "chosen")
    names = ("compose.yaml", "monitoring/compose.monitoring.yaml")
    files = [part for name in names for part in ("--file", str(DEPLOY / name))]
    done = judged(program("docker-compose"), *files, "config", "--format", "json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)["services"]
    assert set(found) == {"server", "invite", "mnist", "sans", "prometheus", "grafana"}
    measured = {name for name, service in found.items() if "FEDLORA_METRICS" in (service.get("environment") or {})}
    assert measured == {"server", "mnist", "sans"}


@pytest.mark.parametrize("name", ["Dockerfile", "compose.yaml", "compose.gpu.yaml"])
def test_images_are_called_by_the_version_of_the_project(name: str) -> None:
    found = re.findall(r"fedlora-(?:server|client):([\w.]+)", (DEPLOY / name).read_text())
    assert set(found) == {PROJECT["version"]}


def test_every_install_is_held_to_the_constraints_and_torch_comes_first() -> None:
    for target in ("server-packages", "client-packages"):
        _, torch, fedlora = STAGES[target].runs()
        assert torch.endswith(" torch")
        assert "fedlora-*.whl" in fedlora
    installs = [run for stage in STAGES.values() for run in stage.runs() if "pip install" in run]
    assert installs
    assert all("--constraint " in run for run in installs)


def test_the_builder_is_sent_what_the_wheel_is_built_from_and_no_more() -> None:
    kept = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"}
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {path.partition("/")[0] for path in (*wheel["packages"], *wheel["shared-data"], *PROJECT["license-files"])}
    assert kept == needed | {PROJECT["readme"], "pyproject.toml"}


@pytest.fixture
def stopped_at_the_end() -> Iterator[list[Process]]:
    """Yield a list of processes that are killed when the test is over."""
    processes: list[Process] = []
    yield processes
    for process in processes:
        process.kill()


@pytest.mark.slow
def test_a_federation_runs_by_the_words_of_the_compose_file(tmp_path: Path, stopped_at_the_end: list[Process]) -> None:
    port = str(free_port())
    addresses = {"server:8470": f"127.0.0.1:{port}", "8470": port}
    folders = {name: laid_out(service, tmp_path) for name, service in SERVICES.items()}
    environment = {name: image_environment(folders[name]) for name in SERVICES}
    run_file = folders["server"]["/etc/fedlora/run.toml"]
    run_file.write_text(to_toml(load_run(run_file, SHORT)))
    before = files_in(tmp_path / "files")

    def start(name: str, *more: str) -> Process:
        program, *words = all_mapped(SERVICES[name].words, folders[name], addresses)
        assert program == "fedlora"
        process = Process(name, [*words, *more], tmp_path / f"{name}.log", tmp_path, environment[name])
        stopped_at_the_end.append(process)
        process.start()
        return process

    def command(name: str, words: Sequence[str]) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            all_mapped(words, folders[name], addresses),
            env=os.environ | environment[name], capture_output=True, text=True, check=False,
        )  # fmt: skip

    assert command("server", SERVICES["server"].check).returncode != 0, "it is not healthy yet"
    server = start("server", "--listen", f"127.0.0.1:{port}")
    wait_until(lambda: command("server", SERVICES["server"].check).returncode == 0)
    for num_invited in (2, 0):  # The second time nothing is left to do.
        invited = command("invite", SERVICES["invite"].words)
        assert (invited.returncode, invited.stdout.count("is invited")) == (0, num_invited), invited.stderr
    assert command("mnist", SERVICES["mnist"].check).returncode == 1, "no client runs"
    sites = [start("mnist")]
    sites[0].wait_for("enrolled as")
    assert command("mnist", SERVICES["mnist"].check).stdout.startswith("mnist is at work")
    sites.append(start("sans"))
    assert server.wait(SECONDS) == 0, server.text
    assert [site.wait(SECONDS) for site in sites] == [0, 0]
    assert (folders["server"]["/var/lib/fedlora"] / "run" / "adapter" / "adapter_model.safetensors").exists()
    assert files_in(tmp_path / "files") == before, "what is mounted to be read is not written"


def image_environment(paths: Mapping[str, Path]) -> dict[str, str]:
    """Return what the image sets of the environment, with this Python in place of the image's."""
    found = environment_of(STAGES["server"], paths)
    return found | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def files_in(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.1)
