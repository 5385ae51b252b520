"""Texts as tokens, in which a special token that the data write out stays the text that it is.

The tokenizer finds the special tokens in a text, and cannot tell those of a chat template from those that somebody
typed. So of a text that has some of the latter, the former are put under names of their own, as long as they were and
of private characters, and a copy of the tokenizer knows these names alone. All else is tokenised as in the whole text.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer

_PRIVATE = range(0xF0000, 0xFFFFE)
_FORGOTTEN = "\U0010fffd"
_NEVER = -1e6  # a logarithm of a probability


class Token(NamedTuple):
    """A token, and which characters of the text it is of; none where it was put before or behind the text."""

    token_id: int
    begin: int
    end: int


@dataclass(frozen=True)
class Occurrence:
    """A token that the tokenizer knows as one, such as `<|end|>`, where a text has it written out."""

    token_id: int
    begin: int
    end: int
    is_special: bool


@dataclass(frozen=True, eq=False)
class SpecialTokens:
    """The tokens that a tokenizer looks for in a text before all else."""

    tokenizer: Any

    @cached_property
    def added(self) -> Mapping[int, Any]:
        """These tokens, by id."""
        found: dict[int, Any] = dict(self.tokenizer.added_tokens_decoder)
        return found

    def occurrences(self, text: str, tokens: Sequence[Token]) -> list[Occurrence]:
        """Return where such tokens are in a text that was tokenised."""
        found = []
        for token_id, begin, end in tokens:
            if end <= begin or token_id not in self.added:
                continue
            written, token = text[begin:end], self.added[token_id]
            # A token may have taken the white space about it; and what is unknown is not written as its token.
            place = written.find(str(token))
            if place < 0 and token_id == self.tokenizer.unk_token_id:
                continue
            place, length = (place, len(str(token))) if place >= 0 else (0, len(written))
            found.append(Occurrence(token_id, begin + place, begin + place + length, token.special))
        return found

    def tokens_of(self, texts: Sequence[str], *, whole: bool) -> list[list[Token]]:
        """Return texts as the tokenizer has them, with `whole` with what it puts before and behind a text."""
        found = self.tokenizer(list(texts), add_special_tokens=whole, return_offsets_mapping=True)
        return [
            [Token(token_id, *span) for token_id, span in zip(ids, spans, strict=True)]
            for ids, spans in zip(found["input_ids"], found["offset_mapping"], strict=True)
        ]

    def tokens_keeping(
        self, texts: Sequence[str], kept: Sequence[Sequence[Occurrence]], *, whole: bool
    ) -> list[list[Token]]:
        """Return texts as the tokenizer has them if it takes the occurrences that are kept for tokens, and no others.

        Args:
            kept: by text, in their order.
            whole: with what it puts before and behind a text.
        """
        used = frozenset("".join(texts))
        free = (chr(code) for code in _PRIVATE if chr(code) not in used)
        names = {
            token_id: next(free) * len(str(self.added[token_id]))
            for token_id in sorted({one.token_id for found in kept for one in found})
        }
        backend, token_ids = self._knowing(names)
        renamed = [_renamed(text, found, names) for text, found in zip(texts, kept, strict=True)]
        return [
            [
                # What is put before and behind a text has the tokenizer's own ids.
                Token(token_ids.get(token_id, token_id) if begin < end else token_id, begin, end)
                for token_id, (begin, end) in zip(one.ids, one.offsets, strict=True)
            ]
            for one in backend.encode_batch(renamed, add_special_tokens=whole)
        ]

    def _knowing(self, names: Mapping[int, str]) -> tuple[Tokenizer, dict[int, int]]:
        """Return a copy that looks for these names in place of all added tokens, and the tokens' ids by the names'."""
        content = json.loads(self.tokenizer.backend_tokenizer.to_str())
        _forget(content["model"], {token["content"] for token in content["added_tokens"] if token["special"]})
        content["added_tokens"] = []
        backend = Tokenizer.from_str(json.dumps(content))
        backend.no_truncation()
        backend.no_padding()
        backend.add_tokens(
            [
                # Found before the text is normalised, which may drop private characters.
                AddedToken(
                    name, lstrip=self.added[token_id].lstrip, rstrip=self.added[token_id].rstrip, normalized=False
                )
                for token_id, name in names.items()
            ]
        )
        ids: dict[str, int] = backend.get_vocab()
        return backend, {ids[name]: token_id for token_id, name in names.items()}


def _forget(model: dict[str, Any], special: Collection[str]) -> None:
    """Take special tokens out of a model's own vocabulary, which may find them in a text as it finds words."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):
        unknown = model.get("unk_id")
        model["vocab"] = [
            [entry, _NEVER if entry in special and place != unknown else score]
            for place, (entry, score) in enumerate(vocabulary)
        ]
        return
    merged = {
        part for merge in model.get("merges", ()) for part in (merge.split(" ") if isinstance(merge, str) else merge)
    }
    kept = {model.get("unk_token"), *merged}
    model["vocab"] = {
        f"{entry}{_FORGOTTEN}" if entry in special and entry not in kept else entry: token_id
        for entry, token_id in vocabulary.items()
    }


def _renamed(text: str, kept: Sequence[Occurrence], names: Mapping[int, str]) -> str:
    """Return a text, as long, with the occurrences under their names."""
    parts, done = [], 0
    for one in kept:
        # One that is written otherwise, by a tokenizer that folds case, stays what it is in length too.
        name = names[one.token_id]
        parts += [text[done : one.begin], name if len(name) == one.end - one.begin else text[one.begin : one.end]]
        done = one.end
    return "".join([*parts, text[done:]])
