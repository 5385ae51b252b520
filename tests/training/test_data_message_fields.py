"""What rows and messages say beside their texts: honoured, refused by name, or left aside and said."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from fedlora.client.site.site_file import SiteConfig, for_site
from fedlora.common.config import DataSection, RunConfig
from fedlora.common.errors import DataError
from fedlora.common.run_file import to_toml
from fedlora.training.data.conversations import conversation_of, conversations_of
from fedlora.training.data.examples import Conversation, Turn
from fedlora.training.data.tables import read_text_table

QUESTION, ANSWER = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}
CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": "sky"}}}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {}}}


def read(row: Mapping[str, object], **data: object) -> Conversation:
    return conversation_of(row, DataSection.model_validate(data), where="chats.jsonl, line 7")


def chat(*messages: object, **columns: object) -> dict[str, object]:
    return {"messages": list(messages), **columns}


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("developer", "system"), ("System", "system"), ("human", "user"), ("prompter", "user"), ("gpt", "assistant"),
        ("model", "assistant"), ("bot", "assistant"), ("tool", "tool"), ("function", "tool"), ("ipython", "tool"),
        ("observation", "tool"),
    ],
)  # fmt: skip
def test_roles_have_the_names_of_the_field(name: str, role: str) -> None:
    first = [{"role": name, "content": "x"}] if role in ("system", "user") else []
    between = [] if role == "user" else [QUESTION]
    after = {"tool": [ANSWER, {"role": name, "content": "x"}, ANSWER], "assistant": [{"role": name, "content": "x"}]}
    found = read(chat(*first, *between, *after.get(role, [ANSWER])))
    assert role in [turn.role for turn in found.turns if turn.content == "x"]


def test_parts_of_text_are_joined_and_another_part_is_refused_by_name() -> None:
    parts = [{"type": "text", "text": "Why "}, {"type": "text", "text": "not?", "image_url": None}]
    assert read(chat({"role": "user", "content": parts}, ANSWER)).turns[0].content == "Why not?"
    picture = [*parts, {"type": "image_url", "image_url": {"url": "cat.png"}}]
    with pytest.raises(DataError, match=r'message 1 \(user\): part 3 is of the type "image_url"; only text is learned'):
        read(chat({"role": "user", "content": picture}, ANSWER))


@pytest.mark.parametrize(
    ("flags", "is_learned"),
    [
        ({"weight": 0}, False), ({"weight": 0.0}, False), ({"weight": 1}, True), ({"weight": None}, True),
        ({"train": False}, False), ({"masked": True}, False), ({"mask": 0}, True), ({"loss": False}, False),
    ],
)  # fmt: skip
def test_a_weight_of_zero_is_read_and_not_learned(flags: dict[str, object], is_learned: bool) -> None:
    turns = read(chat(QUESTION, {**ANSWER, **flags}, QUESTION, ANSWER)).turns
    assert [turn.is_answer for turn in turns] == [False, is_learned, False, True]
    ignoring = read(chat(QUESTION, {**ANSWER, **flags}), ignore=list(flags))
    assert ignoring.turns[1].is_answer


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        (chat(QUESTION, {**ANSWER, "weight": 0.5}), "'weight' is 0.5; expected 0 or 1"),
        (chat(QUESTION, {**ANSWER, "weight": 0}), "no answer is to be learned, all have a weight of 0"),
        (chat(QUESTION, {**ANSWER, "weight": 0, "train": True}), "which contradict each other"),
        (chat(QUESTION, {**ANSWER, "refusal": "No."}), "has 'refusal', an answer that is refused: it cannot be"),
        (chat({**QUESTION, "tool_calls": [CALL]}, ANSWER), "only the assistant's messages may"),
        (chat(QUESTION, {**ANSWER, "tool_calls": [{"name": "f", "arguments": "{"}]}), "its arguments: not JSON"),
        (chat(QUESTION, {**ANSWER, "tool_calls": [{"id": "1"}]}), 'expected {"name": ..., "arguments": ...}'),
        (chat(QUESTION, {**ANSWER, "reasoning": "a", "thinking": "b"}), "say different things"),
        (chat(QUESTION, ANSWER, tools=[{"type": "function"}]), """'tools', tool 1 is {"type": "function"}; expected"""),
        (chat(QUESTION, ANSWER, chosen="A"), "'chosen' is \"A\", a preferred answer (DPO)"),
        (chat(QUESTION, ANSWER, history=[["a", "b"]]), "'history' is [[\"a\", \"b\"]], the rounds before"),
        ({"prompt": "Q", "completion": "A", "system": "S"}, "'system' is \"S\", the system's message"),
        ({"prompt": "Q", "completion": "A", "tools": [TOOL]}, "tools to call: rows of prompt_completion do not show"),
        ({"prompt": "Q", "completion": "A", "label": False}, "that the answer is not wanted (KTO)"),
        ({"text": "T", "reasoning_content": "R"}, 'leave it aside with data.ignore = ["reasoning_content"]'),
        ({"instruction": "Q", "output": "A", "history": [["a"]]}, "pair 1 is [\"a\"]; expected [instruction, answer]"),
        ({"instruction": "Q", "output": "A", "images": ["cat.png"]}, "'images' is [\"cat.png\"], pictures"),
        (chat({"role": "system", "content": "a"}, QUESTION, ANSWER, system="b"), "keep one of them"),
        (chat(QUESTION, {"role": "tool", "content": "x"}, ANSWER), "tool after user"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused_by_name(row: dict[str, object], wrong: str) -> None:
    with pytest.raises(DataError) as caught:
        read(row)
    found = str(caught.value)
    assert found.startswith("chats.jsonl, line 7: ")
    assert wrong in found
    assert "\n" not in found


def test_a_column_that_is_ignored_on_purpose_is_not_refused() -> None:
    row = {"prompt": "Q", "completion": "A", "system": "S", "label": False}
    assert len(read(row, ignore=["system", "label"]).turns) == 2


def test_what_is_ignored_is_a_language_models_alone_and_may_be_a_sites_own() -> None:
    language: dict[str, object] = {"model": {"name": "hub/small"}, "task": {"kind": "causal_lm"}}
    run = RunConfig.model_validate({**language, "data": {"ignore": ["tone"]}, "partition": {"by": "iid"}})
    assert 'ignore = ["tone"]' in to_toml(run)
    own = SiteConfig.model_validate({"site": {"name": "a"}, "data": {"path": "x", "ignore": ["mood"]}})
    assert for_site(run, own, beside=Path()).data.ignore == ("mood",)
    with pytest.raises(ValidationError, match=r"data\.ignore is for task\.kind = causal_lm"):
        RunConfig.model_validate({"data": {"ignore": ["tone"]}})


def test_alpacas_history_stands_before_the_rows_own_round_and_is_learned_too() -> None:
    row = {"instruction": "three", "output": "3", "history": [["one", "1"], ["two", "2"]], "system": "Count."}
    expected = [
        Turn("system", "Count."), Turn("user", "one"), Turn("assistant", "1"), Turn("user", "two"),
        Turn("assistant", "2"), Turn("user", "three"), Turn("assistant", "3"),
    ]  # fmt: skip
    assert list(read(row).turns) == expected
    assert read({**row, "history": json.dumps(row["history"])}) == read(row)
    assert len(read({**row, "history": []}).turns) == 3


def test_a_system_column_stands_before_the_messages() -> None:
    expected = Turn("system", "Be brief.")
    assert read(chat(QUESTION, ANSWER, system="Be brief.")).turns[0] == expected
    same = chat({"role": "system", "content": "Be brief."}, QUESTION, ANSWER, system_prompt="Be brief.")
    assert [turn.role for turn in read(same).turns] == ["system", "user", "assistant"]
    pair = {"prompt": [QUESTION], "completion": [ANSWER], "system": "Be brief."}
    assert read(pair).turns[0] == expected


@pytest.mark.parametrize(
    "calling",
    [
        {"role": "assistant", "content": None, "tool_calls": [{**CALL, "index": 0}]},
        {"role": "assistant", "tool_calls": [{"name": "look", "arguments": '{"at": "sky"}'}]},
        {"role": "assistant", "content": "", "function_call": {"name": "look", "arguments": '{"at": "sky"}'}},
        {"role": "function_call", "content": '{"name": "look", "arguments": {"at": "sky"}}'},
        {"role": "assistant", "tool_calls": json.dumps([CALL])},
    ],
)
def test_calls_of_tools_come_in_many_forms_and_become_one(calling: dict[str, Any]) -> None:
    result = {"role": "tool", "content": "blue", "tool_call_id": "c1", "name": "look"}
    found = read(chat(QUESTION, calling, result, ANSWER, functions=[TOOL["function"]]))
    assert found.turns[1] == Turn("assistant", "", tool_calls=(CALL,))
    assert found.turns[2] == Turn("tool", "blue", name="look", tool_call_id="c1")
    assert found.tools == (TOOL,)
    assert read(chat(QUESTION, calling, result, ANSWER, tools=json.dumps([TOOL]))) == found


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_what_was_thought_goes_with_its_answer(key: str) -> None:
    assert read(chat(QUESTION, {**ANSWER, key: "Hm."})).turns[1].reasoning == "Hm."
    assert read({"instruction": "Why?", "output": "Because.", key: "Hm."}).turns[1].reasoning == "Hm."


def test_what_nobody_reads_is_left_aside_and_counted_unless_it_only_tells_where_a_row_is_from(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    rows = [
        chat({**QUESTION, "id": 1, "mood": "curious", "weight": 1}, ANSWER, id=3, source="web", tone="dry"),
        chat(QUESTION, {**ANSWER, "mood": None}, tone="kind", language="en", parallel_tool_calls=False),
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    _, notes = conversations_of(read_text_table(path), DataSection())
    assert notes == (
        "the column 'parallel_tool_calls' is left aside, in 1 row",
        "the column 'tone' is left aside, in 2 rows",
        "the message key 'mood' is left aside, in 1 row",
        "the message key 'weight' of a user's message is left aside, in 1 row",
    )
    ignoring = DataSection(ignore=("parallel_tool_calls", "tone", "mood", "weight"))
    assert conversations_of(read_text_table(path), ignoring)[1] == ()


def test_a_label_that_examples_are_dealt_out_by_is_no_judgement(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "Q", "completion": "A", "label": false}\n')
    table = read_text_table(path)
    assert conversations_of(table, DataSection(), reads_label=True)[1] == ()
    with pytest.raises(DataError, match="KTO"):
        conversations_of(table, DataSection())
