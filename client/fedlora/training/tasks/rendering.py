"""A conversation as the text that a model reads, and which of its characters are answers, from which it learns."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedlora.common.errors import DataError, ModelError
from fedlora.common.fates import ANSWER_CUT_OFF, CUT, NO_ANSWER, TOO_LONG
from fedlora.training.data.examples import Conversation, Turn
from fedlora.training.tasks.template_messages import message_of

_NO_TEMPLATE = (
    "the tokenizer has no chat template, which data of conversations need; set task.chat_template, "
    "or give the data as prompt and completion"
)


@dataclass(frozen=True)
class Rendered:
    """A text to learn from.

    Attributes:
        text: all of it.
        answers: the spans (begin, end) of its characters that are learned.
        is_chat: whether a chat template made it, which sets begin and end tokens itself.
    """

    text: str
    answers: tuple[tuple[int, int], ...]
    is_chat: bool


@dataclass(frozen=True)
class Encoded:
    """A text as tokens, and which of them are learned."""

    token_ids: list[int]
    is_answer: list[bool]


def render(conversation: Conversation, tokenizer: Any, chat_template: str | None = None) -> Rendered:
    """Return the conversation as text.

    A chat is rendered by the chat template, an instruction too where there is one, and else as an Alpaca prompt. What
    is plain is put together as it is.

    Args:
        tokenizer: transformers' own, of the run's model.
        chat_template: Jinja, in place of the tokenizer's.

    Raises:
        ModelError: there is no chat template, or it cannot render this.
    """
    turns = conversation.turns
    has_template = chat_template is not None or bool(getattr(tokenizer, "chat_template", None))
    if conversation.style == "plain":
        return _joined([(turn.content, turn.is_answer) for turn in turns])
    if conversation.style == "instruction" and not has_template:
        end = getattr(tokenizer, "eos_token", None) or ""
        return _joined([part for turn in turns for part in _alpaca(turn, end=None if turn is turns[-1] else end)])
    if not has_template:
        raise ModelError(_NO_TEMPLATE)
    whole = _templated(conversation, tokenizer, chat_template)
    answers = tuple(
        _answer(conversation, place, whole, tokenizer, chat_template)
        for place, turn in enumerate(turns)
        if turn.is_answer
    )
    return Rendered(whole, answers, is_chat=True)


def render_prompt(conversation: Conversation, tokenizer: Any, chat_template: str | None = None) -> Rendered:
    """Return what the model is given to find the conversation's last answer, which is left out."""
    rendered = render(conversation, tokenizer, chat_template)
    return Rendered(rendered.text[: rendered.answers[-1][0]], (), rendered.is_chat)


def encode(rendered: Rendered, tokenizer: Any) -> Encoded:
    """Return the text as tokens, with those at its begin and end that the model is used to."""
    return encode_all([rendered], tokenizer)[0]


def encode_all(texts: Sequence[Rendered], tokenizer: Any) -> list[Encoded]:
    """Return the texts as tokens.

    A token is an answer's if it reaches into an answer. Where no chat template has ended the text, the end token is
    put behind it, and learned if the text ends with an answer.

    Raises:
        ModelError: the tokenizer cannot say which characters a token is of.
    """
    if not tokenizer.is_fast:
        raise ModelError(
            f"the tokenizer, a {type(tokenizer).__name__}, does not say which characters a token is of; "
            "save the model with a fast tokenizer (tokenizer.json)"
        )
    encoded: dict[int, Encoded] = {}
    for is_chat in (True, False):
        places = [place for place, text in enumerate(texts) if text.is_chat == is_chat]
        if not places:
            continue
        found = tokenizer(
            [texts[place].text for place in places], add_special_tokens=not is_chat, return_offsets_mapping=True
        )
        end_id = None if is_chat else tokenizer.eos_token_id
        for place, ids, offsets in zip(places, found["input_ids"], found["offset_mapping"], strict=True):
            encoded[place] = _encoded(texts[place], ids, offsets, end_id=end_id)
    return [encoded[place] for place in range(len(texts))]


def fitted(encoded: Encoded, *, max_length: int, cuts: bool) -> Encoded | None:
    """Return what is left of a text of which at most `max_length` tokens are trained on, None where that is nothing.

    A longer one is cut at its end, or without `cuts` left out; and so is what has no answer behind its first token.
    """
    if len(encoded.token_ids) > max_length:
        if not cuts:
            return None
        encoded = Encoded(encoded.token_ids[:max_length], encoded.is_answer[:max_length])
    return encoded if any(encoded.is_answer[1:]) else None


def fate_of(encoded: Encoded, left: Encoded | None, *, max_length: int, cuts: bool) -> str:
    """Return the code of what becomes of a text of which `fitted` leaves `left`; nothing where all is left."""
    if left is not None:
        return CUT if len(left.token_ids) < len(encoded.token_ids) else ""
    if len(encoded.token_ids) <= max_length:
        return NO_ANSWER
    return ANSWER_CUT_OFF if cuts else TOO_LONG


def _encoded(text: Rendered, ids: list[int], offsets: list[tuple[int, int]], *, end_id: int | None) -> Encoded:
    is_answer = [
        end > begin and any(end > first and begin < last for first, last in text.answers) for begin, end in offsets
    ]
    if end_id is not None and text.answers:
        learns_end = text.answers[-1][1] == len(text.text)
        if not ids or ids[-1] != end_id:
            ids, is_answer = [*ids, end_id], [*is_answer, learns_end]
        else:
            is_answer[-1] = learns_end
    return Encoded(list(ids), is_answer)


def _joined(parts: Sequence[tuple[str, bool]]) -> Rendered:
    text, answers = "", []
    for part, is_answer in parts:
        if is_answer:
            answers.append((len(text), len(text) + len(part)))
        text += part
    return Rendered(text, tuple(answers), is_chat=False)


def _alpaca(turn: Turn, *, end: str | None) -> list[tuple[str, bool]]:
    """Return the parts of a turn; `end` is what an answer that others follow ends with, None at the end."""
    if turn.role == "assistant":
        following = [] if end is None else [(end, turn.is_learned), ("\n\n", False)]
        return [("### Response:\n", False), (turn.content, turn.is_learned), *following]
    return [(f"### Instruction:\n{turn.content}\n\n" if turn.role == "user" else f"{turn.content}\n\n", False)]


def _templated(conversation: Conversation, tokenizer: Any, chat_template: str | None, *, asks: bool = False) -> str:
    messages = [message_of(turn) for turn in conversation.turns]
    try:
        rendered: str = tokenizer.apply_chat_template(
            messages,
            tools=list(conversation.tools) or None,
            chat_template=chat_template,
            tokenize=False,
            add_generation_prompt=asks,
        )
    # A template is a program of its own: Jinja's errors, and whatever it calls.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        roles = ", ".join(turn.role for turn in conversation.turns)
        raise DataError(f"the chat template does not take a conversation of {roles} ({reason})") from error
    return rendered


def _answer(
    conversation: Conversation, place: int, whole: str, tokenizer: Any, chat_template: str | None
) -> tuple[int, int]:
    """Return the span of one answer in the whole text, with what ends the turn.

    Templates may render a turn otherwise once others follow it, such as by leaving out what the model thought; so the
    end is looked for in the whole text by the answer's own words and what followed them when it was the last turn.
    """
    turns = conversation.turns
    prompt = _templated(replace(conversation, turns=turns[:place]), tokenizer, chat_template, asks=True)
    alone = _templated(replace(conversation, turns=turns[: place + 1]), tokenizer, chat_template)
    words = turns[place].content.strip()
    at_alone, at_whole = alone.find(words, len(prompt)), whole.find(words, len(prompt))
    tail = alone[at_alone + len(words) :].rstrip()
    end = at_whole + len(words)
    if not whole.startswith(prompt) or min(at_alone, at_whole) < 0 or not whole.startswith(tail, end):
        raise ModelError(
            f"the chat template renders turn {place + 1} otherwise than it asks for it, so that its answer cannot be "
            "told from the rest; set task.chat_template to one that only appends"
        )
    return len(prompt), end + len(tail)
