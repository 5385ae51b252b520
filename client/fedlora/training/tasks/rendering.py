"""A conversation as the text that a model reads, and which of its characters are answers, from which it learns."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedlora.common.errors import DataError, ModelError
from fedlora.training.data.examples import Conversation, Turn
from fedlora.training.tasks.answers import find_answers
from fedlora.training.tasks.chat_template import ChatTemplate
from fedlora.training.tasks.marking import Message, Span
from fedlora.training.tasks.template_messages import message_of


@dataclass(frozen=True)
class Rendered:
    """A text to learn from.

    Attributes:
        text: all of it.
        answers: the spans (begin, end) of its characters that are learned.
        is_chat: whether a chat template made it, which sets begin and end tokens itself.
        given: the spans of what the data say, in which a special token is text; all else the template has put there.
        end: of a chat, what the template ends the last answer's turn with; "" for nothing.
        lacks_end: of a chat, whether no token ends the last answer, so that the end token has to be put behind it.
        left_out: of a chat, the numbers, from 1, of turns of which the template leaves words out.
        unanswered: of a chat, what the template asks for an answer with and has in none, such as an opened thought.
    """

    text: str
    answers: tuple[Span, ...]
    is_chat: bool
    given: tuple[Span, ...] = ()
    end: str = ""
    lacks_end: bool = False
    left_out: tuple[int, ...] = ()
    unanswered: str = ""


def render(
    conversation: Conversation, tokenizer: Any, chat_template: str | None = None, *, system: str = "template"
) -> Rendered:
    """Return the conversation as text.

    A chat is rendered by the chat template, an instruction too where there is one, and else as an Alpaca prompt. What
    is plain is put together as it is.

    Args:
        tokenizer: transformers' own, of the run's model.
        chat_template: Jinja, in place of the tokenizer's.
        system: "template" leaves a system turn to the chat template, "merge" puts it before the next user turn's text.

    Raises:
        ModelError: there is no chat template, or it cannot render this.
    """
    return render_all([conversation], tokenizer, chat_template, system=system)[0]


def render_all(
    conversations: Sequence[Conversation],
    tokenizer: Any,
    chat_template: str | None = None,
    *,
    system: str = "template",
) -> list[Rendered]:
    """Return conversations as texts, as `render` does, in less time."""
    template = ChatTemplate(tokenizer, chat_template)
    return [_rendered(conversation, template, system=system) for conversation in conversations]


def prompt_of(rendered: Rendered) -> Rendered:
    """Return what stands before the last answer of a text."""
    end = rendered.answers[-1][0]
    given = tuple((begin, min(last, end)) for begin, last in rendered.given if begin < end)
    return replace(rendered, text=rendered.text[:end], answers=(), given=given)


def render_prompt(
    conversation: Conversation, tokenizer: Any, chat_template: str | None = None, *, system: str = "template"
) -> Rendered:
    """Return what the model is given to find the conversation's last answer, which is left out."""
    return prompt_of(render(conversation, tokenizer, chat_template, system=system))


def _rendered(conversation: Conversation, template: ChatTemplate, *, system: str) -> Rendered:
    turns = conversation.turns
    if conversation.style == "plain":
        return _joined([(turn.content, turn.is_answer) for turn in turns])
    if conversation.style == "instruction" and not template.is_there:
        end = getattr(template.tokenizer, "eos_token", None) or ""
        return _alpaca(turns, end=end)
    template = replace(template, tools=conversation.tools) if conversation.tools else template
    messages: list[Message] = [message_of(turn) for turn in turns]
    learned = [turn.is_answer for turn in turns]
    if system == "merge":
        messages, learned = _merged(messages, learned)
    try:
        found = find_answers(messages, learned, template)
    except DataError as error:
        if system != "merge" and _takes_merged(messages, learned, template):
            raise DataError(f'{error}; set task.system = "merge" to put a system turn before the user\'s') from error
        raise
    end = found.answers[-1][1]
    is_last = not found.text[end:].strip()
    lacks_end = is_last and not any(token in found.end for token in template.added_tokens)
    return Rendered(
        # What the end token is put behind; the white space after it was not learned.
        found.text[:end] if lacks_end else found.text,
        found.answers,
        is_chat=True,
        given=found.given,
        end=found.end,
        lacks_end=lacks_end,
        left_out=found.left_out,
        unanswered=found.unanswered,
    )


def _merged(messages: Sequence[Message], learned: Sequence[bool]) -> tuple[list[Message], list[bool]]:
    """Return the messages with each system turn's words at the begin of the next user turn, an empty line between.

    Raises:
        DataError: no user turn follows one.
    """
    made: list[tuple[Message, bool]] = []
    waiting: list[str] = []
    for message, one in zip(messages, learned, strict=True):
        if message["role"] == "system":
            waiting.append(str(message["content"]))
        elif message["role"] == "user" and waiting:
            made.append(({**message, "content": "\n\n".join([*waiting, str(message["content"])])}, one))
            waiting = []
        else:
            made.append((message, one))
    if waiting:
        raise DataError(
            'task.system = "merge" puts a system turn before the next user turn; a conversation has none after it'
        )
    return [message for message, _ in made], [one for _, one in made]


def _takes_merged(messages: Sequence[Message], learned: Sequence[bool], template: ChatTemplate) -> bool:
    """Return whether the template takes the messages with their system turns merged."""
    if not any(message["role"] == "system" for message in messages):
        return False
    try:
        template.text(_merged(messages, learned)[0])
    except (DataError, ModelError):
        return False
    return True


def _joined(parts: Sequence[tuple[str, bool]], *, controls: Sequence[int] = ()) -> Rendered:
    """Return parts, each a text and whether it is an answer, as one; those at `controls` are not of the data."""
    text, answers, given = "", [], []
    for place, (part, is_answer) in enumerate(parts):
        span = (len(text), len(text) + len(part))
        if is_answer:
            answers.append(span)
        if place not in controls:
            given.append(span)
        text += part
    return Rendered(text, tuple(answers), is_chat=False, given=tuple(given))


def _alpaca(turns: Sequence[Turn], *, end: str) -> Rendered:
    """Return turns as Alpaca's prompt; `end` is put behind each answer that others follow."""
    parts: list[tuple[str, bool]] = []
    ends: list[int] = []
    for turn in turns:
        if turn.role != "assistant":
            parts.append(
                (f"### Instruction:\n{turn.content}\n\n" if turn.role == "user" else f"{turn.content}\n\n", False)
            )
            continue
        parts += [("### Response:\n", False), (turn.content, turn.is_learned)]
        if turn is not turns[-1]:
            ends.append(len(parts))
            parts += [(end, turn.is_learned), ("\n\n", False)]
    return _joined(parts, controls=ends)
