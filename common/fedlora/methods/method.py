"""What an aggregation method is: its settings, what it can do, and how one layer's updates become one pair A, B.

A method is a subclass of `Method`, whose fields are its settings: the section [aggregation] of a run file. Where it
can be, it is a sequence of sums over the clients:

    class Corrected(Method):
        name: ClassVar[str] = "corrected"
        ridge: NonNegative = Field(0.03, description="...")

        def combine(self, layer: Layer) -> Phases:
            ridge = RidgeSolver(layer.mean_A, ridge=self.ridge)
            N = yield lambda client: Product(client.dB, client.dA @ layer.mean_A.T)
            return Combined(layer.mean_A, layer.mean_B + ridge.solve(N))

What it yields is what each client adds, from its own pair and what the earlier sums made known; what comes back is the
sum over the clients, with their weights. The first phase, the means of A and of B, is there already, as `layer`. So
the same method runs over clients that are read one by one, in memory that does not depend on their number, and each
client could as well compute what it adds by itself.

What is loaded to read a run file does not need torch: a method imports it where it computes.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

from pydantic import SerializerFunctionWrapHandler, model_serializer

from fedlora.common.method_names import method_points
from fedlora.common.section import Section

if TYPE_CHECKING:
    from torch import Tensor

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


class ClientPair:
    """One client's pair of a layer, of its own rank, and how far it is from the means: all that it contributes from.

    Attributes:
        A, B: A_i (rank_i, in_features) and B_i (out_features, rank_i), in the layer's scaling.
    """

    def __init__(
        self, A: Tensor, B: Tensor, mean_A: Tensor, owned_B: Tensor, *, space: tuple[Tensor, Tensor] | None = None
    ) -> None:
        """Take a pair beside what `Layer` says of all of them.

        Args:
            space: of the shapes of `mean_A` and `owned_B`, written over by dA and dB; they get memory of their own if
                None.
        """
        self.A, self.B = A, B
        self._mean_A, self._owned_B, self._space = mean_A, owned_B, space

    @cached_property
    def dA(self) -> Tensor:
        """A_i - mean_A, of the rows that the client has."""
        import torch

        rows = slice(self.A.shape[0])
        return torch.sub(self.A, self._mean_A[rows], out=self._space[0][rows] if self._space else None)

    @cached_property
    def dB(self) -> Tensor:
        """B_i - owned_B, of the columns that the client has."""
        import torch

        columns = slice(self.B.shape[1])
        out = self._space[1][:, columns] if self._space else None
        return torch.sub(self.B, self._owned_B[:, columns], out=out)


class Product(NamedTuple):
    """left @ right, which is added to the sum without being formed by itself."""

    left: Tensor
    right: Tensor


# What a client adds to a sum.
Contribution = Callable[[ClientPair], "Tensor | Product"]


class EveryPair(Protocol):
    """All clients' pairs of a layer at once, of which it takes the memory when they are stacked.

    Attributes:
        p: the clients' weights, with sum 1.
        ranks: their ranks.
    """

    @property
    def p(self) -> tuple[float, ...]: ...
    @property
    def ranks(self) -> tuple[int, ...]: ...

    def stacked(self) -> tuple[Tensor, Tensor]:
        """Return the ideal update M = sum_i p_i B_i A_i as P @ Q.

        P = [B_1, .., B_K] (out_features, sum of ranks) and Q = [p_1 A_1; ..; p_K A_K] (sum of ranks, in_features).
        """

    def stacked_deviations(self) -> tuple[Tensor, Tensor]:
        """Return E = M - mean_B @ mean_A as P @ Q, which are [dB_1, .., dB_K] and [p_1 dA_1; ..; p_K dA_K]."""


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer as the first phase leaves it: the means of the clients' A and of their B.

    The ideal update is M = sum_i p_i B_i A_i = mean_B @ mean_A + E with E = sum_i p_i dB_i dA_i: E is what averaging A
    and B separately gets wrong. Where ranks differ, a row of `mean_A` is the mean over the clients that have it, and a
    column of `mean_B` the sum over them, as if it were zero at the others. No tensor includes the layer's scaling.

    Attributes:
        mean_A: (rank, in_features), float32, or float64 where an update is.
        mean_B: (out_features, rank), likewise.
        start_A, start_B: the pair that the round started from, of these shapes; zero where there was none.
        state: what `Combined.state` was after the round before, empty at first.
        pairs: every client's pair, for a method that needs them, see `every_pair`.
    """

    mean_A: Tensor
    mean_B: Tensor
    owned_B: Tensor
    start_A: Tensor
    start_B: Tensor
    base_change: tuple[Tensor, Tensor]
    state: Mapping[str, Tensor] = field(default_factory=dict)
    pairs: EveryPair | None = None

    def every_pair(self) -> EveryPair:
        """Return all clients' pairs at once.

        Raises:
            TypeError: the method does not say that it needs them.
        """
        if self.pairs is None:
            raise TypeError("every_pair() is for a method whose `needs_every_pair` says so; this one gets sums alone")
        return self.pairs


@dataclass(frozen=True, eq=False)
class Combined:
    """One layer after a round.

    Attributes:
        A: (rank, in_features).
        B: (out_features, rank).
        base_change: what is added to the base weight over the layer's scaling, as factors (out_features, n) and
            (n, in_features); None where the base weights stay.
        note: what the reader of the report should know of this layer; empty as a rule.
        state: what the method wants to know of this layer in the next round, tensors by name; they are kept with the
            round, so that a resumed run goes on from the same.
    """

    A: Tensor
    B: Tensor
    base_change: tuple[Tensor, Tensor] | None = None
    note: str = ""
    state: Mapping[str, Tensor] = field(default_factory=dict)


# What a method wants to know in the next round: tensors by layer and name.
MethodState = Mapping[str, Mapping[str, "Tensor"]]

Phases = Generator[Contribution, "Tensor", Combined]


class Method(Section):
    """An aggregation method. Everything beside A and B (heads, biases, DoRA's magnitudes) is averaged, whatever it is.

    Attributes:
        name: in run files, and of its entry point in the group "fedlora.methods".
        title: how reports call it; its name if empty.
        summary: one line for the help.
        changes_base: whether `combine` moves a part of the update into the base weights.
        allows_client_ranks: whether a run's clients may have smaller ranks than the run, as lora.client_ranks says:
            `combine` takes pairs of different ranks then, and what `fit` returns is as good as a smaller rank can be.
            Without it `aggregate` refuses different ranks too, unless `combines_mixed_ranks` says otherwise.
        allows_late_updates: whether an update may count in a later round than its own.
        allows_dora: whether clients may train DoRA's magnitudes; never where it changes the base weights.
    """

    name: ClassVar[str]
    title: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    changes_base: ClassVar[bool] = False
    allows_client_ranks: ClassVar[bool] = True
    allows_late_updates: ClassVar[bool] = True
    allows_dora: ClassVar[bool] = True

    @property
    def needs_every_pair(self) -> bool:
        """Whether it takes every client's pair of a layer into memory at once, and not sums over the clients alone."""
        return False

    @property
    def has_last_change(self) -> bool:
        """Whether what a round trains is what the one before has moved, so that the steps can go on with its change."""
        first, second = self.plan(1), self.plan(2)
        return not second.starts_fresh and first.trains == second.trains

    @property
    def base_change_rank(self) -> int | None:
        """The most rank of all changes of a base weight since the run's start together; None keeps all of them.

        Where there is one, the change is replaced in each round by the best of that rank.
        """
        return None

    @classmethod
    def combines_mixed_ranks(cls) -> bool:
        """Return whether `combine` takes pairs of different ranks: it may, where `fit` is what a run cannot have."""
        return cls.allows_client_ranks

    @classmethod
    def takes_dora(cls) -> bool:
        """Return whether clients may train DoRA's magnitudes, which nobody can move into the base weights."""
        return cls.allows_dora and not cls.changes_base

    def takes_server_optimizer(self) -> bool:
        """Return whether a round's result is a step of the pair from its start, which a server optimiser can take."""
        return not self.changes_base and not self.plan(1).starts_fresh

    def added_base_rank(self, rank: int, num_clients: int) -> int:  # noqa: ARG002 (for who overrides it)
        """Return the rank of what a round adds to the base weight of a layer of this rank."""
        return 0

    def plan(self, round: int, /) -> RoundPlan:  # noqa: ARG002
        """Return what clients do in a round, counted from 1."""
        return RoundPlan()

    def combine(self, layer: Layer) -> Combined | Phases:
        """Return one layer's global pair, in the dtype of its means or float64; or the phases that lead to it."""
        raise NotImplementedError

    def fit(self, A: Tensor, B: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """Return the global pair for a client of a smaller rank: A (rank, in_features) and B (out_features, rank)."""
        from fedlora.algebra.low_rank import truncated

        return truncated(A, B, rank)

    def idle(self) -> Mapping[str, str]:
        """Return why a setting does nothing beside the others, by its name; those that do nothing alone."""
        return {}

    def entries(self) -> Iterator[tuple[str, object, str]]:
        """Yield the method's name, and then each setting with its value and its description."""
        yield "method", self.name, ", ".join(method_points())
        yield from super().entries()

    def __str__(self) -> str:
        return repr(self)

    @model_serializer(mode="wrap")
    def _with_its_name(self, settings: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {"method": self.name, **settings(self)}
