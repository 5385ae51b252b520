"""What is known of a round when it is over: one object of `rounds.jsonl`.

The fields are the file's documented format; `CODEC` writes and reads it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedlora.common.aggregation_report import AggregationReport
from fedlora.common.codec import Codec
from fedlora.common.messages import Generated, Score, TrainReceipt
from fedlora.common.same_fields import same_fields


@dataclass(frozen=True)
class Share:
    """How much of a round's weight a client has, of 1.

    Attributes:
        wanted: what its examples or tokens would have it be.
        given: what it is, after the cap of `federation.max_share`.
    """

    wanted: float
    given: float

    @property
    def is_capped(self) -> bool:
        """Whether the client weighs less than it would have; who is not capped gains where another is."""
        return self.given < self.wanted


@dataclass(frozen=True)
class ClientReport:
    """One client's part in a round.

    Attributes:
        num_examples: training examples it holds (its weight, unless weights are uniform).
        num_steps: optimiser steps.
        loss: mean training loss over the steps.
        before, after: scores on its own validation examples before and after training; None without any.
        seconds: by phase: forward, backward, optimizer, training, validation; and `answered`, from the round's begin to
            its answer.
        age: by how many rounds the update was late.
        is_unchanged: whether the update is what the client started from: it has learned nothing.
        is_zero: whether the update does nothing at all: all its products are zero, and all else of it.
        wire_sha256: of the update as it came over the wire, hex; empty in a simulation.
        num_tokens: answer tokens it trained on; 0 where the task has none.
        micro_batch_size: examples of a forward pass, where want of memory made them fewer than asked for; else 0.
        share: how much it weighs; None in files of older versions.
    """

    num_examples: int
    num_steps: int
    loss: float
    before: Score | None
    after: Score | None
    seconds: Mapping[str, float]
    age: int = 0
    is_unchanged: bool = False
    is_zero: bool = False
    wire_sha256: str = ""
    num_tokens: int = 0
    micro_batch_size: int = 0
    share: Share | None = None

    @classmethod
    def of(cls, receipt: TrainReceipt, **added: Any) -> "ClientReport":
        """Return what a receipt says under the names of these fields, and what the server adds or puts in its place."""
        return cls(**same_fields(receipt, cls) | added)


@dataclass(frozen=True)
class HeldOutReport:
    """The new global adapter on the held-out set.

    Attributes:
        overall: the score over all judged examples.
        groups: scores by group (domain, language, site).
        is_complete: whether the whole set was judged, and not the round's sample of it.
        generated: by group, how the model's own answers compare with the given ones, where it was asked for some.
        generated_overall: the same over all groups.
    """

    overall: Score
    groups: Mapping[str, Score]
    is_complete: bool
    generated: Mapping[str, Generated] = field(default_factory=dict)
    generated_overall: Generated | None = None


@dataclass(frozen=True)
class RoundReport:
    """One round. Round 0 is the start: no cohort, no aggregation, the score before training.

    Attributes:
        round: from 0.
        cohort: the clients that were asked.
        clients: by name, those whose update was accepted.
        refused: by name, the others, with the reason: its code, and what was found where that is known.
        aggregation: norms of the error before and after the correction, overall and by layer; None in round 0, and
            under secure sums, where nobody can measure them.
        held_out: None where there is no held-out set.
        bytes_down, bytes_up: adapter bytes to and from the clients, those of interrupted processes included.
        seconds: wall time by phase: training (of the whole cohort), aggregation, evaluation, storing; and
            `interrupted`, what processes that ended before the round was over had spent on it.
        adapter_sha256: of the packed global adapter after this round.
        state_sha256: of what the method keeps for the next round; empty where it keeps nothing.
        validation: of the last round, the new adapter's score on the clients' own validation examples; that of the
            rounds before is in the next round's `before`.
        ended_early: whether this was the last round because validation had not become better, or because privacy
            budgets allow no other.
        epsilon: what the global adapters up to this one tell of one client at most, under privacy.unit = "client". The
            scores, losses and clients here are not noised, and it says nothing of them.
        num_clipped: then by sum of the round, of how many clients the term was clipped; not noised either.
        sums: of secure sums, in a line each, who was in them, how exact they are, and what went otherwise than usual.
    """

    round: int
    cohort: tuple[str, ...]
    clients: Mapping[str, ClientReport]
    refused: Mapping[str, str]
    aggregation: AggregationReport | None
    held_out: HeldOutReport | None
    bytes_down: int
    bytes_up: int
    seconds: Mapping[str, float] = field(default_factory=dict)
    adapter_sha256: str = ""
    validation: Score | None = None
    ended_early: bool = False
    state_sha256: str = ""
    sums: tuple[str, ...] = ()
    epsilon: float | None = None
    num_clipped: tuple[int, ...] = ()

    @property
    def is_out_of_budget(self) -> bool:
        """Whether nobody could train in this round, because all privacy budgets are spent: it changed nothing."""
        return self.ended_early and self.round > 0 and not self.clients

    @property
    def why_ended(self) -> str:
        """In words why the run ended early, if it did."""
        if self.is_out_of_budget:
            return "the clients' privacy budget is spent"
        if self.epsilon is not None:
            return "another round would pass privacy.epsilon"
        return "the validation loss had not become lower"


CODEC = Codec(RoundReport)
