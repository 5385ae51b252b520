"""Scripts with trainers of their own over gRPC, as the one in deploy/ does it, and in a simulation."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from deployment import Deployment, Process
from ended_runs import adapter_sha256
from test_kill_matrix import exit_code
from warm_start import run_warm

from fedlora.common.config import RunConfig
from fedlora.common.files import sha256_of
from fedlora.common.run_file import to_toml

MakeRun = Callable[..., RunConfig]
SCRIPT = Path(__file__).parents[2] / "deploy" / "runs" / "own_trainer.py"
SECONDS = 600.0


@pytest.fixture
def run(chat_run: MakeRun, tiny_chats: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a run file, beside the conversations that the script reads."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "chat.jsonl").write_text(tiny_chats.read_text())

    def write(**sections: Any) -> Path:
        given = {
            "run": {"name": "chats"},
            "train": {"steps": 6, "optimizer_state": "keep"},
            "federation": {"rounds": 3, "sites": 2, "quorum": 1.0},
            "evaluation": {"client_examples": 4},
            "exchange": {"precision": "float32"},
        }
        path = tmp_path / "run.toml"
        path.write_text(to_toml(chat_run(**{**given, **sections})))
        return path

    return write


def script_site(deployment: Deployment, name: str, model: Path, *, program: Any = (str(SCRIPT),)) -> Process:
    """Return a site's process that runs the script, which is not started yet."""
    site_file = deployment.folder / f"{name}.toml"
    site_file.write_text(f'[site]\nname = "{name}"\n[limits]\nbase_models = ["{model}"]\nleast_examples = 1\n')
    process = Process(name, [deployment.address, str(site_file)], deployment.folder / f"{name}.log", deployment.folder)
    process.program = program
    process.environment = {"FEDLORA_TOKEN": deployment.invite(name), "CUDA_VISIBLE_DEVICES": ""}
    deployment.sites[name] = process
    return process


def reports_in(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def test_scripts_with_trainers_end_in_what_their_simulation_leaves_although_one_is_killed_in_a_round(
    run: Callable[..., Path], tmp_path: Path, tiny_language_model: Path
) -> None:
    deaths: list[str] = []

    def at_phase(process: Process, phase: str) -> None:
        if process.phases.count("train") == 2 and not deaths:
            deaths.append(phase)
            process.kill()
            process.start()

    path = run()
    with Deployment(tmp_path, path) as deployment:
        deployment.server.start()
        deployment.server.wait_for("listening on")
        # It has no conversations.
        stranger = script_site(deployment, "it", tiny_language_model)
        stranger.start()
        for name in ("de", "en"):
            script_site(deployment, name, tiny_language_model)
        deployment.sites["de"].at_phase = at_phase
        deployment.server.wait_for("site it: not ready: data$|site it: not ready: data\n", SECONDS)
        assert "train_dataset has no examples" in stranger.text
        assert "examples" not in " ".join(re.findall(".*site it.*", deployment.server.text))
        stranger.kill()
        for name in ("de", "en"):
            deployment.sites[name].start()
        assert exit_code(deployment.server) == 0, deployment.server.text
        assert deaths == ["train"]
        for name in ("de", "en"):
            assert deployment.sites[name].wait(60) == 0, deployment.sites[name].text
    found = reports_in(deployment.out)
    assert [sorted(report["clients"]) for report in found[1:]] == [["de", "en"]] * 3
    started = [part["before"]["loss"] for part in found[1]["clients"].values()]
    assert found[-1]["validation"]["loss"] < min(started) - 0.3
    last = sha256_of([deployment.out / "rounds" / "0003" / "adapter.safetensors"])
    for name in ("de", "en"):
        assert sha256_of([tmp_path / f"{name}.site" / "adapters" / last]) == last
    assert not list(tmp_path.glob("trainer/checkpoint-*"))

    ended = run_warm([str(SCRIPT), str(path)], cwd=tmp_path, timeout=SECONDS)
    assert ended.returncode == 0, ended.stderr
    assert adapter_sha256(tmp_path / "runs" / "chats") == adapter_sha256(deployment.out)
    assert (tmp_path / "runs" / "chats" / "report.html").is_file()


@pytest.mark.slow
def test_a_script_trains_beside_a_site_with_fedloras_own_training(
    run: Callable[..., Path], tmp_path: Path, tiny_language_model: Path, tiny_chats: Path
) -> None:
    path = run(federation={"rounds": 2, "sites": 2, "quorum": 1.0})
    with Deployment(tmp_path, path, is_insecure=True) as deployment:
        deployment.server.start()
        deployment.server.wait_for("listening on")
        ours = tmp_path / "fr.toml"
        ours.write_text(
            f'[site]\nname = "fr"\n[data]\npath = "{tiny_chats}"\nonly_group = "fr"\ngroup = "language"\n'
            f'[limits]\nbase_models = ["{tiny_language_model}"]\nleast_examples = 1\n'
        )
        deployment.enrol("fr", ours)
        (tmp_path / "insecure.py").write_text(
            f"import functools\n{SCRIPT.read_text()}".replace("site=sys.argv[2]", "site=sys.argv[2], insecure=True")
        )
        own = Process("en", [deployment.address, "en.toml"], tmp_path / "en.log", tmp_path)
        own.program = (str(tmp_path / "insecure.py"),)
        (tmp_path / "en.toml").write_text(
            f'[site]\nname = "en"\n[limits]\nbase_models = ["{tiny_language_model}"]\nleast_examples = 1\n'
        )
        deployment.sites["en"] = own
        own.start()
        assert deployment.server.wait(SECONDS) == 0, deployment.server.text
    found = reports_in(deployment.out)
    assert [sorted(report["clients"]) for report in found[1:]] == [["en", "fr"]] * 2
    assert all(part["after"]["num_tokens"] > 0 for part in found[-1]["clients"].values())
