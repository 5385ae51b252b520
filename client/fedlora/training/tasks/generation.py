"""Answers that a language model writes, and how near they are to the given ones."""

import re
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

_BATCH_SIZE = 16


@torch.no_grad()
def generate_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stops: Collection[int],
    pad_token_id: int,
) -> list[str]:
    """Return the likeliest continuation of each prompt, token by token, as text without special tokens.

    Args:
        model: a causal language model in evaluation mode.
        prompts: token ids, at least one each.
        stops: token ids after which an answer is over.
        pad_token_id: what shorter prompts are padded with; it is masked out.
    """
    device = model.get_input_embeddings().weight.device
    answers: list[str] = []
    for begin in range(0, len(prompts), _BATCH_SIZE):
        chosen = [torch.tensor(list(prompt)) for prompt in prompts[begin : begin + _BATCH_SIZE]]
        # To the left, so that all answers begin at the same place.
        input_ids = pad_sequence(chosen, batch_first=True, padding_value=pad_token_id, padding_side="left").to(device)
        mask = pad_sequence([torch.ones_like(ids) for ids in chosen], batch_first=True, padding_side="left").to(device)
        written = model.generate(
            input_ids=input_ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            use_cache=True,
            pad_token_id=pad_token_id,
            eos_token_id=sorted(stops) or None,
            # A checkpoint's own defaults for sampling have no meaning here, and transformers would warn of them.
            temperature=None,
            top_p=None,
            top_k=None,
        )
        for row in written[:, input_ids.shape[1] :].tolist():
            end = next((place for place, token in enumerate(row) if token in stops), len(row))
            answers.append(tokenizer.decode(row[:end], skip_special_tokens=True).strip())
    return answers


def is_exact_match(answer: str, reference: str) -> bool:
    """Return whether two answers are the same but for case, punctuation and white space."""
    return _words(answer) == _words(reference)


def rouge_l(answer: str, reference: str) -> float:
    """Return ROUGE-L (Lin 2004): the F1 of the longest common subsequence of words, from 0 to 1."""
    found, wanted = _words(answer), _words(reference)
    if not found or not wanted:
        return float(found == wanted)
    longest = [0] * (len(wanted) + 1)
    for word in found:
        before = 0
        for place, other in enumerate(wanted, start=1):
            kept = longest[place]
            longest[place] = before + 1 if word == other else max(longest[place], longest[place - 1])
            before = kept
    return 2 * longest[-1] / (len(found) + len(wanted))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
