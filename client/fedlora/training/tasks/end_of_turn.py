"""What a language model learns to end an answer with, and so what ends one that it writes."""

from dataclasses import dataclass
from typing import Any

from fedlora.common.errors import FedloraError
from fedlora.training.data.examples import Conversation, Turn
from fedlora.training.tasks.chat_template import ChatTemplate
from fedlora.training.tasks.rendering import Rendered, render

_ASKED = Conversation((Turn("user", "question"), Turn("assistant", "answer")))


@dataclass(frozen=True)
class EndOfTurn:
    """The end of an answer.

    Attributes:
        token_ids: of the tokens that end it, any of them: the chat template's own, then the tokenizer's end token.
        text: what the chat template has between the answer and its token; "" as a rule.
    """

    token_ids: tuple[int, ...]
    text: str = ""


def end_of(rendered: Rendered, tokenizer: Any) -> EndOfTurn:
    """Return the end of the last answer of a text."""
    end_id = tokenizer.eos_token_id
    places = [(rendered.end.find(str(token)), -len(str(token)), token_id) for token_id, token in _added(tokenizer)]
    begin, _, own_id = min((found for found in places if found[0] >= 0), default=(len(rendered.end), 0, None))
    token_ids = dict.fromkeys(token_id for token_id in (own_id, end_id) if token_id is not None)
    return EndOfTurn(tuple(token_ids), rendered.end[:begin].strip())


def end_of_chats(tokenizer: Any, chat_template: str | None = None) -> EndOfTurn:
    """Return the end of an answer in chats; without a chat template, or one for a plain question, that of a text."""
    plain = Rendered("", (), is_chat=False)
    if not ChatTemplate(tokenizer, chat_template).is_there:
        return end_of(plain, tokenizer)
    try:
        return end_of(render(_ASKED, tokenizer, chat_template), tokenizer)
    except FedloraError:
        return end_of(plain, tokenizer)


def _added(tokenizer: Any) -> list[tuple[int, Any]]:
    return list(tokenizer.added_tokens_decoder.items())
