"""A rendered text as tokens, which of them are learned, and what is left of one that is too long."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedlora.common.errors import ModelError
from fedlora.common.fates import ANSWER_CUT_OFF, CUT, NO_ANSWER, TOO_LONG
from fedlora.training.tasks.marking import Span
from fedlora.training.tasks.rendering import Rendered
from fedlora.training.tasks.special_tokens import Occurrence, SpecialTokens, Token


@dataclass(frozen=True)
class Encoded:
    """A text as tokens, and which of them are learned.

    Attributes:
        has_special: whether the data write out a special token in it.
    """

    token_ids: list[int]
    is_answer: list[bool]
    has_special: bool = False


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
