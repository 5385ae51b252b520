"""Folders of one meaning in several spellings are averaged; folders of several meanings are not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


def change(folder: Path, **changes: object) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "spelling",
    [
        {"target_modules": r"blocks\.[01]\.(query|value)"},
        {"target_modules": ["blocks.0.query", "blocks.1.query", "value"], "exclude_modules": ["embed"]},
        {"revision": "main"},
        {"task_type": "SEQ_CLS"},
        {"init_lora_weights": "gaussian", "lora_dropout": 0.3, "inference_mode": False, "peft_version": "0.9.0"},
        {"modules_to_save": []},
    ],
    ids=str,
)
@pytest.mark.parametrize("place", [0, 1])
def test_what_is_only_spelled_otherwise_is_averaged_all_the_same(
    spelling: dict[str, Any], place: int, tiny: Any, fedlora: Any
) -> None:
    folders = tiny.save_clients({}, {})
    assert fedlora("aggregate", "--out", tiny.folder / "plain", *folders).code == 0
    change(folders[place], **spelling)
    done = fedlora("aggregate", "--out", tiny.folder / "out", *folders)
    assert (done.code, done.err) == (0, "")
    plain, found = (load_file(tiny.folder / name / TENSORS) for name in ("plain", "out"))
    assert plain.keys() == found.keys()
    assert all(torch.equal(plain[key], found[key]) for key in plain)
    config = json.loads((tiny.folder / "out" / CONFIG).read_text())
    assert config["task_type"] == spelling.get("task_type")
    tiny.load(tiny.folder / "out")


def test_one_base_model_of_two_names_is_averaged_where_its_name_is_given(tiny: Any, fedlora: Any) -> None:
    folders = tiny.save_clients({}, {})
    change(folders[0], base_model_name_or_path="org/tiny", revision="1a2b")
    change(folders[1], base_model_name_or_path="/models/tiny/")
    done = fedlora("aggregate", "--out", tiny.folder / "out", *folders)
    assert done.code == 1
    assert "base_model_name_or_path is '/models/tiny'; expected 'org/tiny' as in" in done.err
    assert done.err.endswith("if they do, say which one with --base-model NAME\n")
    done = fedlora("aggregate", "--base-model", "org/tiny", "--out", tiny.folder / "out", *folders)
    assert (done.code, done.err) == (0, "")
    assert "base    org/tiny, as --base-model says of all the adapters" in done.out
    config = json.loads((tiny.folder / "out" / CONFIG).read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/tiny", None)


def test_a_given_base_model_does_not_hide_tensors_of_another(tiny: Any, fedlora: Any) -> None:
    folders = tiny.save_clients({}, {"target_modules": ["query"]})
    done = fedlora("aggregate", "--base-model", "org/tiny", "--out", tiny.folder / "out", *folders)
    assert (done.code, len(done.err.splitlines())) == (1, 1)
    assert "all must have the same tensors" in done.err


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'; expected True as in"),
        ({"init_lora_weights": "olora"}, "init_lora_weights is 'olora'; expected True as in"),
        ({"alora_invocation_tokens": [3]}, "alora_invocation_tokens is [3]; expected None as in"),
        ({"peft_type": "VERA"}, "peft_type is 'VERA'; expected 'LORA'"),
        ({"of_a_newer_peft": 2}, "of_a_newer_peft is 2, a setting that this version of fedlora does not know"),
        ({"revision": "1a2b"}, "revision is '1a2b'; expected None as in"),
    ],
    ids=str,
)
def test_folders_of_several_meanings_are_refused_in_one_line(
    other: dict[str, Any], message: str, tiny: Any, fedlora: Any
) -> None:
    folders = tiny.save_clients({}, {})
    change(folders[1], **other)
    done = fedlora("aggregate", "--method", "fedit", "--out", tiny.folder / "out", *folders)
    assert (done.code, done.out, len(done.err.splitlines())) == (1, "", 1)
    assert done.err.startswith(f"error: {folders[1] / CONFIG}: {message}")
    assert not (tiny.folder / "out").exists()


def test_a_folder_around_the_adapter_is_answered_with_the_folder_to_give(
    tiny: Any, fedlora: Callable[..., Any]
) -> None:
    folders = tiny.save_clients({}, {})
    (tiny.folder / "run").mkdir()
    folders[1].rename(tiny.folder / "run" / "adapter")
    done = fedlora("aggregate", "--out", tiny.folder / "out", folders[0], tiny.folder / "run")
    assert done.code == 1
    assert done.err.endswith(f"give the folder that holds the adapter: {tiny.folder / 'run' / 'adapter'}\n")
