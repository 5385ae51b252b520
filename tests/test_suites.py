"""The suites under deploy/runs/compare/: their quick forms, and the script that makes data of packages for them."""

import importlib.util
import io
import os
import re
import shlex
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoConfig, AutoModel, LlamaConfig, PretrainedConfig

from fedlora.adapters.targets import is_named
from fedlora.common.errors import ModelError
from fedlora.common.resources import resolve_path
from fedlora.common.run_file import load_run

SUITES = Path(__file__).parents[1] / "deploy" / "runs" / "compare"
SCRIPT = SUITES / "make_data.py"
WHEEL = {
    "vaderSentiment-0.5.dist-info/METADATA": "Metadata-Version: 2.1\nName: vaderSentiment\nVersion: 0.5\n",
    "vaderSentiment-0.5.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "vaderSentiment-0.5.dist-info/RECORD": "",
}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_data", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def made(what: str, *, index: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """Return what the script said, with a folder in place of the package index."""
    environment = {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index)}
    command = [sys.executable, str(SCRIPT), what, "--out", str(out)]
    return subprocess.run(command, env=environment, check=False, capture_output=True, text=True)


def quick_form(suite: Path) -> list[str]:
    """Return the overrides that a run file's own comment gives for its quick form."""
    comment = "\n".join(re.findall(r"^# ?(.*)$", suite.read_text(), flags=re.MULTILINE)).partition("Quick form")[2]
    words = shlex.split(comment.partition(":")[2])
    assert words[::2] == ["--set"] * (len(words) // 2)
    return words[1::2]


@pytest.mark.parametrize(
    "name", ["quick", "digits-dirichlet", "emoji-vendors", "emoji-dirichlet", "rated-texts", "chat-languages"]
)
def test_a_quick_form_trains_the_last_two_blocks(name: str) -> None:
    suite = SUITES / f"{name}.toml"
    config = load_run(suite, [] if name == "quick" else quick_form(suite))
    layout = config_of(config.model.name)
    with torch.device("meta"):
        model = AutoModel.from_config(layout)
    kept = [
        path
        for path, _ in model.named_modules()
        if path.endswith((".query", ".value", ".q_proj", ".v_proj")) and not is_named(path, config.lora.exclude_modules)
    ]
    last = layout.num_hidden_layers - 1
    assert [re.findall(r"\d+", path) for path in kept] == [[str(last - 1)]] * 2 + [[str(last)]] * 2


def config_of(model: str) -> PretrainedConfig:
    """Return the layout of a suite's model; of the one that a script has to make, SmolLM2-135M's number of blocks."""
    if model.startswith("package:"):
        return AutoConfig.from_pretrained(resolve_path(model, error=ModelError))
    return LlamaConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=30, num_attention_heads=1, num_key_value_heads=1
    )


def test_the_quick_run_is_digits_by_domain_in_its_quick_form_and_shorter() -> None:
    expected = ["run.name=quick", "federation.rounds=6", *quick_form(SUITES / "digits-dirichlet.toml")]
    assert load_run(SUITES / "quick.toml") == load_run(SUITES / "digits-domains.toml", expected)


def test_rated_texts_are_the_clearly_rated_ones_by_document(script: ModuleType) -> None:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for prefix in script.DOMAINS.values():
            lines = b'3_1\t1.5\tGood, "I say".\r\n3_2\t-0.5\tSo so.\r\n4\t-0.55\tBad. \xc3\xa9\r\n'
            member = tarfile.TarInfo(f"hutto_ICWSM_2014/{prefix}_GroundTruth.txt")
            member.size = len(lines)
            archive.addfile(member, io.BytesIO(lines))
    content.seek(0)
    with tarfile.open(fileobj=content) as archive:
        rows = script.rated_texts(archive)
    assert [row[1] for row in rows[::2]] == ["tweets", "film", "amazon", "news"]
    assert rows[2:4] == [
        ("positive", "film", "film 3", 'Good, "I say".'),
        ("negative", "film", "film 4", "Bad. é"),
    ]


def test_emoji_are_those_of_both_sets_without_flags_letters_and_skin_tones(script: ModuleType) -> None:
    names = ["snail", "letter-a", "waving-hand", "waving-hand-dark-skin-tone", "pickle", "chequered-flag"]
    categories = {"Animals & Nature": names[:1], "People & Body": names[1:5], "Flags": names[5:]}
    both = {"icons": dict.fromkeys(name for name in names if name != "pickle")}
    groups = script.emoji_groups({"categories": categories}, both)
    assert groups == {"snail": "animals-nature", "waving-hand": "people-body"}


def test_conversations_are_questions_with_their_first_answers(script: ModuleType) -> None:
    content = """
categories: [x]
conversations:
- ['What is 2?', A number., Another answer.]
- [Alone.]
- ['How many?', 7]
- [' ', Hm.]
- - Who?
  - 'Me: I.'
"""
    found = [tuple(turn["content"] for turn in messages) for messages in script.conversations(content)]
    assert found == [("What is 2?", "A number."), ("Who?", "Me: I.")]


def test_a_package_that_cannot_be_had_or_is_another_is_said_in_a_line_and_nothing_is_written(tmp_path: Path) -> None:
    index, out = tmp_path / "index", tmp_path / "out"
    index.mkdir()
    absent = made("rated_texts", index=index, out=out)
    with zipfile.ZipFile(index / "vaderSentiment-0.5-py3-none-any.whl", "w") as wheel:
        for name, text in WHEEL.items():
            wheel.writestr(name, text)
    other = made("rated_texts", index=index, out=out)
    for result, words in (absent, "No matching distribution found for vaderSentiment==0.5"), (other, "expected 5d97c3"):
        assert result.returncode == 1
        assert result.stderr.startswith("error: ")
        assert words in result.stderr
        assert result.stderr.count("\n") == 1
    assert not out.exists()


def test_what_is_there_is_replaced_whole_or_not_at_all(script: ModuleType, tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        with script.whole(path) as place:
            place.mkdir()
            (place / "first").touch()
            raise OSError("disk full")

    file, folder = tmp_path / "file", tmp_path / "folder"
    for path, content in (file, "x"), (folder, None):
        with script.whole(path) as place:
            place.mkdir() if content is None else place.write_text(content)
        with pytest.raises(OSError, match="disk full"):
            fail(path)
    with script.whole(folder) as place:
        place.mkdir()
        (place / "second").touch()
    assert {path.name for path in tmp_path.rglob("*")} == {"file", "folder", "second"}
    assert file.read_text() == "x"
