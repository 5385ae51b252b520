"""From rows in the formats that people keep to what a language model learns from."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from fedlora.common.config import DataSection
from fedlora.common.errors import DataError
from fedlora.training.data.conversations import conversation_of, conversations_of
from fedlora.training.data.tables import read_text_table

USER, ASSISTANT, SYSTEM = "user", "assistant", "system"

Told = tuple[str, list[tuple[str, str]]]


def message(role: object, content: object) -> dict[str, object]:
    return {"role": role, "content": content}


def told(row: Mapping[str, object], **data: str) -> Told:
    """Return the style and the turns that a row gives."""
    conversation = conversation_of(row, DataSection.model_validate(data), where="chats.jsonl, line 7")
    return conversation.style, [(turn.role, turn.content) for turn in conversation.turns]


QUESTION, ANSWER = message(USER, "Why?"), message(ASSISTANT, " Because.\n")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": " as\nit is "}, ("plain", [(ASSISTANT, " as\nit is ")])),
        ({"prompt": "1 + 1 = ", "completion": "2 "}, ("plain", [(USER, "1 + 1 = "), (ASSISTANT, "2 ")])),
        (
            {"prompt": [message(SYSTEM, "Be kind."), QUESTION], "completion": [ANSWER]},
            ("chat", [(SYSTEM, "Be kind."), (USER, "Why?"), (ASSISTANT, " Because.\n")]),
        ),
        ({"instruction": "Do it.", "output": "Done."}, ("instruction", [(USER, "Do it."), (ASSISTANT, "Done.")])),
        (
            {"instruction": "Add.", "input": "1, 2", "output": "3", "system": "Be brief.", "text": "rendered before"},
            ("instruction", [(SYSTEM, "Be brief."), (USER, "Add.\n\n1, 2"), (ASSISTANT, "3")]),
        ),
        (
            {"instruction": "Do it.", "input": " ", "output": "Done.", "system": None},
            ("instruction", [(USER, "Do it."), (ASSISTANT, "Done.")]),
        ),
        (
            {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "id": 3},
            ("chat", [(USER, "Q"), (ASSISTANT, "A")]),
        ),
        (
            {"conversations": [QUESTION, ANSWER], "system": "Be kind."},
            ("chat", [(SYSTEM, "Be kind."), (USER, "Why?"), (ASSISTANT, " Because.\n")]),
        ),
        (
            {"messages": [message(SYSTEM, ""), QUESTION, ANSWER, QUESTION, ANSWER], "prompt": "Why?"},
            ("chat", [(USER, "Why?"), (ASSISTANT, " Because.\n")] * 2),
        ),
    ],
)
def test_the_columns_tell_the_format_and_the_words_stay_as_they_are(row: dict[str, object], expected: Told) -> None:
    assert told(row) == expected


def test_a_cell_of_text_may_hold_the_messages_as_json() -> None:
    cell = json.dumps([QUESTION, ANSWER])
    chat = ("chat", [(USER, "Why?"), (ASSISTANT, " Because.\n")])
    assert told({"messages": cell}) == told({"conversations": cell}) == chat
    assert told({"prompt": json.dumps([QUESTION]), "completion": json.dumps([ANSWER])}) == chat
    assert told({"prompt": "[1, 2] has", "completion": "[two]"})[0] == "plain"


def test_the_columns_of_text_prompt_and_answer_are_those_of_the_run_file() -> None:
    row = {"question": "Q", "reply": "A", "notes": "N"}
    assert told(row, prompt="question", completion="reply") == ("plain", [(USER, "Q"), (ASSISTANT, "A")])
    assert told(row, text="notes") == ("plain", [(ASSISTANT, "N")])


def test_a_format_that_is_named_is_taken_whatever_else_the_columns_say() -> None:
    row = {"instruction": "Do.", "output": "Done.", "messages": [QUESTION, ANSWER], "text": "T"}
    assert told(row, format="alpaca")[0] == "instruction"
    assert told(row, format="text") == ("plain", [(ASSISTANT, "T")])
    with pytest.raises(DataError, match=r"line 7: the columns .* fit messages and alpaca; set data.format to one$"):
        told(row)
    with pytest.raises(DataError, match=r"line 7: no column 'conversations' \(data.format = sharegpt\); the columns"):
        told(row, format="sharegpt")


def test_columns_of_no_format_are_answered_with_all_that_would_do() -> None:
    with pytest.raises(DataError) as caught:
        told({"prompt": "Q", "chosen": "A", "rejected": "B"}, completion="answer")
    assert str(caught.value) == (
        "chats.jsonl, line 7: cannot tell the format by the columns 'prompt', 'chosen', 'rejected'; expected messages "
        "(messages); conversations (sharegpt); instruction, output (alpaca); prompt, answer (prompt_completion); or "
        "text (text); name yours with data.prompt and data.completion, or data.text"
    )


def test_the_first_row_tells_the_format_of_all_and_another_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text('{"prompt": "Q", "completion": "A"}\n\n{"text": "T"}\n')
    with pytest.raises(
        DataError, match=r"chats.jsonl, line 3: no column 'prompt' \(data.prompt\); the columns are 'te"
    ):
        conversations_of(read_text_table(path), DataSection())


def chat(*messages: object) -> dict[str, object]:
    return {"messages": list(messages)}


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        ({"text": " \n"}, "'text' is empty; fill it in or remove the line"),
        ({"text": ["a"]}, """'text' is ["a"]; expected text"""),
        ({"text": "\ud83d"}, "'text' has half a surrogate pair"),
        ({"prompt": "Q", "completion": ""}, "'completion' is empty"),
        ({"prompt": "Q", "completion": 4}, "'completion' is 4; expected text"),
        ({"prompt": [QUESTION], "completion": "A"}, "expected two texts, or two lists of messages"),
        ({"instruction": "Q", "output": None}, "'output' is empty"),
        ({"instruction": "Q", "output": "A", "input": 3}, "'input' is 3; expected text"),
        ({"messages": "no"}, "'messages' is not JSON (Expecting value, character 1); expected a list of messages"),
        ({"messages": {}}, "'messages' is {}; expected a list of messages"),
        (chat(), "'messages' is []; expected a list of messages"),
        (chat("hello"), """'messages', message 1 is "hello"; expected {"role": ..., "content": ...}"""),
        (
            {"conversations": [{"from": "human", "content": "Q"}]},
            """'conversations', message 1 is {"from": "human", "content": "Q"}; expected {"from": ..., "value": ...}""",
        ),
        (
            chat(QUESTION, message("narrator", "42")),
            """'messages', message 2 has the role "narrator"; expected one of system, developer, user, human,""",
        ),
        (chat(message(None, "a")), "message 1 has the role null; expected one of"),
        (chat(QUESTION, message(ASSISTANT, None)), "message 2 (assistant) is empty"),
        (
            chat(message(USER, [{"type": "text"}]), ANSWER),
            """message 1 (user): part 1 is {"type": "text"}; expected {"type": "text", "text": ...}""",
        ),
        (
            chat(ANSWER),
            "'messages': assistant as the first, \" Because.\\n\"; expected user: after at most one system message "
            "at the start, user and assistant take turns",
        ),
        (chat(QUESTION, QUESTION, ANSWER), """'messages': user after user, "Why?"; expected assistant"""),
        (chat(QUESTION, ANSWER, ANSWER), "'messages': assistant after assistant"),
        (chat(QUESTION, message(SYSTEM, "s"), ANSWER), "'messages': system after user"),
        (
            chat(QUESTION, ANSWER, QUESTION),
            "'messages': ends with user; expected an answer of the assistant at the end, which is what is learned",
        ),
        (chat(message(SYSTEM, "Be kind.")), "'messages': has no messages but the system's; expected an answer"),
    ],
)
def test_a_malformed_row_is_refused_with_its_place_and_what_is_wrong(row: dict[str, object], wrong: str) -> None:
    with pytest.raises(DataError) as caught:
        told(row)
    found = str(caught.value)
    assert found.startswith("chats.jsonl, line 7: ")
    assert wrong in found
    assert "\n" not in found
