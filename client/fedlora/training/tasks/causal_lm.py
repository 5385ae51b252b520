"""Supervised fine-tuning of a causal language model: learn the answers, given what stands before them."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fedlora.training.data.examples import Conversation, Examples
from fedlora.training.tasks.encoding import Encoded, encode_all, fate_of, fitted
from fedlora.training.tasks.end_of_turn import EndOfTurn, end_of
from fedlora.training.tasks.generation import generate_answers
from fedlora.training.tasks.rendering import Rendered, prompt_of, render_all
from fedlora.training.tasks.task import Batch
from fedlora.training.tasks.template_messages import shown_notes

_IGNORED = -100

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class PreparedConversations:
    """Conversations as tokens.

    Attributes:
        token_ids: n tensors int64 (num_tokens,).
        is_answer: n tensors bool (num_tokens,), which of them are learned.
        kept: int64 (n,), the places of these among the examples given; the others were too long.
        fates: by code, how many examples are left out or cut.
        notes: what the texts do not show of the conversations, in a line each.
    """

    token_ids: list[Tensor]
    is_answer: list[Tensor]
    kept: np.ndarray
    fates: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True, eq=False)
class LanguageBatch(Batch):
    """A batch whose logits are wanted at some positions only.

    Attributes:
        positions: int64 (num_positions,): where some row's next token is an answer's.
        example_of: int64 (rows, num_positions): which example of the batch each of these is of.
    """

    positions: Tensor
    example_of: Tensor


class CausalLm:
    """Answers, token by token: cross-entropy and the share of tokens that are the likeliest."""

    metric_name = "token accuracy"

    def __init__(
        self,
        tokenizer: Any,
        *,
        max_length: int,
        too_long: str = "drop",
        chat_template: str | None = None,
        system: str = "template",
        special_tokens: str = "text",
        packs: bool = False,
        picks_positions: bool = False,
    ) -> None:
        """Make the task of one model.

        Args:
            tokenizer: transformers' own.
            max_length: tokens of an example.
            too_long: "drop" or "cut" (at the end) for longer ones; one without an answer left is dropped either way.
            chat_template: Jinja, in place of the tokenizer's.
            system: "template", or "merge" for system turns put before the next user turn's text.
            special_tokens: what special tokens that the data write out are, "text" or "control".
            packs: whether a batch's examples stand one after another in rows as long as the longest of them, each with
                positions from 0, in place of one row each with padding. transformers keeps their attention apart.
            picks_positions: whether the model's forward takes `logits_to_keep`, and computes no other logits.
        """
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self.system = system
        self.special_tokens = special_tokens
        self._max_length = max_length
        self._cuts = too_long == "cut"
        self._packs = packs
        self._picks_positions = picks_positions
        self._pad_token_id = _pad_token_id(tokenizer)

    def prepare(self, examples: Examples) -> PreparedConversations:
        """Return the conversations rendered and tokenised, without those that are too long.

        Raises:
            FedloraError: the tokenizer or its chat template cannot render one, or not all of it.
        """
        conversations = cast(Sequence[Conversation], examples.inputs)
        rendered = self._rendered(conversations)
        notes = shown_notes(conversations, [found.text for found in rendered], self._text_of)
        encoded = self._encoded(rendered)
        if num_special := sum(one.has_special for one in encoded):
            logger.info(
                'special tokens written out in %d of %d examples are taken as %s (task.special_tokens = "%s")',
                num_special,
                len(encoded),
                "text" if self.special_tokens == "text" else "control tokens",
                self.special_tokens,
            )
        kept: list[int] = []
        fitting: list[Encoded] = []
        fates: Counter[str] = Counter()
        for place, found in enumerate(encoded):
            left = fitted(found, max_length=self._max_length, cuts=self._cuts)
            if fate := fate_of(found, left, max_length=self._max_length, cuts=self._cuts):
                fates[fate] += 1
            if left is not None:
                kept.append(place)
                fitting.append(left)
        return PreparedConversations(
            [torch.tensor(found.token_ids) for found in fitting],
            [torch.tensor(found.is_answer) for found in fitting],
            np.array(kept, dtype=np.int64),
            dict(fates),
            notes,
        )

    def _text_of(self, conversation: Conversation) -> str:
        return self._rendered([conversation])[0].text

    def references(self, conversations: Sequence[Conversation]) -> list[str]:
        """Return each conversation's last answer as the model would write it: of a call or a thought as rendered."""
        return [self._reference(conversation) for conversation in conversations]

    def _reference(self, conversation: Conversation) -> str:
        answer = conversation.last_answer
        if not answer.tool_calls and not answer.reasoning:
            return answer.content
        (rendered,) = self._rendered([conversation])
        ids = self.tokenizer(rendered.text[slice(*rendered.answers[-1])], add_special_tokens=False)["input_ids"]
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def prompts(self, conversations: Sequence[Conversation]) -> list[list[int]]:
        """Return the tokens of what stands before each conversation's last answer."""
        return self._prompts(self._rendered(conversations))

    def answers(self, model: Any, conversations: Sequence[Conversation], *, max_new_tokens: int) -> list[str]:
        """Return what a model, in evaluation mode, writes in place of each conversation's last answer."""
        rendered = self._rendered(conversations)
        # What a chat template ends a turn with may be another token than the one that ends a text.
        ends = {text.end: end_of(text, self.tokenizer) for text in rendered}
        answers = generate_answers(
            model,
            self.tokenizer,
            self._prompts(rendered),
            max_new_tokens=max_new_tokens,
            stops={token_id for end in ends.values() for token_id in end.token_ids},
            pad_token_id=self._pad_token_id,
        )
        return [_without(ends[text.end], answer) for text, answer in zip(rendered, answers, strict=True)]

    def _rendered(self, conversations: Sequence[Conversation]) -> list[Rendered]:
        return render_all(conversations, self.tokenizer, self.chat_template, system=self.system)

    def _encoded(self, texts: Sequence[Rendered]) -> list[Encoded]:
        return encode_all(texts, self.tokenizer, special_tokens=self.special_tokens)

    def _prompts(self, texts: Sequence[Rendered]) -> list[list[int]]:
        encoded = self._encoded([prompt_of(text) for text in texts])
        return [one.token_ids or [self.tokenizer.bos_token_id or self._pad_token_id] for one in encoded]

    def collate(
        self, prepared: PreparedConversations, indices: np.ndarray, *, device: torch.device | str = "cpu"
    ) -> LanguageBatch:
        """Return the batch of the examples at `indices`: rows (num_rows, longest) of one or, packed, more examples."""
        chosen = [int(index) for index in indices]
        lengths = [len(prepared.token_ids[index]) for index in chosen]
        rows = _rows(lengths) if self._packs else [[place] for place in range(len(chosen))]
        shape = (len(rows), max(lengths))
        input_ids = torch.full(shape, self._pad_token_id)
        following = torch.full(shape, _IGNORED)
        example_of = torch.zeros(shape, dtype=torch.int64)
        # Padding at a row's end has positions from 0 too: an example of its own, that nobody looks at.
        position_ids = torch.arange(shape[1]).repeat(len(rows), 1)
        attention_mask = torch.zeros(shape, dtype=torch.int64)
        for row, places in enumerate(rows):
            begin = 0
            for place in places:
                ids, is_answer = prepared.token_ids[chosen[place]], prepared.is_answer[chosen[place]]
                end = begin + len(ids)
                input_ids[row, begin:end] = ids
                following[row, begin : end - 1] = torch.where(is_answer[1:], ids[1:], _IGNORED)
                example_of[row, begin:end] = place
                attention_mask[row, begin:end] = 1
                position_ids[row, begin:] -= int(position_ids[row, begin])
                begin = end
            if begin < shape[1]:
                position_ids[row, begin:] -= int(position_ids[row, begin])
        positions = (following != _IGNORED).any(0).nonzero().flatten()
        targets = following[:, positions]
        inputs = {"input_ids": input_ids}
        inputs |= {"position_ids": position_ids} if self._packs else {"attention_mask": attention_mask}
        if self._picks_positions:
            inputs["logits_to_keep"] = positions
        is_learned = targets != _IGNORED
        counts = torch.bincount(example_of[:, positions][is_learned], minlength=len(chosen))
        return LanguageBatch(
            {name: tensor.to(device) for name, tensor in inputs.items()},
            targets.to(device),
            num_tokens=int(is_learned.sum()),
            token_counts=counts.to(device),
            positions=positions.to(device),
            example_of=example_of[:, positions].to(device),
        )

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy over the answers' tokens, computed in float32."""
        logits, targets = self._learned(output, batch)
        return functional.cross_entropy(logits.float(), targets)

    def judge(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return cross-entropy and share of right tokens, means over each example's answer tokens; and no label."""
        logits, targets = self._learned(output, batch)
        language_batch = cast(LanguageBatch, batch)
        example_of = language_batch.example_of[batch.targets != _IGNORED]
        counts = cast(Tensor, batch.token_counts)
        losses = functional.cross_entropy(logits.float(), targets, reduction="none")
        is_right = (logits.argmax(-1) == targets).float()
        zeros = torch.zeros(len(counts), device=losses.device)
        return (
            zeros.index_add(0, example_of, losses) / counts,
            zeros.index_add(0, example_of, is_right) / counts,
            torch.zeros_like(counts),
        )

    def _learned(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the logits (num_tokens, vocabulary) at the answers' tokens, and these (num_tokens,)."""
        logits = output if self._picks_positions else output[:, cast(LanguageBatch, batch).positions]
        is_learned = batch.targets != _IGNORED
        return logits[is_learned], batch.targets[is_learned]


def _without(end: EndOfTurn, answer: str) -> str:
    """Return an answer without the text that was learned behind it, before the token that ends it."""
    return answer.removesuffix(end.text).rstrip() if end.text else answer


def _rows(lengths: Sequence[int]) -> list[list[int]]:
    """Return which examples share a row: first fit, the longest first, in rows as long as the longest example."""
    room: list[int] = []
    rows: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: (-lengths[place], place)):
        row = next((row for row, left in enumerate(room) if left >= lengths[place]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(max(lengths))
        rows[row].append(place)
        room[row] -= lengths[place]
    return rows


def _pad_token_id(tokenizer: Any) -> int:
    """Return the id to pad with; it is masked out and never learned, so that any will do."""
    return next((found for found in (tokenizer.pad_token_id, tokenizer.eos_token_id) if found is not None), 0)
