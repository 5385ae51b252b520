"""What server and clients say to each other.

`messages.proto` is the schema: the same names and fields, and which of them stay with their owner. `schema` maps one to
the other, `wire` and `records` carry them. The types of fields that are no plain ones are the `bounds` of what is read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedlora.common.bounds import (
    Certified,
    Code,
    Entries,
    Factors,
    Fingerprint,
    Fingerprints,
    Key,
    KnownFates,
    Name,
    NumAnswered,
    Number,
    NumExamples,
    NumRounds,
    NumScored,
    NumShards,
    NumSteps,
    NumTokens,
    Part,
    RunId,
    Sealed,
    Seconds,
    SumStep,
    Text,
    TrainedRank,
    Withheld,
    Word,
)
from fedlora.common.fates import fate_line
from fedlora.common.packed_file import Packed

# What a client may say of itself besides an error's code: text stays at the site.
OK = "ok"
LOSS_NOT_FINITE = "loss_not_finite"
OUT_OF_MEMORY = "out_of_memory"
INTERNAL = "internal"
WORKER_DIED = "worker_died"
INTERRUPTED = "interrupted"
PRIVACY_BUDGET = "privacy_budget"
UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Score:
    """Loss and metric over a number of examples: means over the examples, or over their tokens where `num_tokens`."""

    num_examples: NumScored
    loss: Number
    metric: Number
    num_tokens: NumTokens = 0

    @property
    def weight(self) -> int:
        """What the means are over."""
        return self.num_tokens or self.num_examples


@dataclass(frozen=True)
class Generated:
    """Generated answers against the given ones: the share that is equal, and the mean ROUGE-L (F1, 0 to 1)."""

    num_examples: NumAnswered
    exact_match: Part
    rouge_l: Part


@dataclass(frozen=True)
class DescribeRequest:
    """Asks a site who it is; with `rehearse` after one real step of training, which leaves no trace."""

    rehearse: bool = False


@dataclass(frozen=True)
class SiteDescription:
    """A site's answer: its name, what it holds, and what all sites of a run must have in common.

    `lora_rank` is the largest rank that it trains, of any layer. `num_held_out` is the size of the run's held-out set
    where all sites have the same, as in a simulation, or with `has_own_held_out` of the site's own. `fingerprints` are
    of what all sites must share beside the base weights: of a text model its tokenizer, added_tokens, chat_template.
    `adapter_bytes` are what the first adapter takes, packed, and `adapted_bytes` the weights that it is for in float32.
    `step_examples` are those of an optimiser step, where a trainer of the site's own decides on that; else 0.
    """

    client: Name
    num_examples: NumExamples
    num_validation: NumExamples
    num_held_out: NumExamples
    metric_name: Word
    labels: tuple[str, ...]
    base_model: str
    base_model_fingerprint: Fingerprint
    data_fingerprint: Fingerprint
    version: Word
    lora_rank: TrainedRank
    has_own_held_out: bool = False
    fingerprints: Fingerprints = field(default_factory=dict)
    fates: KnownFates = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    adapter_bytes: int = 0
    adapted_bytes: int = 0
    step_examples: int = 0

    def num_used(self, part: str) -> int:
        """Return how many examples of "training", "validation" or "test" are used."""
        return {"training": self.num_examples, "validation": self.num_validation, "test": self.num_held_out}[part]

    def fate_lines(self, *parts: str) -> list[str]:
        """Return in a line for each of these parts how many of its examples are left out or cut, if any are."""
        lines = (fate_line(part, self.fates.get(part, {}), num_used=self.num_used(part)) for part in parts)
        return [line for line in lines if line]


@dataclass(frozen=True)
class InitialiseRequest:
    """Asks for the run's first adapter: fresh LoRA pairs and heads, drawn from the run's seed."""

    seed: int


@dataclass(frozen=True)
class InitialiseReceipt:
    """The first adapter, packed."""

    adapter: Packed = field(default=b"", repr=False)


@dataclass(frozen=True)
class SumTerms:
    """How a round's updates are summed up so that no single one is seen: all members are told the same.

    Attributes:
        members: those that are asked, in order of their names.
        threshold: how many of them it takes to the end.
        repetition: how often the round was begun anew; each time updates are others.
        most_examples: a member weighs by its examples over this number; 0: all weigh alike.
        most_change: a larger change is scaled down to this norm; 0: as large as it is.
        clips: of each sum, what numbers are clipped to.
    """

    members: tuple[Name, ...]
    threshold: int
    repetition: int
    most_examples: NumExamples
    most_change: Number
    clips: tuple[Number, ...]


@dataclass(frozen=True)
class SumKeys:
    """What a member makes known of its keys; see `fedlora.secure_sums.keys.PublicKeys`.

    Attributes:
        identity: by what the others know whose signature it is.
    """

    sealing: Key = field(repr=False)
    masking: tuple[Key, ...] = field(repr=False)
    own_seeds: tuple[Key, ...] = field(repr=False)
    signature: Key = field(repr=False)
    identity: Certified = field(repr=False)


@dataclass(frozen=True)
class TrainRequest:
    """Asks for one round of local training.

    Attributes:
        run: the run's id; `round` counts from 1, `attempt` from 0.
        seed: the run's seed; the client's draws come from (seed, round, client, purpose).
        adapter: the global adapter, packed.
        former: the one that the round before started from, where the run's steps go on with the change since then.
        moments: the federation's, packed, where the clients' optimisers go on with them.
        num_rounds: rounds of the whole run, over which the learning rate's schedule spans.
        validation_examples: at most so many of its own validation examples are judged before and after; at a site of
            its own choice.
        trains: the factors that are trained, "A", "B" or both; a factor that is not does not travel back.
        sums: how the update goes into sums with others', in place of being sent itself; None where it is sent.
    """

    run: RunId
    round: int
    attempt: int
    seed: int
    num_rounds: NumRounds
    validation_examples: int
    adapter: Packed = field(default=b"", repr=False)
    trains: Factors = ("A", "B")
    former: Packed = field(default=b"", repr=False)
    moments: Packed = field(default=b"", repr=False)
    sums: SumTerms | None = None

    @property
    def frozen_factor(self) -> str:
        """The factor that is not trained, nothing where both are."""
        return "".join(factor for factor in "AB" if factor not in self.trains)


@dataclass(frozen=True)
class TrainReceipt:
    """One client's update, or the code of what kept it from one (`status` other than "ok", `adapter` empty).

    Attributes:
        num_examples: examples the client holds for training, as it described itself; its weight in the average.
        num_steps: optimiser steps done.
        loss: mean training loss over the steps, nan when no step was done.
        adapter: the update, packed, with the moments of the client's optimiser beside it where the run shares them.
        before, after: scores on the client's own validation examples, None without any.
        seconds: by phase: forward, backward, optimizer, training (their sum and the rest of the loop), validation.
        withheld: what the site does not tell: "loss" (which is nan then) or "scores" (None).
        wire_bytes: of the adapter, in the journal, where the adapter lies beside it.
        num_tokens: answer tokens that the steps learned from; 0 where the task has none.
        micro_batch_size: examples of a forward pass, where want of memory made them fewer than asked for; else 0.
        wire_sha256: of the update as it came over the wire, hex; empty where it did not come over one.
        keys: for the sums that the update goes into in place of being sent; None where it is sent.
    """

    run: Name
    round: int
    attempt: int
    client: Name
    status: Word
    num_examples: NumExamples = 0
    num_steps: NumSteps = 0
    loss: Number = float("nan")
    before: Score | None = None
    after: Score | None = None
    seconds: Seconds = field(default_factory=dict)
    adapter: Packed = field(default=b"", repr=False)
    withheld: Withheld = ()
    wire_bytes: int = 0
    num_tokens: NumTokens = 0
    micro_batch_size: NumExamples = 0
    wire_sha256: str = ""
    keys: SumKeys | None = None


@dataclass(frozen=True)
class SumRequest:
    """Asks a member for its next step in the sums of a round: seal, and for each sum mask, consent and reveal.

    Attributes:
        index: of the sum.
        keys: seal: of all who take part, by name.
        sealed, digests: mask: what the others have sealed for this member, and digests of it, by name.
        sealers: mask: all who have sealed anything.
        there: consent: who is there.
        consents, vouchers: reveal: signatures under that, and of what those who are there have hidden, by name.
        num_numbers: mask: how many numbers the sum is of.
        adapter: mask: the total of the sum before, packed; nothing for the first.
    """

    run: RunId
    round: int
    repetition: int
    step: SumStep
    index: int = 0
    keys: Entries[Name, SumKeys] = field(default_factory=dict)
    sealed: Entries[Name, Sealed] = field(default_factory=dict)
    there: tuple[Name, ...] = ()
    consents: Entries[Name, Key] = field(default_factory=dict)
    num_numbers: int = 0
    digests: Entries[Name, Sealed] = field(default_factory=dict)
    sealers: tuple[Name, ...] = ()
    vouchers: Entries[Name, Key] = field(default_factory=dict)
    adapter: Packed = field(default=b"", repr=False)


@dataclass(frozen=True)
class SumReceipt:
    """A member's answer.

    Attributes:
        sealed, digests: seal: shares for the others, by name, and digests of them, and of its own.
        consent: its signature under who is there.
        own_seeds, masking: reveal: shares of the secrets of those that are there, and of those that have left, by name.
        voucher: mask: its signature of whom its numbers are hidden with, and of what they come from.
        num_clipped, is_scaled: mask: how many of its numbers were clipped, and whether its change was scaled down.
        accused: in place of an answer: whose keys or shares are not what they should be.
        adapter: mask: its vector for the sum, hidden, packed.
    """

    run: Name
    round: int
    repetition: int
    step: Word
    index: int
    client: Name
    sealed: Entries[Name, Sealed] = field(default_factory=dict, repr=False)
    consent: Key = field(default=b"", repr=False)
    own_seeds: Entries[Name, Key] = field(default_factory=dict, repr=False)
    masking: Entries[Name, Key] = field(default_factory=dict, repr=False)
    num_clipped: NumExamples = 0
    accused: tuple[Name, ...] = ()
    digests: Entries[Name, Sealed] = field(default_factory=dict)
    voucher: Key = field(default=b"", repr=False)
    is_scaled: bool = False
    adapter: Packed = field(default=b"", repr=False)


@dataclass(frozen=True)
class EvaluateRequest:
    """Asks for the score of an adapter on one shard of the held-out set, or on a client's own validation examples.

    A site with a held-out set of its own judges examples of its own choice, and answers for no shard.

    Attributes:
        num_examples: of the whole set, so many are judged, in equal parts by group; None means all.
        shard, num_shards: every num_shards-th of those, from the shard-th on.
        with_predictions: whether to answer the predicted label of every example too.
        num_generated: of the shard's examples, so many are also answered by generated text.
        of_validation: whether the client's validation examples are meant, at most `num_examples` of them.
    """

    run: RunId
    round: int
    num_examples: int | None
    shard: int
    num_shards: NumShards
    with_predictions: bool
    adapter: Packed = field(default=b"", repr=False)
    num_generated: int = 0
    of_validation: bool = False


@dataclass(frozen=True)
class EvaluateReceipt:
    """Scores by group; predicted labels by position in the held-out set, and generated answers, where asked for.

    `answers` are these as text, by position.
    """

    run: Name
    round: int
    shard: int
    groups: Entries[Name, Score]
    predictions: Entries[int, int] = field(default_factory=dict)
    generated: Entries[Name, Generated] = field(default_factory=dict)
    answers: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """An answer in place of a receipt: a typed code, and words only where site and server belong to one person.

    `adapter` is what came beside an answer that the server could not read.
    """

    code: Code
    text: Text = ""
    adapter: Packed = field(default=b"", repr=False)

    def words(self, who: str) -> str:
        """Return what went wrong at `who`, for the end of a run that cannot do without the answer."""
        return self.text or f"{who} answered {self.code}; its own log says why"


def merge_scores(scores: Sequence[Score]) -> Score:
    """Return the score over the examples, or tokens, of all of `scores`, of which there is at least one."""
    total = sum(score.weight for score in scores)
    return Score(
        sum(score.num_examples for score in scores),
        sum(score.loss * score.weight for score in scores) / total,
        sum(score.metric * score.weight for score in scores) / total,
        sum(score.num_tokens for score in scores),
    )


def merge_generated(parts: Sequence[Generated]) -> Generated:
    """Return the means over the examples of all of `parts`, of which there is at least one."""
    total = sum(part.num_examples for part in parts)
    return Generated(
        total,
        sum(part.exact_match * part.num_examples for part in parts) / total,
        sum(part.rouge_l * part.num_examples for part in parts) / total,
    )
