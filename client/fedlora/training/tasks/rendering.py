"""A conversation as the text that a model reads, and which of its characters are answers, from which it learns."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedlora.common.errors import DataError, ModelError
from fedlora.common.fates import ANSWER_CUT_OFF, CUT, NO_ANSWER, TOO_LONG
from fedlora.training.data.examples import Conversation, Turn
from fedlora.training.tasks.answers import find_answers
from fedlora.training.tasks.chat_template import ChatTemplate
from fedlora.training.tasks.marking import Message, Span
from fedlora.training.tasks.special_tokens import Occurrence, SpecialTokens, Token
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


@dataclass(frozen=True)
class Encoded:
    """A text as tokens, and which of them are learned.

    Attributes:
        has_special: whether the data write out a special token in it.
    """

    token_ids: list[int]
    is_answer: list[bool]
    has_special: bool = False


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


def encode(rendered: Rendered, tokenizer: Any, *, special_tokens: str = "text") -> Encoded:
    """Return the text as tokens, with those at its begin and end that the model is used to."""
    return encode_all([rendered], tokenizer, special_tokens=special_tokens)[0]


def encode_all(texts: Sequence[Rendered], tokenizer: Any, *, special_tokens: str = "text") -> list[Encoded]:
    """Return the texts as tokens.

    A token is an answer's if it reaches into an answer. Where no chat template has ended the text, the end token is
    put behind it, and learned if the text ends with an answer. The begin token that a text begins with is no second
    one.

    Args:
        special_tokens: what a special token is that the data write out: "text", or "control" for what was rendered
            before. The begin token at the begin of a text, and the end token at its end, are these in any case.

    Raises:
        ModelError: the tokenizer cannot say which characters a token is of, or a chat ends with no token.
    """
    if not tokenizer.is_fast:
        raise ModelError(
            f"the tokenizer, a {type(tokenizer).__name__}, does not say which characters a token is of; "
            "save the model with a fast tokenizer (tokenizer.json)"
        )
    encoded: dict[int, Encoded] = {}
    special = SpecialTokens(tokenizer)
    for is_chat in (True, False):
        places = [place for place, text in enumerate(texts) if text.is_chat == is_chat]
        if not places:
            continue
        chosen = [texts[place] for place in places]
        tokens = special.tokens_of([text.text for text in chosen], whole=not is_chat)
        written = [special.occurrences(text.text, found) for text, found in zip(chosen, tokens, strict=True)]
        typed = [_typed(text, found, tokenizer) for text, found in zip(chosen, written, strict=True)]
        if special_tokens == "text" and any(typed):
            having = [row for row, found in enumerate(typed) if found]
            again = special.tokens_keeping(
                [chosen[row].text for row in having],
                [[one for one in written[row] if one not in typed[row]] for row in having],
                whole=not is_chat,
            )
            for row, found in zip(having, again, strict=True):
                tokens[row] = found
        for row, place in enumerate(places):
            ids, is_answer = _ended(texts[place], _begun_once(tokens[row]), tokenizer)
            encoded[place] = Encoded(ids, is_answer, has_special=bool(typed[row]))
    return [encoded[place] for place in range(len(texts))]


def fitted(encoded: Encoded, *, max_length: int, cuts: bool) -> Encoded | None:
    """Return what is left of a text of which at most `max_length` tokens are trained on, None where that is nothing.

    A longer one is cut at its end, or without `cuts` left out; and so is what has no answer behind its first token.
    """
    if len(encoded.token_ids) > max_length:
        if not cuts:
            return None
        encoded = replace(encoded, token_ids=encoded.token_ids[:max_length], is_answer=encoded.is_answer[:max_length])
    return encoded if any(encoded.is_answer[1:]) else None


def fate_of(encoded: Encoded, left: Encoded | None, *, max_length: int, cuts: bool) -> str:
    """Return the code of what becomes of a text of which `fitted` leaves `left`; nothing where all is left."""
    if left is not None:
        return CUT if len(left.token_ids) < len(encoded.token_ids) else ""
    if len(encoded.token_ids) <= max_length:
        return NO_ANSWER
    return ANSWER_CUT_OFF if cuts else TOO_LONG


def _typed(text: Rendered, written: Sequence[Occurrence], tokenizer: Any) -> list[Occurrence]:
    """Return those of the special tokens in a text that the data write out.

    One that is not special to the tokenizer, such as `<think>`, is among them where the template marks turns with it,
    outside of the answers.
    """

    def overlaps(one: Occurrence, spans: Sequence[Span]) -> bool:
        return any(one.begin < end and begin < one.end for begin, end in spans)

    given = [overlaps(one, text.given) for one in written]
    marks = {one.token_id for one, is_given in zip(written, given, strict=True) if not is_given}
    ends_learned = bool(text.answers) and text.answers[-1][1] == len(text.text)
    found = []
    for one, is_given in zip(written, given, strict=True):
        if not is_given or not (one.is_special or (one.token_id in marks and not overlaps(one, text.answers))):
            continue
        is_begin = one.begin == 0 and one.token_id == tokenizer.bos_token_id
        is_end = ends_learned and one.end == len(text.text) and one.token_id == tokenizer.eos_token_id
        if text.is_chat or not (is_begin or is_end):
            found.append(one)
    return found


def _begun_once(tokens: list[Token]) -> list[Token]:
    """Return the tokens without a begin or end token that the text has itself, and the tokenizer put there again."""
    if len(tokens) > 1 and tokens[0].token_id == tokens[1].token_id and tokens[0].end == 0 < tokens[1].end:
        tokens = tokens[1:]
    if len(tokens) > 1 and tokens[-1].token_id == tokens[-2].token_id and tokens[-1].end == 0 < tokens[-2].end:
        tokens = tokens[:-1]
    return tokens


def _ended(text: Rendered, tokens: Sequence[Token], tokenizer: Any) -> tuple[list[int], list[bool]]:
    """Return the tokens' ids and which are learned, with the end token where one has to be put."""
    end_id = tokenizer.eos_token_id
    ids = [one.token_id for one in tokens]
    is_answer = [
        one.end > one.begin and any(one.end > first and one.begin < last for first, last in text.answers)
        for one in tokens
    ]
    if not text.answers:
        # A prompt goes on.
        is_ended = bool(tokens) and not text.is_chat and ids[-1] == end_id and tokens[-1].end == 0
        return (ids[:-1], is_answer[:-1]) if is_ended else (ids, is_answer)
    if text.lacks_end and end_id is None:
        raise ModelError(
            "the chat template puts no token behind an answer, and the tokenizer has no end token (eos_token), so that "
            "the model could not learn to stop; set task.chat_template to one that ends an answer with a token"
        )
    if end_id is not None and (text.lacks_end or not text.is_chat):
        learns_end = text.answers[-1][1] == len(text.text)
        if not ids or ids[-1] != end_id:
            ids, is_answer = [*ids, end_id], [*is_answer, learns_end]
        else:
            is_answer[-1] = learns_end
    return ids, is_answer


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
