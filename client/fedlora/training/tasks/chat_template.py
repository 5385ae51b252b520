"""A chat template: messages as text, with where each message's words are in it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jinja2 import TemplateSyntaxError

from fedlora.common.errors import DataError, ModelError, one_line
from fedlora.training.tasks.marking import Located, Message, located, marked, sought_in

_NO_TEMPLATE = (
    "the tokenizer has no chat template, which data of conversations need; set task.chat_template, "
    "or give the data as prompt and completion"
)


@dataclass(frozen=True, eq=False)
class ChatTemplate:
    """The chat template of a run.

    Attributes:
        tokenizer: transformers' own, of the run's model.
        given: Jinja, in place of the tokenizer's; None for that.
        tools: what the assistant may call, as JSON schemas.
    """

    tokenizer: Any
    given: str | None = None
    tools: tuple[Mapping[str, object], ...] = ()

    @property
    def is_there(self) -> bool:
        """Whether there is one."""
        return self.given is not None or bool(getattr(self.tokenizer, "chat_template", None))

    @cached_property
    def added_tokens(self) -> frozenset[str]:
        """The texts that the tokenizer takes for one token each, such as what ends a turn."""
        return frozenset(str(token) for token in self.tokenizer.added_tokens_decoder.values())

    @cached_property
    def _sought(self) -> tuple[str, ...]:
        return sought_in(self.tokenizer.get_chat_template(self.given))

    def text(self, messages: Sequence[Message], *, asks: bool = False) -> str:
        """Return the messages as text, with `asks` up to where the assistant's next answer begins.

        Raises:
            ModelError: there is no chat template, or it is no Jinja.
            DataError: it does not take these messages.
        """
        if not self.is_there:
            raise ModelError(_NO_TEMPLATE)
        try:
            return self._rendered(messages, asks=asks)
        except TemplateSyntaxError as error:
            raise ModelError(
                f"the chat template is no valid Jinja: line {error.lineno}: {error.message}; mend it, or set "
                "task.chat_template to another"
            ) from error
        # A template is a program of its own: Jinja's errors, and whatever it calls.
        except Exception as error:
            reason = one_line(error, most=200)
            roles = ", ".join(str(message["role"]) for message in messages)
            raise DataError(f"the chat template does not take a conversation of {roles} ({reason})") from error

    def located(self, messages: Sequence[Message], *, asks: bool = False) -> Located | None:
        """Return the messages as text with where each one's words are; None where marks would change the text."""
        text = self.text(messages, asks=asks)
        with_marks = marked(messages, self._sought)
        if with_marks is None:
            return None
        try:
            rendered = self._rendered(with_marks.messages, asks=asks)
        # What it takes without marks, and not with them, cannot be looked into.
        except Exception:
            return None
        found = located(rendered, with_marks)
        return found if found is not None and found.text == text else None

    def _rendered(self, messages: Sequence[Message], *, asks: bool) -> str:
        rendered: str = self.tokenizer.apply_chat_template(
            list(messages),
            tools=list(self.tools) or None,
            chat_template=self.given,
            tokenize=False,
            add_generation_prompt=asks,
        )
        return rendered
