"""One message of a conversation as a turn: its role, its text, and what else it says that a model learns from."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fedlora.common.errors import DataError
from fedlora.training.data.columns import checked_text, shown
from fedlora.training.data.examples import Role, Turn
from fedlora.training.data.json_values import json_value
from fedlora.training.data.source import enumeration

ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "chatgpt": "assistant",
    "ai": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "tool_response": "tool",
    "function": "tool",
    "function_response": "tool",
    "ipython": "tool",
    "observation": "tool",
    "environment": "tool",
}
# Their text is the call itself, as JSON.
_CALLING_ROLES = ("function_call", "tool_call")

REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
# True, or 1: learned. Of the second kind, the other way round.
LEARNED_KEYS, _MASKED_KEYS = ("weight", "train", "trainable", "loss"), ("masked", "mask")
FLAG_KEYS = (*LEARNED_KEYS, *_MASKED_KEYS)
READ_KEYS = frozenset((*REASONING_KEYS, *FLAG_KEYS, "tool_calls", "function_call", "name", "tool_call_id"))
_REFUSED_KEYS: Mapping[str, str] = {
    "refusal": "an answer that is refused",
    "audio": "sound",
    "image": "a picture",
    "images": "pictures",
    "videos": "films",
    "tools": "tools, which belong beside the messages",
    "functions": "functions, which belong beside the messages",
    "prefix": "an answer's given beginning",
    "train_detail": "parts of a message that are learned",
    "loss_scale": "a weight of each token",
    "loss_mask": "a mask of each token",
    "channel": "a channel of the answer",
    "recipient": "who is spoken to",
}
_QUIET_PART_KEYS = frozenset(("type", "text", "cache_control", "annotations", "citations"))


def is_given(value: object) -> bool:
    """Return whether a value says something: neither null nor empty, as tables fill what a row does not have."""
    return value is not None and not (isinstance(value, str | Sequence | Mapping) and len(value) == 0)


def turn_of(message: object, at: str, *, keys: tuple[str, str], ignored: Sequence[str] = ()) -> Turn | None:
    """Return the turn of one message; None for an empty one of the system.

    Args:
        at: names the message for errors.
        keys: those of the role and of the text.
        ignored: keys that are left aside.

    Raises:
        DataError: it is no message, or says something that cannot be shown to the model.
    """
    role_key, content_key = keys
    # Tables fill the keys that other messages have with nulls.
    given = _without_nulls(message, ignored) if isinstance(message, Mapping) else {}
    has_calls = "tool_calls" in given or "function_call" in given
    has_content = content_key in given or (isinstance(message, Mapping) and content_key in message)
    if role_key not in given and not (isinstance(message, Mapping) and role_key in message):
        raise DataError(f'{at} is {shown(message)}; expected {{"{role_key}": ..., "{content_key}": ...}}')
    if not has_content and not has_calls:
        raise DataError(f'{at} is {shown(message)}; expected {{"{role_key}": ..., "{content_key}": ...}}')
    named = given.get(role_key)
    role = ROLES.get(named.strip().lower()) if isinstance(named, str) else None
    if role is None or not isinstance(named, str):
        raise DataError(f"{at} has the role {shown(named)}; expected one of {', '.join(ROLES)}")
    what = f"{at} ({named})"
    _refuse_unshown(given, what)
    calls = _calls_in(given, what)
    content = text_of(given.get(content_key), what)
    if named.strip().lower() in _CALLING_ROLES:
        calls, content = (*calls, *_calls_in({"tool_calls": _parsed(content, f"{what}: the call")}, what)), ""
    reasoning = reasoning_in(given, what)
    if role != "assistant" and (calls or reasoning):
        raise DataError(f"{what} has {'tool_calls' if calls else 'reasoning'}; only the assistant's messages may")
    if role == "system" and not content:
        return None
    if not calls and role != "tool":
        checked_text(content, what)
    return Turn(
        role,
        content,
        is_learned=_is_learned(given, what) or role != "assistant",
        reasoning=reasoning,
        tool_calls=calls,
        name=_word(given, "name", what),
        tool_call_id=_word(given, "tool_call_id", what),
    )


def text_of(content: object, what: str) -> str:
    """Return a message's text: as it is, or its parts of text one after another; "" for null.

    Raises:
        DataError: it is something else, or a part is no text.
    """
    if content is None:
        return ""
    if not isinstance(content, list) or not all(isinstance(part, Mapping) for part in content):
        return _possibly_blank(content, what)
    texts = []
    for number, part in enumerate(content, start=1):
        kind, text = part.get("type", "text" if "text" in part else None), part.get("text")
        if kind not in ("text", "input_text", "output_text"):
            raise DataError(f"{what}: part {number} is of the type {shown(kind)}; only text is learned, not {kind}")
        if others := sorted(key for key in part if key not in _QUIET_PART_KEYS and is_given(part[key])):
            raise DataError(f"{what}: part {number} has {enumeration(others)} beside its text; remove it")
        if not isinstance(text, str):
            raise DataError(f'{what}: part {number} is {shown(part)}; expected {{"type": "text", "text": ...}}')
        texts.append(_possibly_blank(text, f"{what}: part {number}"))
    return "".join(texts)


def reasoning_in(given: Mapping[str, Any], what: str) -> str:
    """Return what the assistant thought, which has several names.

    Raises:
        DataError: it is no text, or two names say two things.
    """
    found = {key: checked_text(given[key], f"{what}: {key!r}") for key in REASONING_KEYS if is_given(given.get(key))}
    if len(set(found.values())) > 1:
        raise DataError(f"{what} has {enumeration(found)}, which say different things; keep one of them")
    return next(iter(found.values()), "")


def tools_in(value: object, what: str) -> tuple[Mapping[str, object], ...]:
    """Return the functions that the assistant may call, given as a list or as JSON.

    Raises:
        DataError: it is no list of functions, each with a name.
    """
    if not is_given(value) or (isinstance(value, str) and not value.strip()):
        return ()
    tools = _parsed(value, what) if isinstance(value, str) else value
    if not isinstance(tools, list):
        raise DataError(f'{what} is {shown(tools)}; expected a list of {{"type": "function", "function": ...}}')
    found: list[Mapping[str, object]] = []
    for number, given in enumerate(tools, start=1):
        tool = _parsed(given, f"{what}, tool {number}") if isinstance(given, str) else given
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
            raise DataError(f'{what}, tool {number} is {shown(tool)}; expected a function with its "name"')
        found.append(tool if function is not tool else {"type": "function", "function": tool})
    return tuple(found)


def flag_of(value: object, what: str) -> bool:
    """Return whether something is wanted that says so by true, false, 1 or 0.

    Raises:
        DataError: it is something else.
    """
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    raise DataError(f"{what} is {shown(value)}; expected 0 or 1, all or nothing of a message is learned")


def _possibly_blank(text: object, what: str) -> str:
    return text if isinstance(text, str) and not text.strip() else checked_text(text, what)


def _without_nulls(message: Mapping[str, Any], ignored: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in message.items() if value is not None and key not in ignored}


def _refuse_unshown(given: Mapping[str, Any], what: str) -> None:
    for key, meaning in _REFUSED_KEYS.items():
        if is_given(given.get(key)) and given[key] is not False:
            raise DataError(
                f"{what} has {key!r}, {meaning}: it cannot be learned from; remove it, or leave it aside with "
                f'data.ignore = ["{key}"]'
            )


def _is_learned(given: Mapping[str, Any], what: str) -> bool:
    said = {key: flag_of(given[key], f"{what}: {key!r}") != (key in _MASKED_KEYS) for key in FLAG_KEYS if key in given}
    if len(set(said.values())) > 1:
        raise DataError(f"{what} has {enumeration(said)}, which contradict each other; keep one of them")
    return all(said.values())


def _calls_in(given: Mapping[str, Any], what: str) -> tuple[Mapping[str, object], ...]:
    """Return the calls of a message, all in the one form that chat templates know."""
    calls = given.get("tool_calls")
    if isinstance(calls, str) and calls.strip():
        calls = _parsed(calls, f"{what}: 'tool_calls'")
    if isinstance(calls, Mapping):
        calls = [calls]
    if is_given(given.get("function_call")):
        calls = [*(calls or []), given["function_call"]]
    if not is_given(calls):
        return ()
    if not isinstance(calls, list):
        raise DataError(f"{what}: 'tool_calls' is {shown(calls)}; expected a list of calls")
    return tuple(_call(call, f"{what}, call {number}") for number, call in enumerate(calls, start=1))


def _call(call: object, what: str) -> Mapping[str, object]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise DataError(f'{what} is {shown(call)}; expected {{"name": ..., "arguments": ...}}')
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, str):
        arguments = _parsed(arguments, f"{what}: its arguments") if arguments.strip() else {}
    if arguments is not None and not isinstance(arguments, Mapping):
        raise DataError(f"{what}: its arguments are {shown(arguments)}; expected an object such as {{...}}")
    made: dict[str, object] = {"type": "function", "function": {"name": function["name"], "arguments": arguments or {}}}
    if isinstance(call, Mapping) and is_given(call.get("id")):
        made["id"] = call["id"]
    return made


def _parsed(text: str, what: str) -> Any:
    try:
        return json_value(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{what}: not JSON ({error.msg}, character {error.pos + 1})") from error


def _word(given: Mapping[str, Any], key: str, what: str) -> str:
    value = given.get(key)
    return checked_text(value, f"{what}: {key!r}") if is_given(value) else ""
