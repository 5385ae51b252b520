"""`fedlora data preview`: examples as a model will read them, by a real tokenizer, and who holds how many."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from fedlora.cli.data_view import printable
from fedlora.training.data_preview import Piece, pieces_of
from fedlora.training.tasks.encoding import Encoded

Command = Callable[..., Any]

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer with a chat template, as its model's folder holds it; there are no weights."""
    bytes_of = Tokenizer(models.BPE())
    bytes_of.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_of.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bytes_of.train_from_iterator([], trainers.BpeTrainer(initial_alphabet=alphabet, special_tokens=SPECIAL))
    made = PreTrainedTokenizerFast(tokenizer_object=bytes_of, eos_token="<|end|>")
    made.chat_template = TEMPLATE
    folder = tmp_path_factory.mktemp("models") / "tiny-chat"
    made.save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    made.name_or_path = str(folder)
    return made


@pytest.fixture
def run_file(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run.toml"
    path.write_text(
        f"""
        [model]
        name = "{tokenizer.name_or_path}"
        [task]
        kind = "causal_lm"
        max_length = 64
        [data]
        path = "chats.jsonl"
        group = "ward"
        """
    )
    return path


def write(name: str, rows: list[dict[str, object]]) -> None:
    Path(name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def chats(*answers: str) -> list[dict[str, object]]:
    return [
        {
            "messages": [{"role": "user", "content": f"Q{number}?"}, {"role": "assistant", "content": answer}],
            "ward": "north" if number % 2 else "south",
        }
        for number, answer in enumerate(answers)
    ]


def test_what_is_learned_stands_between_brackets(fedlora: Command, run_file: Path) -> None:
    write("chats.jsonl", chats(*["Süß 🌊."] * 20))

    done = fedlora("data", "preview", run_file, "--examples", "2")

    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == "example 1: north; chat; 20 tokens; 12 of them learned"
    assert lines[1].startswith("<|user|>Q")
    assert lines[1].endswith("?<|end|>")
    assert lines[2] == "<|assistant|>[[Süß 🌊.<|end|>]]"
    assert lines[4].startswith("example 2: south; chat; ")
    assert "what is learned is between [[ and ]]; the rest is only read" in lines
    assert "tokens in 14 examples: 20 at least, 20 in the middle, 21 at most" in lines
    assert "none of them is longer than task.max_length = 64" in lines
    assert ["north", "7", "1"] in [line.split() for line in lines]
    assert lines[-1] == "4 examples held out for the test"


def test_special_tokens_that_the_data_write_out_are_counted(fedlora: Command, run_file: Path) -> None:
    write("chats.jsonl", chats(*["x<|end|>y"] * 20))
    done = fedlora("data", "preview", run_file, "--examples", "1")
    assert (
        "special tokens written out in 14 of 14 examples are taken as text; of data rendered before, set "
        'task.special_tokens = "control"' in done.out
    )
    assert "[[x<|end|>y<|end|>]]" in done.out
    done = fedlora("data", "preview", run_file, "--set", "task.special_tokens=control")
    assert 'are taken as control tokens (task.special_tokens = "control")' in done.out


def test_a_template_that_ends_no_answer_is_said(fedlora: Command, run_file: Path) -> None:
    write("chats.jsonl", chats(*["x"] * 20))
    template = "{% for message in messages %}{{ message.role }}: {{ message.content }}\\n{% endfor %}"
    done = fedlora("data", "preview", run_file, "--set", f'task.chat_template="{template}"')
    assert (done.code, done.err) == (0, "")
    assert "the end token <|end|> is put behind the last answer of 14 of 14 examples" in done.out
    assert "x<|end|>]]" in done.out


def test_a_system_turn_is_merged_where_the_run_says_so(fedlora: Command, run_file: Path) -> None:
    row = {"messages": [{"role": role, "content": role} for role in ("system", "user", "assistant")], "ward": "a"}
    write("chats.jsonl", [row] * 10)
    done = fedlora("data", "preview", run_file, "--set", "task.system=merge")
    assert (done.code, done.err) == (0, "")
    assert "<|user|>system\n\nuser<|end|>" in done.out


@pytest.mark.parametrize("fate", ["dropped", "cut"])
def test_examples_that_are_too_long_are_counted_and_marked(fedlora: Command, run_file: Path, fate: str) -> None:
    write("chats.jsonl", chats(*["a" * 80, "b"] * 10))

    too_long = {"dropped": "drop", "cut": "cut"}[fate]
    whole = ("--set", "data.test=0", "--set", "data.validation=0")
    done = fedlora("data", "preview", run_file, "--set", f"task.too_long={too_long}", "--client", "south", *whole)

    lines = done.out.splitlines()
    place = lines.index("tokens in 10 examples of south: 89 at least, 90 in the middle, 90 at most")
    assert lines[place + 1] == f"10 of 10 examples will be {fate} (task.max_length = 64)"
    assert f"; too long: {fate}\n" in done.out
    # What is left of an example that is cut, and nothing but that, is shown.
    assert ("a" * 80 in done.out) == (fate == "dropped")
    assert "example 1: north" not in done.out


def test_what_of_the_rows_is_not_read_is_named_and_what_the_template_hides_is_refused(
    fedlora: Command, run_file: Path
) -> None:
    rows = chats(*["a"] * 10)
    write("chats.jsonl", [{**row, "mood": "dry"} for row in rows])
    assert "chats.jsonl: the column 'mood' is left aside, in 10 rows" in fedlora("data", "preview", run_file).out
    assert "left aside" not in fedlora("data", "preview", run_file, "--set", 'data.ignore=["mood"]').out
    write("chats.jsonl", [{**row, "tools": [{"name": "look"}]} for row in rows])
    refused = fedlora("data", "preview", run_file)
    assert "shows nothing of the tools" in refused.err


def test_a_plain_text_is_learned_whole_and_a_long_one_is_shown_in_part(fedlora: Command, run_file: Path) -> None:
    write("chats.jsonl", [{"text": "x" * 5000 + "\x1b[31m!", "ward": "a"} for _ in range(8)])
    done = fedlora("data", "preview", run_file, "--set", "task.max_length=9000", "--examples", "1")
    assert "[[xxx" in done.out
    assert "xxx ... 4,016 more characters ... xxx" in done.out
    assert "\\x1b[31m!<|end|>]]" in done.out
    assert "\x1b" not in done.out


def test_texts_to_classify_are_shown_with_their_labels_and_lengths(
    fedlora: Command, run_file: Path, tiny_text_model: Path
) -> None:
    with open("notes.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [
                ["text", "label", "ward"],
                *(["good film " * (1 + row % 9), "xy"[row % 2], "ab"[row % 2]] for row in range(40)),
            ]
        )
    run_file.write_text(
        f"""
        [model]
        name = "{tiny_text_model}"
        [task]
        kind = "sequence_classification"
        max_length = 10
        [data]
        path = "notes.csv"
        group = "ward"
        """
    )

    done = fedlora("data", "preview", run_file, "--examples", "12")

    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("example 1: a; label x; ")
    assert " tokens; too long: cut\ngood film" in done.out
    assert "tokens in 28 examples: 4 at least, " in done.out
    assert " of 28 examples will be cut (task.max_length = 10)" in done.out
    assert "what is learned" not in done.out
    assert ["a", "14", "2", "x:", "14,", "y:", "0"] in [line.split() for line in done.out.splitlines()]


def test_pictures_are_shown_by_size_and_label_without_any_model(
    fedlora: Command, run_file: Path, tiny_digits: Path
) -> None:
    run_file.write_text(f'[model]\nname = "nowhere/at-all"\n[task]\nimage_size = 16\n[data]\npath = "{tiny_digits}"\n')
    done = fedlora("data", "preview", run_file, "--client", "chalk")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("example 1: chalk; label ")
    assert "; 16 x 16 pixels; grey\n" in done.out
    assert "tokens" not in done.out
    assert "pencil" in done.out


def test_many_labels_are_shown_by_the_most_frequent(fedlora: Command, run_file: Path, tmp_path: Path) -> None:
    labels = np.repeat(np.arange(20), np.arange(1, 21))
    np.savez(tmp_path / "a.npz", d_images=np.zeros((len(labels), 8, 8), np.uint8), d_labels=labels)
    run_file.write_text('[task]\nimage_size = 8\n[data]\npath = "a.npz"\nvalidation = 0.0\ntest = 0.0\n')
    done = fedlora("data", "preview", run_file, "--examples", "0")
    assert "19: 20, 18: 19, 17: 18," in done.out
    assert "and 8 more" in " ".join(done.out.split())


def test_rows_of_a_task_of_ones_own_are_shown_by_column(fedlora: Command, run_file: Path) -> None:
    write("rows.jsonl", [{"age": 40 + row, "ward": "a"} for row in range(10)])
    run_file.write_text('[task]\nkind = "own"\n[data]\npath = "rows.jsonl"\ngroup = "ward"\n')
    done = fedlora("data", "preview", run_file, "--examples", "1")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("example 1: a\nage = 4")
    assert "\nward = 'a'\n" in done.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--client", "west"), "--client: no client is named 'west'; the run has 'north', 'south'"),
        (("--set", "model.name=/nowhere/model"), "model.name: no folder /nowhere/model (looked in "),
        (("--set", "data.path=other.jsonl"), "other.jsonl: no such file or folder (looked in "),
        (("--set", "task.max_lenght=8"), "run.toml: "),
        (
            ("--set", "task.chat_template=chat.jinja"),
            "'chat.jinja' has no Jinja in it (neither {{ nor {%); expected the template itself: if this is the path",
        ),
        (("--set", "task.system=drop"), "task.system"),
        (("--set", "task.special_tokens=real"), "task.special_tokens"),
    ],
)
def test_what_cannot_be_previewed_is_answered_in_one_line(
    fedlora: Command, run_file: Path, options: tuple[str, str], message: str
) -> None:
    write("chats.jsonl", chats(*["A"] * 8))
    done = fedlora("data", "preview", run_file, *options)
    assert (done.code, done.out) == (1, "")
    (line,) = done.err.splitlines()
    assert message in line


def test_a_folder_without_a_tokenizer_is_refused(fedlora: Command, run_file: Path, tmp_path: Path) -> None:
    write("chats.jsonl", chats(*["A"] * 8))
    (tmp_path / "empty").mkdir()
    done = fedlora("data", "preview", run_file, "--set", "model.name=empty")
    assert done.code == 1
    assert "error: model.name: cannot load the tokenizer of empty: " in done.err
    (tmp_path / "empty" / "config.json").write_text('{"model_type": "bert"}')
    done = fedlora("data", "preview", run_file, "--set", "model.name=empty")
    assert done.err == "error: model.name: empty holds no vocabulary; save the model's tokenizer with it\n"


def test_a_character_of_several_tokens_stays_whole_in_its_piece(tokenizer: PreTrainedTokenizerFast) -> None:
    before, wave = tokenizer.encode("a "), tokenizer.encode("🌊")
    assert len(wave) > 1
    encoded = Encoded(before + wave, [False] * len(before) + [True] * len(wave))
    assert pieces_of(encoded, tokenizer) == (Piece("a ", is_learned=False), Piece("🌊", is_learned=True))


def test_control_characters_are_shown_as_what_they_are() -> None:
    assert printable("a\tb\n\x1b[2J\x07é") == "a\tb\n\\x1b[2J\\x07é"


def test_pictures_deeper_than_8_bits_are_shown_with_their_range(fedlora: Command, tmp_path: Path) -> None:
    for label, top in (("dim", 1000), ("bright", 4095)):
        (tmp_path / "pictures" / "hall" / label).mkdir(parents=True)
        for number in range(6):
            values = np.linspace(0, top, 64).reshape(8, 8).astype(np.uint16)
            Image.fromarray(values).save(tmp_path / "pictures" / "hall" / label / f"{number}.png")
    path = tmp_path / "run.toml"
    path.write_text(f'[task]\nimage_size = 8\n[data]\npath = "{tmp_path / "pictures"}"\n')

    found = fedlora("data", "preview", path).out.splitlines()
    wide = fedlora("data", "preview", path, "--set", "task.pixel_range=[0, 65535]").out.splitlines()

    deep = f"{tmp_path / 'pictures'}: 12 of 12 pictures are deeper than 8 bits, with values from 0 to 4,095; black and"
    assert found[-1].startswith(f"warning: {deep} white are task.pixel_range = [0, 4095], found from them")
    assert wide[-2] == f"{deep} white are task.pixel_range = [0, 65535], as the run says"
    assert wide[-1].startswith(f"warning: {tmp_path / 'pictures'}: most of task.pixel_range = [0, 65535] is unused")
