"""A conversation as a chat template takes it, and whether the template shows all that was given to it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from fedlora.common.errors import DataError, FedloraError
from fedlora.training.data.columns import shown
from fedlora.training.data.examples import Conversation, Turn

Render = Callable[[Conversation], str]


def message_of(turn: Turn) -> dict[str, Any]:
    """Return the message of one turn, with the keys of what it has beside its content.

    What was thought goes by all names that templates ask for: reasoning_content, reasoning and thinking.
    """
    message: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.reasoning:
        message |= dict.fromkeys(("reasoning_content", "reasoning", "thinking"), turn.reasoning)
    if turn.tool_calls:
        message["tool_calls"] = list(turn.tool_calls)
    if turn.name:
        message["name"] = turn.name
    if turn.tool_call_id:
        message["tool_call_id"] = turn.tool_call_id
    return message


def shown_notes(conversations: Sequence[Conversation], texts: Sequence[str], render: Render) -> tuple[str, ...]:
    """Return in a line each what the texts may leave out of the conversations, and do.

    Args:
        texts: of the conversations, in their order.
        render: gives a conversation's text.

    Raises:
        DataError: they leave out what they may not: tools, calls, or what was thought before an answer.
    """
    rich = [place for place, conversation in enumerate(conversations) if _has_more_than_text(conversation)]
    for place in rich:
        _require_shown(conversations[place], texts[place], render)
    return _hidden_notes([conversations[place] for place in rich], [texts[place] for place in rich], render)


def _has_more_than_text(conversation: Conversation) -> bool:
    """Return whether there is anything that a template may leave out without a word."""
    return bool(conversation.tools) or any(
        turn.reasoning or turn.tool_calls or turn.name for turn in conversation.turns
    )


def _require_shown(conversation: Conversation, text: str, render: Render) -> None:
    """Check that tools, their calls and what was thought are in the text: that without them it would be another."""
    for name, without in _parts(conversation):
        if _is_hidden(without, text, render):
            about = next((turn.content for turn in conversation.turns if turn.role == "user"), "")
            raise DataError(
                f"the text that the model reads shows nothing of the {name} in the conversation that begins with "
                f"{shown(about)}; set task.chat_template to one that shows them, or leave them aside with data.ignore"
            )


def _hidden_notes(conversations: Sequence[Conversation], texts: Sequence[str], render: Render) -> tuple[str, ...]:
    """Return in a line each what the texts do not show, where they may: earlier thoughts, and names, with counts."""
    num_thoughts = sum(
        bool(turn.reasoning) and turn.reasoning.strip() not in text
        for conversation, text in zip(conversations, texts, strict=True)
        for turn in conversation.turns
    )
    num_names = sum(
        any(turn.name for turn in conversation.turns) and _is_hidden(_without(conversation, name=""), text, render)
        for conversation, text in zip(conversations, texts, strict=True)
    )
    notes = []
    if num_thoughts:
        notes.append(f"the chat template leaves out the reasoning of {num_thoughts:,} earlier turns of the assistant")
    if num_names:
        notes.append(f"the chat template does not show the names of who speaks, in {num_names:,} conversations")
    return tuple(notes)


def _parts(conversation: Conversation) -> Iterator[tuple[str, Conversation]]:
    """Yield what the conversation has beside its texts by name, each with the conversation without it."""
    if conversation.tools:
        yield "tools", replace(conversation, tools=())
    if any(turn.tool_calls for turn in conversation.turns):
        yield "tool_calls", _without(conversation, tool_calls=())
    if any(turn.reasoning for turn in conversation.turns):
        yield "reasoning", _without(conversation, reasoning="")


def _without(conversation: Conversation, **changes: Any) -> Conversation:
    return replace(conversation, turns=tuple(replace(turn, **changes) for turn in conversation.turns))


def _is_hidden(without: Conversation, text: str, render: Render) -> bool:
    try:
        return render(without) == text
    except FedloraError:
        return False  # What fails without it asks for it.
