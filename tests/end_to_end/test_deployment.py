"""A deployment as its people see it: real processes, mutual TLS, and what they do to it on the way."""

import json
import re
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from deployment import Deployment, Process, deployed
from ended_runs import adapter_sha256

from fedlora.adapters import load_adapter
from fedlora.client.site.joining import enrol

RunFile = Callable[..., Path]

SITES = ("chalk", "pencil")
SECONDS = 600.0


@pytest.fixture
def run(run_file: RunFile) -> Callable[..., Path]:
    """Return a function that writes the small run of these tests for a deployment, with overrides."""

    def write(*overrides: str) -> Path:
        return run_file("federation.sites=2", 'data.labels=["0","1","2"]', *overrides)

    return write


@pytest.fixture
def sites(run: Callable[..., Path], tmp_path: Path, tiny_digits: Path) -> dict[str, Path]:
    """Return a site file for each site."""
    run()
    return {name: site_file(tmp_path, name, tiny_digits) for name in SITES}


def site_file(folder: Path, name: str, data: Path, *lines: str) -> Path:
    """Write a site file for the run file in `folder`, whose base model is a path here, over a few examples."""
    path = folder / f"{name}.toml"
    model = tomllib.loads((folder / "run.toml").read_text())["model"]["name"]
    text = [
        f'[site]\nname = "{name}"',
        f'[data]\npath = "{data}"\nonly_group = "{name}"',
        f'[limits]\nbase_models = ["{model}"]\nleast_examples = 1',
        *lines,
    ]
    path.write_text("\n".join(text) + "\n")
    return path


def reports(deployment: Deployment) -> list[dict[str, dict[str, object]]]:
    return [json.loads(line) for line in (deployment.out / "rounds.jsonl").read_text().splitlines()]


def finished(deployment: Deployment) -> None:
    assert deployment.server.wait(SECONDS) == 0, deployment.server.text
    for site in deployment.sites.values():
        assert site.wait(30) == 0, site.text


@pytest.mark.parametrize("precision", ["bfloat16", pytest.param("int8", marks=pytest.mark.slow)])
def test_a_run_over_sites_ends_with_what_a_simulation_leaves_and_rounds_what_travels(
    run: Callable[..., Path], sites: dict[str, Path], tmp_path: Path, precision: str
) -> None:
    with deployed(tmp_path, run(f"exchange.precision={precision}", "federation.rounds=3"), sites) as deployment:
        finished(deployment)
    out = deployment.out
    for name in ("run.toml", "manifest.json", "rounds.jsonl", "report.html", "sites.json", "adapter", "published"):
        assert (out / name).exists(), name
    found = reports(deployment)
    assert [sorted(report["clients"]) for report in found] == [[], *[sorted(SITES)] * 3]
    whole = (out / "rounds" / "0003" / "adapter.safetensors").stat().st_size
    assert 0 < found[-1]["bytes_up"] < 2 * whole  # type: ignore[operator]
    # Where rounds are faster than the check, the newest wins; the last one is always there.
    (newest,) = [folder for folder in (out / "published").iterdir() if _round_of(folder) == 3]
    assert (newest / "adapter_model.safetensors").read_bytes() == (
        out / "adapter" / "adapter_model.safetensors"
    ).read_bytes()
    assert all(np.isfinite(layer.B.numpy()).all() for layer in load_adapter(out / "adapter").layers.values())
    assert found[-1]["held_out"]["groups"].keys() == set(SITES)  # type: ignore[attr-defined]


def _round_of(published: Path) -> int:
    return int(json.loads((published / "adapter.json").read_text())["round"])


@pytest.mark.slow
def test_23_sites_come_back_after_a_restart_of_the_server_with_a_new_certificate(
    run: Callable[..., Path], sites: dict[str, Path], tmp_path: Path
) -> None:
    with deployed(tmp_path, run("federation.rounds=40"), sites) as deployment:
        deployment.server.wait_for(r"round +2/40")
        assert deployment.server.stop() == 0
        before = (deployment.out / "identity" / "server.pem").read_bytes()
        (deployment.out / "identity" / "server.pem").unlink()
        num_rounds = len(reports(deployment))
        deployment.server.start()
        deployment.server.wait_for(rf"going on with round {num_rounds}", SECONDS)
        began = time.monotonic()
        deployment.server.wait_for(rf"round +{num_rounds}/40  acc", SECONDS)
        assert time.monotonic() - began < 30
        assert (deployment.out / "identity" / "server.pem").read_bytes() != before
        status = json.loads(deployment.command("server", "status", "--out", str(deployment.out), "--json").stdout)
        assert status["is_running"]
        assert {site["state"] for site in status["sites"].values()} <= {"ready", "at work"}
        stopped = deployment.command("server", "stop", "--out", str(deployment.out))
        assert (stopped.returncode, stopped.stdout) == (0, "stopped\n")
        assert deployment.server.wait(10) == 0
    lines = deployment.command("server", "status", "--out", str(deployment.out)).stdout
    assert re.match(r"tiny: stopped (in|after) round \d+ of 40, ", lines)


def test_a_site_that_pauses_and_resumes_and_leaves(
    run: Callable[..., Path], sites: dict[str, Path], tmp_path: Path
) -> None:
    with deployed(tmp_path, run("federation.rounds=60", "federation.quorum=0.5"), sites) as deployment:
        chalk, site = deployment.sites["chalk"], str(sites["chalk"])
        deployment.server.wait_for(r"round +1/60")
        assert deployment.command("client", "pause", "--site", site).returncode == 0
        chalk.wait_for("takes no part: paused")
        deployment.server.wait_for(r"site chalk: not ready: paused")
        paused_at = len(reports(deployment))
        deployment.server.wait_for(rf"round +{paused_at + 2}/60")
        assert sorted(reports(deployment)[paused_at + 1]["cohort"]) == ["pencil"]
        assert deployment.command("client", "resume", "--site", site).returncode == 0
        resumed_at = len(reports(deployment))
        deadline = time.monotonic() + SECONDS
        # A site looks once a second what is wished of it, and rounds may be much faster.
        while not any("chalk" in report["cohort"] for report in reports(deployment)[resumed_at:]):
            assert time.monotonic() < deadline
            assert deployment.server.popen is not None
            assert deployment.server.popen.poll() is None, "the run is over, and the site has not come back"
            time.sleep(0.1)
        assert deployment.command("client", "leave", "--site", site).returncode == 0
        assert chalk.wait(20) == 0
        assert any("chalk" in report["cohort"] for report in reports(deployment)[resumed_at:])


@pytest.mark.slow
def test_33_a_site_whose_loss_is_nan_is_reported_and_the_run_goes_on(
    run: Callable[..., Path], tmp_path: Path, tiny_digits: Path
) -> None:
    """Its base model is the run's by name, and its own copy has a NaN that its rehearsal finds."""
    with deployed(
        tmp_path, run("federation.sites=1"), {"chalk": site_file(tmp_path, "chalk", tiny_digits)}
    ) as deployment:
        broken = site_file(tmp_path, "pencil", tiny_digits, f'[model]\npath = "{with_nan(tmp_path, deployment)}"')
        pencil = deployment.enrol("pencil", broken)
        pencil.wait_for(r"the rehearsal failed \(model\)")
        deployment.server.wait_for("site pencil: not ready: model")
        pencil.kill()
        assert deployment.server.wait(SECONDS) == 0
    assert [sorted(report["clients"]) for report in reports(deployment)[1:]] == [["chalk"]] * 2


def with_nan(folder: Path, deployment: Deployment) -> Path:
    import shutil

    from safetensors.numpy import load_file, save_file

    model = re.search(r'name = "(/[^"]*tiny-vit)"', (deployment.folder / "run.toml").read_text())
    assert model
    copy = folder / "broken-model"
    shutil.copytree(model[1], copy)
    tensors = load_file(copy / "model.safetensors")
    name = sorted(name for name in tensors if name.endswith("q_proj.weight") or name.endswith("query.weight"))[0]
    tensors[name] = np.full_like(tensors[name], np.nan)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def test_another_base_model_another_vocabulary_and_missing_data_each_keep_a_site_out_with_a_code(
    run: Callable[..., Path], tmp_path: Path, tiny_digits: Path
) -> None:
    with Deployment(tmp_path, run('data.labels=["0","1"]')) as deployment:
        deployment.server.start()
        deployment.server.wait_for("listening on")
        chalk = deployment.enrol("chalk", site_file(tmp_path, "chalk", tiny_digits))
        enrol(deployment.address, deployment.invite("pencil"), name="pencil", state=tmp_path / "pencil.site")
        lost = deployment.add_site("pencil", site_file(tmp_path, "pencil", tmp_path / "nowhere.npz"))
        lost.start()
        chalk.wait_for(r"the rehearsal failed \(data\): .*'2'")
        lost.wait_for(r"the rehearsal failed \(data\): .*nowhere.npz: no such file")
        deployment.server.wait_for("site chalk: not ready: data")
        deployment.server.wait_for("site pencil: not ready: data")
        assert "nowhere" not in deployment.server.text, "a path has left the site"


def test_34_a_revoked_site_ends_with_a_clear_line_and_the_run_goes_on(
    run: Callable[..., Path], sites: dict[str, Path], tmp_path: Path
) -> None:
    with deployed(tmp_path, run("federation.rounds=60"), sites) as deployment:
        deployment.server.wait_for(r"round +1/60")
        revoked = deployment.command("sites", "revoke", "chalk", "--out", str(deployment.out))
        assert (revoked.returncode, revoked.stdout) == (0, "chalk is revoked\n")
        assert deployment.sites["chalk"].wait(40) == 1
        assert "error: this site was revoked; ask for a new invitation" in deployment.sites["chalk"].text
        at = len(reports(deployment))
        deployment.server.wait_for(rf"round +{at + 1}/60", SECONDS)
        listed = deployment.command("sites", "list", "--out", str(deployment.out)).stdout
        assert re.search(r"chalk\s+revoked", listed)


@pytest.mark.slow
def test_35_a_second_client_as_the_same_site_is_told_to_end_the_first(
    run: Callable[..., Path], sites: dict[str, Path], tmp_path: Path
) -> None:
    with deployed(tmp_path, run(), {"chalk": sites["chalk"]}) as deployment:
        deployment.sites["chalk"].wait_for("ready")
        twin: Process = deployment.add_site("twin", sites["chalk"])
        twin.start()
        assert twin.wait(30) == 1
        assert "this site's client is running already; end it first" in twin.text


@pytest.mark.slow
def test_the_insecure_form_works_on_loopback(run: Callable[..., Path], sites: dict[str, Path], tmp_path: Path) -> None:
    with deployed(tmp_path, run("federation.rounds=1"), sites, is_insecure=True) as deployment:
        finished(deployment)
    assert not (deployment.out / "identity").exists()
    assert len(adapter_sha256(deployment.out)) == 64


@pytest.mark.slow
def test_numbers_that_a_site_keeps_to_itself_do_not_arrive(
    run: Callable[..., Path], tmp_path: Path, tiny_digits: Path
) -> None:
    run_file = run("federation.rounds=1")
    quiet = site_file(tmp_path, "chalk", tiny_digits, "metrics = []")
    loud = site_file(tmp_path, "pencil", tiny_digits)
    with deployed(tmp_path, run_file, {"chalk": quiet, "pencil": loud}) as deployment:
        finished(deployment)
    clients = reports(deployment)[-1]["clients"]
    assert clients["chalk"] | {"before": None, "after": None, "loss": "NaN"} == clients["chalk"]  # type: ignore[operator]
    assert isinstance(clients["pencil"]["loss"], float)  # type: ignore[index]
    assert "round 1: withheld: loss, scores (by limits.metrics" in deployment.sites["chalk"].text
