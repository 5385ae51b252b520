"""From rows to what a language model learns from: the formats in which people keep prompts and answers."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from fedlora.common.config import DataSection
from fedlora.common.errors import DataError
from fedlora.training.data.bad_rows import for_each
from fedlora.training.data.columns import checked_text, shown, text_in, value_in
from fedlora.training.data.examples import Conversation, Row, Turn
from fedlora.training.data.json_values import json_value
from fedlora.training.data.left_aside import left_aside, read_columns, refuse_unread
from fedlora.training.data.messages import reasoning_in, tools_in, turn_of
from fedlora.training.data.source import enumeration
from fedlora.training.data.tables import Table

Read = Callable[[Row, DataSection, str], Conversation]

_OPENAI_KEYS, _SHAREGPT_KEYS = ("role", "content"), ("from", "value")
# After whom who may speak. The first is a user; the last an assistant.
_FOLLOWERS: Mapping[str, tuple[str, ...]] = {
    "": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}


def conversations_of(
    table: Table, data: DataSection, *, reads_label: bool = False
) -> tuple[list[Conversation], tuple[str, ...]]:
    """Return a conversation for each row, and what of the rows is left aside, in a line each.

    All are of the format of `data`, or with "auto" of that of the first row.

    Args:
        reads_label: whether the label's column is read for another purpose.

    Raises:
        DataError: the format cannot be told, or rows are malformed: how many, and what is wrong with the first.
    """
    first = table.rows[0]
    found = format_of(without_ignored(first.row, data), data, where=first.where)
    read = read_columns(data, found, reads_label=reads_label)
    conversations = for_each(table.rows, lambda placed: _read(found, placed.row, data, placed.where, read))
    rows = (placed.row for placed in table.rows)
    return conversations, left_aside(rows, data, format_name=found, reads_label=reads_label)


def conversation_of(row: Row, data: DataSection, *, where: str) -> Conversation:
    """Return the conversation in one row, of the format of `data`, or with "auto" of what its columns say.

    Raises:
        DataError: the format cannot be told, or the row is malformed.
    """
    found = format_of(without_ignored(row, data), data, where=where)
    return _read(found, row, data, where, read_columns(data, found))


def without_ignored(row: Row, data: DataSection) -> Row:
    """Return the row without the columns that the run leaves aside on purpose."""
    return {column: value for column, value in row.items() if column not in data.ignore} if data.ignore else row


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


def prompt_and_answer(
    prompt: object,
    answer: object,
    *,
    of_prompt: str,
    of_answer: str,
    around: tuple[Iterable[Turn], tuple[Mapping[str, object], ...]] = ((), ()),
    ignored: Sequence[str] = (),
) -> Conversation:
    """Return a prompt and its answer: texts that follow one another as they are, or two lists of messages as a chat.

    Args:
        around: of a chat: the system's turn, if there is one, and the tools.
        ignored: message keys that are left aside.
    """
    prompt_list, answer_list = _as_list(prompt), _as_list(answer)
    if prompt_list is not None and answer_list is not None:
        before = _turns(prompt_list, of_prompt, keys=_OPENAI_KEYS, ignored=ignored)
        after = _turns(answer_list, of_answer, keys=_OPENAI_KEYS, ignored=ignored)
        return _chat((*around[0], *before, *after), of_answer, tools=around[1])
    if isinstance(prompt, list) != isinstance(answer, list):
        raise DataError(f"{of_prompt} and {of_answer}: a list and a text; expected two texts, or two lists of messages")
    turns = Turn("user", checked_text(prompt, of_prompt)), Turn("assistant", checked_text(answer, of_answer))
    return Conversation(turns, style="plain")


def _read(found: str, row: Row, data: DataSection, where: str, read: set[str]) -> Conversation:
    """Return the conversation in a row of the format `found`, of which nothing that matters is left aside."""
    row = without_ignored(row, data)
    conversation = _FORMATS[found](row, data, where)
    refuse_unread(row, read, format_name=found, is_plain=conversation.style == "plain", where=where)
    return conversation


def _text(row: Row, data: DataSection, where: str) -> Conversation:
    return plain_text(value_in(row, data.text, key="data.text", where=where), what=f"{where}: {data.text!r}")


def _prompt_completion(row: Row, data: DataSection, where: str) -> Conversation:
    return prompt_and_answer(
        value_in(row, data.prompt, key="data.prompt", where=where),
        value_in(row, data.completion, key="data.completion", where=where),
        of_prompt=f"{where}: {data.prompt!r}",
        of_answer=f"{where}: {data.completion!r}",
        around=(_system(row, where), _tools(row, where)),
        ignored=data.ignore,
    )


def _alpaca(row: Row, _: DataSection, where: str) -> Conversation:
    key = "data.format = alpaca"
    instruction = text_in(row, "instruction", key=key, where=where)
    answer = text_in(row, "output", key=key, where=where)
    given = _optional(row, "input", where)
    question = f"{instruction}\n\n{given}" if given else instruction
    last = Turn("user", question), Turn("assistant", answer, reasoning=reasoning_in(row, where))
    turns = (*_system(row, where), *_history(row, where), *last)
    return Conversation(turns, style="instruction", tools=_tools(row, where))


def _history(row: Row, where: str) -> Iterator[Turn]:
    """Yield the rounds before the row's own; their answers are learned too, as all of a chat's are."""
    value = row.get("history")
    if isinstance(value, str) and value.strip():
        value = _json_list(value, f"{where}: 'history'", of="[instruction, answer] pairs")
    if value is None or value in ("", []) or (isinstance(value, str) and not value.strip()):
        return
    for number, pair in enumerate(value if isinstance(value, list) else [value], start=1):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise DataError(f"{where}: 'history', pair {number} is {shown(pair)}; expected [instruction, answer]")
        for role, text in zip(("user", "assistant"), pair, strict=True):
            yield Turn(role, checked_text(text, f"{where}: 'history', pair {number} ({role})"))  # type: ignore[arg-type]


def _sharegpt(row: Row, data: DataSection, where: str) -> Conversation:
    messages = _list_in(row, "conversations", key="data.format = sharegpt", where=where)
    is_openai = any(isinstance(message, Mapping) and message.get("role") is not None for message in messages)
    return _rounds(row, data, where, messages, "conversations", keys=_OPENAI_KEYS if is_openai else _SHAREGPT_KEYS)


def _messages_format(row: Row, data: DataSection, where: str) -> Conversation:
    messages = _list_in(row, "messages", key="data.format = messages", where=where)
    return _rounds(row, data, where, messages, "messages", keys=_OPENAI_KEYS)


def _rounds(
    row: Row, data: DataSection, where: str, messages: Sequence[object], column: str, *, keys: tuple[str, str]
) -> Conversation:
    """Return a row's messages as a chat, with its system and its tools, which may stand in columns of their own."""
    what = f"{where}: {column!r}"
    turns = list(_turns(messages, what, keys=keys, ignored=data.ignore))
    system = list(_system(row, where))
    if system and turns and turns[0].role == "system":
        if turns[0].content.strip() != system[0].content.strip():
            raise DataError(f"{what}: begins with a system message, and the row has a system column; keep one of them")
        system = []
    return _chat((*system, *turns), what, tools=_tools(row, where))


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
    """Yield what the columns of the system say, which have two names."""
    found = [text for column in ("system", "system_prompt") if (text := _optional(row, column, where)) is not None]
    if len(set(found)) > 1:
        raise DataError(f"{where}: 'system' and 'system_prompt' say different things; keep one of them")
    for system in found[:1]:
        yield Turn("system", system)


def _tools(row: Row, where: str) -> tuple[Mapping[str, object], ...]:
    found = {column: tools_in(row.get(column), f"{where}: {column!r}") for column in ("tools", "functions")}
    if all(found.values()) and found["tools"] != found["functions"]:
        raise DataError(f"{where}: 'tools' and 'functions' say different things; keep one of them")
    return found["tools"] or found["functions"]


def _list_in(row: Row, column: str, *, key: str, where: str) -> Sequence[object]:
    """Return a row's list of messages, which a cell of text holds as JSON."""
    value = value_in(row, column, key=key, where=where)
    if isinstance(value, str) and value.strip():
        value = _json_list(value, f"{where}: {column!r}", of="messages")
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: {column!r} is {shown(value)}; expected a list of messages")
    return value


def _json_list(text: str, what: str, *, of: str) -> object:
    try:
        return json_value(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{what} is not JSON ({error.msg}, character {error.pos + 1}); expected a list of {of}"
        ) from error


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


def _turns(messages: Sequence[object], what: str, *, keys: tuple[str, str], ignored: Sequence[str]) -> Iterator[Turn]:
    """Yield a turn for each message, without empty ones of the system."""
    for number, message in enumerate(messages, start=1):
        turn = turn_of(message, f"{what}, message {number}", keys=keys, ignored=ignored)
        if turn is not None:
            yield turn


def _chat(given: Iterable[Turn], what: str, *, tools: tuple[Mapping[str, object], ...] = ()) -> Conversation:
    """Return the conversation of turns in a sensible order: system first if at all, then user, assistant, user ...

    Between an assistant and the next may stand the results of what it called.
    """
    turns = tuple(given)
    rounds = turns[1:] if turns and turns[0].role == "system" else turns
    before = ""
    for turn in rounds:
        if turn.role not in _FOLLOWERS[before]:
            after = f"after {before}" if before else "as the first"
            raise DataError(
                f"{what}: {turn.role} {after}, {shown(turn.content)}; expected {' or '.join(_FOLLOWERS[before])}: "
                "after at most one system message at the start, user and assistant take turns"
            )
        before = turn.role
    if not rounds or before != "assistant":
        last = f"ends with {before}" if rounds else "has no messages but the system's"
        raise DataError(f"{what}: {last}; expected an answer of the assistant at the end, which is what is learned")
    if not any(turn.is_answer for turn in rounds):
        raise DataError(f"{what}: no answer is to be learned, all have a weight of 0; remove the row, or give one a 1")
    return Conversation(turns, style="chat", tools=tools)
