"""Examples that are left out or cut, and settings that do nothing, are named where a user looks."""

import json
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedlora.cli.live import progress_view
from fedlora.common.config import RunConfig
from fedlora.common.errors import RunError
from fedlora.server.record.running_summary import Summarised
from fedlora.simulation import SimulationResult, simulate

MakeRun = Callable[..., RunConfig]

SHORT: dict[str, object] = {
    "train": {"steps": 1},
    "federation": {"rounds": 1},
    "evaluation": {"client_examples": 4, "round_examples": 0},
}


def chats(path: Path, lengths: dict[str, list[int]], **columns: object) -> str:
    """Write conversations whose answers have so many letters, by client; and return the file."""
    with path.open("w") as file:
        for client, sizes in lengths.items():
            for size in sizes:
                messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a" * size}]
                file.write(json.dumps({"messages": messages, "client": client, **columns}) + "\n")
    return str(path)


def simulated(config: RunConfig, out: Path, **given: Any) -> tuple[SimulationResult, str]:
    """Return a run's result, and what a log of it says."""
    log = out.with_suffix(".log")
    with (
        log.open("w") as file,
        progress_view(title="run", metric_name="metric", console=Console(file=file, width=200)) as picture,
    ):
        result = simulate(config, out=out, num_workers=1, listener=Summarised([picture]), **given)
    return result, log.read_text()


def test_counts_by_client_and_part_are_on_the_terminal_and_in_the_report(chat_run: MakeRun, tmp_path: Path) -> None:
    lengths = {"a": [3] * 8 + [90] * 4, "b": [4] * 12}
    data = {"path": chats(tmp_path / "chats.jsonl", lengths, mood="dry"), "group": "client", "validation": 0.25}
    test = chats(tmp_path / "test.jsonl", {"a": [3] * 5 + [90]})
    config = chat_run(**SHORT, data={**data, "test": test}, exchange={"precision": "int8"})
    result, log = simulated(config, tmp_path / "run")
    notes = [line for line in log.splitlines() if line.startswith("note: ")]
    losses = sum(int(line.split("a: ")[1].split(" of ")[0]) for line in notes if line.startswith("note: a: "))
    assert losses == 4
    assert "note: test set: 1 of 6 test examples is left out (longer than task.max_length)" in notes
    assert not [line for line in notes if line.startswith("note: b: ")]
    assert any("the column 'mood' is left aside, in 24 rows" in line for line in notes)
    assert any(line.startswith('note: exchange.precision = "int8" does nothing here') for line in notes)
    page = (result.folder / "report.html").read_text()
    assert "Left out and cut" in page
    assert "longer than task.max_length" in page
    assert '<td class="words">all</td><td class="words">test</td>' in page
    assert 'exchange.precision = "int8" does nothing here' in unescape(page)
    assert "left aside, in 24 rows" in page


def test_cut_examples_are_counted(chat_run: MakeRun, tmp_path: Path) -> None:
    data = {"path": chats(tmp_path / "chats.jsonl", {"a": [90] * 6}), "group": "client", "validation": 0, "test": 0}
    _, log = simulated(chat_run(**SHORT, data=data, task={"too_long": "cut"}), tmp_path / "run")
    assert "note: a: 6 of 6 training examples are cut at task.max_length" in log


@pytest.mark.parametrize("emptied", ["test", "b"])
def test_an_emptied_set_is_refused_by_name_before_training(chat_run: MakeRun, tmp_path: Path, emptied: str) -> None:
    lengths = {"a": [3] * 6, "b": [90 if emptied == "b" else 3] * 6}
    data = {"path": chats(tmp_path / "chats.jsonl", lengths), "group": "client", "validation": 0}
    test = chats(tmp_path / "test.jsonl", {"a": [90 if emptied == "test" else 3] * 6})
    whose = r"data\.test: all 6 test" if emptied == "test" else "b: all 6 training"
    wrong = f"{whose} examples are left out: longer than task.max_length; raise task.max_length, or set task.too_long"
    with pytest.raises(RunError, match=wrong):
        simulate(chat_run(**SHORT, data={**data, "test": test}), out=tmp_path / "run", num_workers=1)
    assert not (tmp_path / "run").exists()


def test_texts_of_a_classification_that_are_cut_are_counted(text_run: MakeRun, tmp_path: Path) -> None:
    words = {"good": "good " * 5, "bad": "bad " * 40}
    pairs = [(words[label], label) for label in ("good", "bad")] * 4
    config = text_run(**SHORT, task={"max_length": 16}, data={"validation": 0.0})
    _, log = simulated(config, tmp_path / "run", clients={"a": pairs}, test=pairs[:2])
    assert "note: test set: 1 of 2 test examples is cut at task.max_length" in log
    assert "note: a: 4 of 8 training examples are cut at task.max_length" in log
    assert 'note: data.path = "texts.csv" does nothing here: the data sets were given in Python' in log
