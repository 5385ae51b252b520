"""What to know of how conversations become tokens: what is read otherwise than it is written, left out, or added."""

from collections.abc import Iterator, Sequence
from typing import Any

from fedlora.common.config import CausalLm
from fedlora.training.tasks.encoding import Encoded
from fedlora.training.tasks.rendering import Rendered


def rendering_notes(
    rendered: Sequence[Rendered], encoded: Sequence[Encoded], tokenizer: Any, task: CausalLm
) -> tuple[str, ...]:
    """Return sentences on texts and their tokens, each with how many of them it is of."""
    return tuple(_notes(rendered, encoded, tokenizer, task))


def _notes(rendered: Sequence[Rendered], encoded: Sequence[Encoded], tokenizer: Any, task: CausalLm) -> Iterator[str]:
    of = f"of {len(rendered):,} examples"
    if num_special := sum(one.has_special for one in encoded):
        taken = (
            'are taken as text; of data rendered before, set task.special_tokens = "control"'
            if task.special_tokens == "text"
            else 'are taken as control tokens (task.special_tokens = "control")'
        )
        yield f"special tokens written out in {num_special:,} {of} {taken}"
    if parts := [one.left_out for one in rendered if one.left_out]:
        turns = sorted({turn for found in parts for turn in found})
        shown = ", ".join(map(str, turns[:5])) + (" and others" if len(turns) > 5 else "")
        yield (
            f"the chat template leaves out words of turn {shown} in {len(parts):,} {of}; they are neither read nor "
            "learned"
        )
    if num_opened := sum(bool(one.unanswered) for one in rendered):
        opened = next(one.unanswered for one in rendered if one.unanswered)
        yield (
            f"the chat template asks for an answer with {opened!r}, and does not have it before each answer in "
            f"{num_opened:,} {of}; these answers are learned without it"
        )
    end = tokenizer.eos_token
    if num_lacking := sum(one.lacks_end for one in rendered):
        yield (
            f"the chat template ends an answer with no token: the end token {end} is put behind the last answer of "
            f"{num_lacking:,} {of}, and is what the model learns to stop with"
        )
    if end is None and any(not one.is_chat for one in rendered):
        yield "the tokenizer has no end token (eos_token): from plain texts the model learns no end"
