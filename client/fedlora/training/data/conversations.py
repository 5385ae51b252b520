"""From rows to what a language model learns from: the formats in which people keep prompts and answers."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal

from fedlora.common.config import DataSection
from fedlora.common.errors import DataError
from fedlora.training.data.bad_rows import for_each
from fedlora.training.data.columns import checked_text, shown, text_in, value_in
from fedlora.training.data.examples import Conversation, Row, Turn
from fedlora.training.data.json_values import json_value
from fedlora.training.data.source import enumeration
from fedlora.training.data.tables import Table

Role = Literal["system", "user", "assistant"]
Read = Callable[[Row, DataSection, str], Conversation]

_ROLES: Mapping[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}
_SHAREGPT_ROLES: Mapping[str, Role] = {"human": "user", "gpt": "assistant", **_ROLES}


def conversations_of(table: Table, data: DataSection) -> list[Conversation]:
    """Return a conversation for each row, all of the format of `data`, or with "auto" of that of the first row.

    Raises:
        DataError: the format cannot be told, or rows are malformed: how many, and what is wrong with the first.
    """
    first = table.rows[0]
    read = _FORMATS[format_of(first.row, data, where=first.where)]
    return for_each(table.rows, lambda placed: read(placed.row, data, placed.where))


def conversation_of(row: Row, data: DataSection, *, where: str) -> Conversation:
    """Return the conversation in one row, of the format of `data`, or with "auto" of what its columns say.

    Raises:
        DataError: the format cannot be told, or the row is malformed.
    """
    return _FORMATS[format_of(row, data, where=where)](row, data, where)


def format_of(row: Row, data: DataSection, *, where: str) -> str:
    """Return the name of the format of `data`, or with "auto" of the one that has the row's columns.

    A text beside the columns of another format, as data sets have it that were rendered before, is left aside.

    Raises:
        DataError: the row has the columns of no format, or of several.
    """
    if data.format != "auto":
        return data.format
    columns = {
        "messages": ("messages",),
        "sharegpt": ("conversations",),
        "alpaca": ("instruction", "output"),
        "prompt_completion": (data.prompt, data.completion),
    }
    fitting = [name for name, needed in columns.items() if all(column in row for column in needed)]
    if len(fitting) > 1:
        raise DataError(f"{where}: the columns {enumeration(row)} fit {' and '.join(fitting)}; set data.format to one")
    if not fitting and data.text not in row:
        known = "; ".join(f"{', '.join(needed)} ({name})" for name, needed in columns.items())
        raise DataError(
            f"{where}: cannot tell the format by the columns {enumeration(row)}; expected {known}; or {data.text} "
            "(text); name yours with data.prompt and data.completion, or data.text"
        )
    return fitting[0] if fitting else "text"


def plain_text(text: object, *, what: str) -> Conversation:
    """Return a text that is learned whole."""
    return Conversation((Turn("assistant", checked_text(text, what)),), style="plain")


def prompt_and_answer(prompt: object, answer: object, *, of_prompt: str, of_answer: str) -> Conversation:
    """Return a prompt and its answer: texts that follow one another as they are, or two lists of messages as a chat."""
    prompt_list, answer_list = _as_list(prompt), _as_list(answer)
    if prompt_list is not None and answer_list is not None:
        before = _messages(prompt_list, of_prompt, keys=("role", "content"), roles=_ROLES)
        after = _messages(answer_list, of_answer, keys=("role", "content"), roles=_ROLES)
        return _chat((*before, *after), of_answer)
    if isinstance(prompt, list) != isinstance(answer, list):
        raise DataError(f"{of_prompt} and {of_answer}: a list and a text; expected two texts, or two lists of messages")
    turns = Turn("user", checked_text(prompt, of_prompt)), Turn("assistant", checked_text(answer, of_answer))
    return Conversation(turns, style="plain")


def _text(row: Row, data: DataSection, where: str) -> Conversation:
    return plain_text(value_in(row, data.text, key="data.text", where=where), what=f"{where}: {data.text!r}")


def _prompt_completion(row: Row, data: DataSection, where: str) -> Conversation:
    return prompt_and_answer(
        value_in(row, data.prompt, key="data.prompt", where=where),
        value_in(row, data.completion, key="data.completion", where=where),
        of_prompt=f"{where}: {data.prompt!r}",
        of_answer=f"{where}: {data.completion!r}",
    )


def _alpaca(row: Row, _: DataSection, where: str) -> Conversation:
    key = "data.format = alpaca"
    instruction = text_in(row, "instruction", key=key, where=where)
    answer = text_in(row, "output", key=key, where=where)
    given = _optional(row, "input", where)
    question = f"{instruction}\n\n{given}" if given else instruction
    return Conversation((*_system(row, where), Turn("user", question), Turn("assistant", answer)), style="instruction")


def _sharegpt(row: Row, _: DataSection, where: str) -> Conversation:
    messages = _list_in(row, "conversations", key="data.format = sharegpt", where=where)
    is_openai = any(isinstance(message, Mapping) and "role" in message for message in messages)
    keys = ("role", "content") if is_openai else ("from", "value")
    what = f"{where}: 'conversations'"
    return _chat((*_system(row, where), *_messages(messages, what, keys=keys, roles=_SHAREGPT_ROLES)), what)


def _messages_format(row: Row, _: DataSection, where: str) -> Conversation:
    messages = _list_in(row, "messages", key="data.format = messages", where=where)
    what = f"{where}: 'messages'"
    return _chat(_messages(messages, what, keys=("role", "content"), roles=_ROLES), what)


_FORMATS: Mapping[str, Read] = {
    "text": _text,
    "prompt_completion": _prompt_completion,
    "alpaca": _alpaca,
    "sharegpt": _sharegpt,
    "messages": _messages_format,
}


def _optional(row: Row, column: str, where: str) -> str | None:
    value = row.get(column)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    return checked_text(value, f"{where}: {column!r}")


def _system(row: Row, where: str) -> Iterator[Turn]:
    if (system := _optional(row, "system", where)) is not None:
        yield Turn("system", system)


def _list_in(row: Row, column: str, *, key: str, where: str) -> Sequence[object]:
    """Return a row's list of messages, which a cell of text holds as JSON."""
    value = value_in(row, column, key=key, where=where)
    if isinstance(value, str) and value.strip():
        try:
            value = json_value(value)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{where}: {column!r} is not JSON ({error.msg}, character {error.pos + 1}); expected a list of messages"
            ) from error
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: {column!r} is {shown(value)}; expected a list of messages")
    return value


def _as_list(value: object) -> Sequence[object] | None:
    """Return a list, or the messages that a text holds as JSON; None for any other text."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json_value(value)
        except json.JSONDecodeError:
            return None
        if not (isinstance(value, list) and value and all(isinstance(item, dict) and "role" in item for item in value)):
            return None
    return value if isinstance(value, list) else None


def _messages(
    messages: Sequence[object], what: str, *, keys: tuple[str, str], roles: Mapping[str, Role]
) -> Iterator[Turn]:
    """Yield a turn for each message, without empty ones of the system."""
    role_key, content_key = keys
    for number, message in enumerate(messages, start=1):
        at = f"{what}, message {number}"
        if not isinstance(message, Mapping) or not {role_key, content_key} <= message.keys():
            raise DataError(f'{at} is {shown(message)}; expected {{"{role_key}": ..., "{content_key}": ...}}')
        role, content = message[role_key], message[content_key]
        if not isinstance(role, str) or role not in roles:
            raise DataError(f"{at} has the role {shown(role)}; expected one of {', '.join(roles)}")
        if roles[role] != "system" or content:
            yield Turn(roles[role], checked_text(content, f"{at} ({role})"))


def _chat(given: Iterable[Turn], what: str) -> Conversation:
    """Return the conversation of turns in a sensible order: system first if at all, then user, assistant, user ..."""
    turns = tuple(given)
    rounds = turns[1:] if turns and turns[0].role == "system" else turns
    for number, turn in enumerate(rounds):
        expected = ("user", "assistant")[number % 2]
        if turn.role != expected:
            after = f"after {rounds[number - 1].role}" if number else "as the first"
            raise DataError(
                f"{what}: {turn.role} {after}, {shown(turn.content)}; expected {expected}: after at most one system "
                "message at the start, user and assistant take turns"
            )
    if not rounds or rounds[-1].role != "assistant":
        last = f"ends with {rounds[-1].role}" if rounds else "has no messages but the system's"
        raise DataError(f"{what}: {last}; expected an answer of the assistant at the end, which is what is learned")
    return Conversation(turns, style="chat")
