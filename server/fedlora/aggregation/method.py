"""What an aggregation method is: what clients do in a round, and how one layer's updates become one pair A, B."""

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from fedlora.aggregation.updates import CentredUpdate

Factor = Literal["A", "B"]


@dataclass(frozen=True)
class RoundPlan:
    """What clients do in one round.

    Attributes:
        trains: the factors that clients train; the other stays as it came, and does not travel back.
        starts_fresh: whether the round starts from new random A and B = 0, and not from the last round's result.
    """

    trains: tuple[Factor, ...] = ("A", "B")
    starts_fresh: bool = False


BOTH_FACTORS = RoundPlan()


@dataclass(frozen=True, eq=False)
class Combined:
    """One layer after a round.

    Attributes:
        A: (rank, in_features).
        B: (out_features, rank).
        base_change: what is added to the base weight over the layer's scaling, as factors (out_features, n) and
            (n, in_features); None where the base weights stay.
        base_change_rank: the most rank of all changes of the base weight since the run's start together, of which the
            best of that rank is kept; None keeps all of them.
        note: what the reader of the report should know of this layer; empty as a rule.
    """

    A: Tensor
    B: Tensor
    base_change: tuple[Tensor, Tensor] | None = None
    base_change_rank: int | None = None
    note: str = ""


class Method(Protocol):
    """An aggregation method. Implementations are frozen dataclasses whose fields are the settings.

    Everything beside A and B (heads, biases, DoRA's magnitudes) is averaged by `aggregate`, whatever the method.
    """

    @property
    def name(self) -> str:
        """The method's name in run files and reports."""

    @property
    def changes_base(self) -> bool:
        """Whether `combine` moves a part of the update into the base weights."""

    def plan(self, round: int, /) -> RoundPlan:
        """Return what clients do in a round, counted from 1."""

    def combine(self, update: CentredUpdate) -> Combined:
        """Return one layer's global pair, in the update's dtype or float64.

        A docstring states the memory that it takes beyond the means where that grows with the number of clients.
        """

    def fit(self, A: Tensor, B: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """Return the global pair for a client of a smaller rank: A (rank, in_features) and B (out_features, rank)."""
