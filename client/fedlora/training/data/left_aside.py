"""What of a row or a message is not read: refused where it would change what is learned, else left aside and said."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress

from fedlora.common.config import DataSection
from fedlora.common.errors import DataError
from fedlora.training.data.columns import shown
from fedlora.training.data.examples import Row
from fedlora.training.data.json_values import json_value
from fedlora.training.data.messages import LEARNED_KEYS, READ_KEYS, REASONING_KEYS, ROLES, is_given

_SYSTEM_AND_TOOLS = ("system", "system_prompt", "tools", "functions")
_READ: Mapping[str, tuple[str, ...]] = {
    "text": (),
    "prompt_completion": _SYSTEM_AND_TOOLS,
    "alpaca": ("instruction", "input", "output", "history", *_SYSTEM_AND_TOOLS, *REASONING_KEYS),
    "sharegpt": ("conversations", *_SYSTEM_AND_TOOLS),
    "messages": ("messages", *_SYSTEM_AND_TOOLS),
}


def _always(_value: object) -> bool:
    return True


def _is_not_one(value: object) -> bool:
    return value not in (1, True, "1", "1.0", "true", "True")


# Columns that say what an answer is worth or what belongs to it, and for which values they do.
_REFUSED: Mapping[str, tuple[str, Callable[[object], bool]]] = {
    "history": ("the rounds before", _always),
    "system": ("the system's message", _always),
    "system_prompt": ("the system's message", _always),
    "tools": ("tools to call", _always),
    "functions": ("functions to call", _always),
    "tool_calls": ("calls of tools", _always),
    "function_call": ("a call of a function", _always),
    "reasoning_content": ("what was thought before the answer", _always),
    "reasoning": ("what was thought before the answer", _always),
    "thinking": ("what was thought before the answer", _always),
    "context": ("what the question is about", _always),
    "documents": ("what the question is about", _always),
    "chosen": ("a preferred answer (DPO)", _always),
    "rejected": ("an answer that is not wanted (DPO)", _always),
    "kto_tag": ("whether the answer is wanted (KTO)", _is_not_one),
    # 0 may be a label's number.
    "label": ("that the answer is not wanted (KTO)", lambda value: value is False or value in ("false", "False")),
    "weight": ("what the row is worth", _is_not_one),
    "sample_weight": ("what the row is worth", _is_not_one),
    "loss_weight": ("what the row is worth", _is_not_one),
    "train": ("whether the row is learned", _is_not_one),
    "masked": ("whether the row is learned", lambda value: value not in (0, False, "0", "false", "False")),
    "chat_template_kwargs": ("settings of the chat template", _always),
    **dict.fromkeys(("image", "images"), ("pictures", _always)),
    **dict.fromkeys(("audio", "audios"), ("sound", _always)),
    **dict.fromkeys(("video", "videos"), ("films", _always)),
}

# What tells where a row or message is from, and changes nothing of it.
_QUIET_NAMES = """
    id ids uuid idx index row_id prompt_id message_id parent_id conversation_id conversation_hash session_id user_id
    source sources dataset origin subset split url license model model_name generator author hash hashed_ip avatarurl
    lang language country category categories topic topics domain task type title tags metadata meta annotations
    created created_at create_time timestamp date time turn turns num_turns turn_identifier
    length num_tokens tokens token_count views score rating quality difficulty
"""
_QUIET = frozenset(_QUIET_NAMES.split())


def refuse_unread(row: Row, read: set[str], *, format_name: str, is_plain: bool, where: str) -> None:
    """Check that a row says nothing that matters in a column that its format does not read.

    Args:
        row: without the columns that the run leaves aside on purpose.
        read: the columns of the format, and those that the run names.
        is_plain: whether its texts stand as they are, so that neither system nor tools can be shown.

    Raises:
        DataError: it does; which column, and what to do.
    """
    if is_plain:
        read = read - set(_SYSTEM_AND_TOOLS)
    for column, (meaning, matters) in _REFUSED.items():
        value = row.get(column)
        if column not in read and is_given(value) and matters(value):
            raise DataError(
                f"{where}: {column!r} is {shown(value)}, {meaning}: rows of {format_name} do not show it to the model; "
                f'give the rows another format or remove it, or leave it aside with data.ignore = ["{column}"]'
            )


def left_aside(
    rows: Iterable[Row], data: DataSection, *, format_name: str, reads_label: bool = False
) -> tuple[str, ...]:
    """Return in a line each which columns and message keys hold something that nobody reads, and in how many rows.

    What only tells where a row is from is not worth a line, nor what the run leaves aside on purpose.
    """
    read = {*read_columns(data, format_name, reads_label=reads_label), *data.ignore}
    columns: Counter[str] = Counter()
    keys: Counter[str] = Counter()
    for row in rows:
        columns.update(_unread(row, read))
        messages = _messages_in(row, data, format_name)
        keys.update({key for message in messages for key in _unread_keys(message, data.ignore)})
    return tuple(
        f"{kind} {name} is left aside, in {count:,} row{'' if count == 1 else 's'}"
        for kind, counted in (("the column", columns), ("the message key", keys))
        for name, count in sorted(counted.items())
    )


def read_columns(data: DataSection, format_name: str, *, reads_label: bool = False) -> set[str]:
    """Return the columns that a format reads, and those that the run names; of the label's if it is asked for."""
    named: set[str] = {column for column in (data.group, data.split_by) if column is not None}
    if reads_label:
        named.add(data.label)
    if format_name == "text":
        named.add(data.text)
    if format_name == "prompt_completion":
        named |= {data.prompt, data.completion}
    if format_name == "alpaca":
        named.add("text")  # The same rendered before.
    return {*_READ[format_name], *named}


def _unread(given: Mapping[str, object], read: set[str]) -> Iterator[str]:
    return (
        repr(key) for key, value in given.items() if key not in read and key.lower() not in _QUIET and is_given(value)
    )


def _unread_keys(message: Mapping[str, object], ignored: Sequence[str]) -> Iterator[str]:
    yield from _unread(message, {"role", "content", "from", "value", *READ_KEYS, *ignored})
    role = message.get("role", message.get("from"))
    if isinstance(role, str) and ROLES.get(role.strip().lower()) != "assistant":
        for key in set(LEARNED_KEYS) - set(ignored):
            if is_given(message.get(key)) and message[key] != 0:
                yield f"{key!r} of a {role}'s message"


def _messages_in(row: Row, data: DataSection, format_name: str) -> Iterator[Mapping[str, object]]:
    columns = {
        "messages": ("messages",),
        "sharegpt": ("conversations",),
        "prompt_completion": (data.prompt, data.completion),
    }
    for column in columns.get(format_name, ()):
        value = row.get(column)
        if isinstance(value, str) and value.lstrip().startswith("["):
            with suppress(json.JSONDecodeError):
                value = json_value(value)
        if isinstance(value, list):
            yield from (message for message in value if isinstance(message, Mapping))
