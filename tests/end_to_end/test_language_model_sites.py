"""A language model over gRPC: sites with conversations of their own, and one whose chat template is another."""

import json
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path

from deployment import Deployment, deployed

from fedlora.common.config import RunConfig
from fedlora.common.run_file import to_toml

MakeRun = Callable[..., RunConfig]
SECONDS = 600.0


def site_file(folder: Path, name: str, data: Path, *lines: str) -> Path:
    path = folder / f"{name}.toml"
    model = tomllib.loads((folder / "run.toml").read_text())["model"]["name"]
    text = [
        f'[site]\nname = "{name}"',
        f'[data]\npath = "{data}"\nonly_group = "{name}"\ngroup = "language"',
        f'[limits]\nbase_models = ["{model}"]\nleast_examples = 1',
        *lines,
    ]
    path.write_text("\n".join(text) + "\n")
    return path


def test_sites_train_a_language_model_and_one_with_another_chat_template_is_told_so(
    chat_run: MakeRun, tiny_chats: Path, tiny_language_model: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run.toml"
    sections: dict[str, dict[str, object]] = {
        "train": {"steps": 12, "packing": True, "optimizer_state": "keep", "learning_rate": 0.02},
        "lora": {"target_modules": "all-linear", "init": "olora"},
        "federation": {"rounds": 3, "sites": 2, "weighting": "tokens"},
        "evaluation": {"generate": 4, "max_new_tokens": 6},
    }
    run.write_text(to_toml(chat_run(**sections)))
    other = Path(shutil.copytree(tiny_language_model, tmp_path / "other"))
    (other / "chat_template.jinja").write_text("{% for message in messages %}{{ message['content'] }}{% endfor %}")

    files = {name: site_file(tmp_path, name, tiny_chats) for name in ("de", "en")}
    deployment: Deployment
    with deployed(tmp_path, run, {"de": files["de"]}) as deployment:
        deployment.sites["de"].wait_for("ready", SECONDS)
        stranger = site_file(tmp_path, "fr", tiny_chats, f'[model]\npath = "{other}"')
        stranded = deployment.enrol("fr", stranger)
        deployment.server.wait_for("no more than half of them agree: de has chat_template", SECONDS)
        deployment.enrol("en", files["en"])
        stranded.wait_for("turned away by the server: other_chat_template: the chat", SECONDS)
        assert deployment.server.wait(SECONDS) == 0, deployment.server.text
    reports = [json.loads(line) for line in (deployment.out / "rounds.jsonl").read_text().splitlines()]
    assert [sorted(report["clients"]) for report in reports] == [[], *[["de", "en"]] * 3]
    first, last = reports[0]["held_out"], reports[-1]["held_out"]
    assert last["overall"]["loss"] < first["overall"]["loss"]
    assert last["overall"]["num_tokens"] > 0
    assert last["generated"].keys() == {"de", "en"}
    assert reports[-1]["validation"]["num_examples"] > 0
    assert all(part["num_tokens"] > 0 for part in reports[-1]["clients"].values())
    assert (deployment.out / "best" / "best.json").is_file()
    assert list((tmp_path / "de.site").rglob("optimizer/*/*/*.safetensors"))
