"""Examples in memory, and who holds them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

import numpy as np
import numpy.typing as npt

from fedlora.common.spelling import spelled

# Python's own strings where they come from data: in an array of fixed width, one long word widens all others.
Words = npt.NDArray[np.str_ | np.object_]
Images = npt.NDArray[np.uint8]
Row = Mapping[str, object]

_MOST_DIGITS = 100


@dataclass(frozen=True)
class Note:
    """A sentence on what was found in data or done to them; a warning where a user may not have wanted it so."""

    text: str
    is_warning: bool = False


Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True)
class Turn:
    """One contribution to a conversation; what the assistant says is what is learned.

    Attributes:
        is_learned: of the assistant's: whether it is learned, or only read like all others.
        reasoning: of the assistant's: what it thought before it spoke.
        tool_calls: of the assistant's: {"type": "function", "function": {"name": ..., "arguments": {...}}} each.
        name: of who speaks, or of the function whose result this is; "" without.
        tool_call_id: of a tool's: the call that this answers; "" without.
    """

    role: Role
    content: str
    is_learned: bool = field(default=True, kw_only=True)
    reasoning: str = field(default="", kw_only=True)
    tool_calls: tuple[Mapping[str, object], ...] = field(default=(), kw_only=True)
    name: str = field(default="", kw_only=True)
    tool_call_id: str = field(default="", kw_only=True)

    @property
    def is_answer(self) -> bool:
        """Whether it is the assistant's, and learned."""
        return self.role == "assistant" and self.is_learned


@dataclass(frozen=True)
class Conversation:
    """What a language model learns from.

    Attributes:
        turns: at least one, of which at least one is a learned one of the assistant's.
        style: "chat": through the chat template; "instruction": the same, or as an Alpaca prompt where the tokenizer
            has none; "plain": the contents one after another as they are.
        tools: what the assistant may call: {"type": "function", "function": {"name": ..., ...}} each.
    """

    turns: tuple[Turn, ...]
    style: Literal["chat", "instruction", "plain"] = "chat"
    tools: tuple[Mapping[str, object], ...] = ()

    @property
    def last_answer(self) -> Turn:
        """The last turn that is learned."""
        return next(turn for turn in reversed(self.turns) if turn.is_answer)


Inputs = Images | list[str] | list[Conversation] | list[Row]


def inputs_at(inputs: Inputs, indices: npt.NDArray[np.int64]) -> Inputs:
    """Return the inputs at `indices`, in their order."""
    # A list of one kind stays a list of that kind, which its elements' common type does not say.
    return cast(Inputs, [inputs[index] for index in indices]) if isinstance(inputs, list) else inputs[indices]


def words_of(values: Iterable[str]) -> Words:
    """Return words, (n,), as they are spelled, equal ones as one object."""
    as_spelled: dict[str, str] = {}
    spelt: dict[str, str] = {}
    for value in (words := list(values)):
        if value not in spelt:
            word = spelled(value)
            spelt[value] = as_spelled.setdefault(word, word)
    return np.array([spelt[value] for value in words], dtype=np.object_)


@dataclass(frozen=True, eq=False)
class Examples:
    """Labelled examples.

    Attributes:
        inputs: pictures (n, height, width, channels), uint8 with 1 or 3 channels; or n texts, conversations, or rows
            of a table.
        labels: (n,), int64 indices into the run's vocabulary; 0 where it has none.
        groups: (n,), the natural group of each example, such as a language; "" where there is none.
    """

    inputs: Inputs
    labels: npt.NDArray[np.int64]
    groups: Words

    def __post_init__(self) -> None:
        if not len(self.inputs) == len(self.labels) == len(self.groups):
            raise ValueError(f"{len(self.inputs)} inputs, {len(self.labels)} labels, {len(self.groups)} groups")

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> "Examples":
        """Return the examples at `indices`, in their order."""
        rows = np.asarray(indices, dtype=np.int64)
        return Examples(inputs_at(self.inputs, rows), self.labels[rows], self.groups[rows])

    def by_label(self) -> "Examples":
        """Return the same examples ordered by label, in which an evenly spaced sample has all labels in proportion."""
        return self.take(np.argsort(self.labels, kind="stable"))


@dataclass(frozen=True)
class ClientData:
    """What one client holds; `validation`, ordered by label, may be empty, and `training` is not."""

    training: Examples
    validation: Examples


@dataclass(frozen=True)
class FederatedData:
    """All clients' examples and the central held-out set.

    Attributes:
        labels: the run's vocabulary, of two labels at least; () where the task has none.
        clients: by name, in the names' order.
        test: ordered by label; may be empty.
        fingerprint: hex sha256 over the sources' content.
        notes: what was found in them or done to them.
        pixel_range: black and white of the pictures that are deeper than 8 bits; None without any.
    """

    labels: tuple[str, ...]
    clients: Mapping[str, ClientData]
    test: Examples
    fingerprint: str
    notes: tuple[Note, ...] = ()
    pixel_range: tuple[float, float] | None = None


def sorted_vocabulary(labels: Iterable[str]) -> tuple[str, ...]:
    """Return the distinct labels in order: as numbers where all are whole numbers, else as text."""
    distinct = set(labels)
    if all(map(_is_whole_number, distinct)):
        return tuple(sorted(distinct, key=lambda label: (int(label), label)))
    return tuple(sorted(distinct))


def _is_whole_number(label: str) -> bool:
    # Python makes no number of more than a few thousand digits, and so many are no count of anything.
    return label.removeprefix("-").isdecimal() and label.isascii() and len(label) <= _MOST_DIGITS
