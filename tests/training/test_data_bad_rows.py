"""Rows that cannot be used, of conversations and in the values of any row."""

import json
from pathlib import Path

import pytest

from fedlora.common.config import DataSection
from fedlora.common.errors import DataError
from fedlora.training.data.columns import shown
from fedlora.training.data.conversations import conversations_of
from fedlora.training.data.tables import read_text_table

DEEP = "[" * 100_000


def refusal(path: Path, rows: list[dict[str, object]]) -> list[str]:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        conversations_of(read_text_table(path), DataSection())
    return str(caught.value).splitlines()


def test_all_bad_conversations_are_counted_and_the_first_ten_named(tmp_path: Path) -> None:
    good: dict[str, object] = {"prompt": "Q", "completion": "A"}
    path = tmp_path / "chats.jsonl"

    first, *others = refusal(path, [good, *({**good, "completion": number} for number in range(1_200)), good])

    assert first == "1,200 of 1,202 rows cannot be used; the first 10:"
    assert others == [f"{path}, line {number + 2}: 'completion' is {number}; expected text" for number in range(10)]
    assert refusal(path, [good, {"prompt": "Q"}]) == [
        f"{path}, line 2: no column 'completion' (data.completion); the columns are 'prompt'"
    ]


def test_a_cell_that_is_nested_too_deeply_is_no_list_of_messages(tmp_path: Path) -> None:
    (line,) = refusal(tmp_path / "chats.jsonl", [{"messages": DEEP}])
    assert "line 1: 'messages' is not JSON (lists or objects nested too deeply, character 1)" in line
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": DEEP, "completion": "A"}))
    (conversation,), _ = conversations_of(read_text_table(tmp_path / "pairs.jsonl"), DataSection())
    assert conversation.style == "plain"


def test_a_value_that_json_cannot_write_is_shown_by_its_kind() -> None:
    nested: list[object] = []
    nested.append(nested)
    assert shown(nested) == "a list"
    assert shown(10**5_000) == "a int"
    assert shown({("a",): 1}) == "a dict"
    assert shown({1: float("nan")}) == '{"1": NaN}'
