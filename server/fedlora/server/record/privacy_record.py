"""How a run protects its clients, and what that has cost of its budget: the content of `privacy.json`. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fedlora.common.codec import Codec
from fedlora.privacy.accounting import Release, epsilon_of


@dataclass(frozen=True)
class ClientPrivacy:
    """How a run protects each of its clients.

    Attributes:
        noise_multiplier: the noise's standard deviation over the clip.
        clips: by sum of a round, the most that the norm of a client's term may be.
        delta: at which epsilon is told.
        budget: the epsilon that the run ends before; none if None.
        num_rounds: that the budget allows, at most those of the run file.
        linear: the methods whose noise stays as it is in the product; empty where the run's own is one of them.
    """

    noise_multiplier: float
    clips: tuple[float, ...]
    delta: float
    budget: float | None
    num_rounds: int
    linear: str = ""

    @property
    def of_a_round(self) -> Release:
        """What a round releases; of all clients, for its cohort is drawn from the run's seed, which the sites know."""
        return Release(self.noise_multiplier, len(self.clips))

    @property
    def epsilon(self) -> float:
        """What the rounds have at their end, if none of them is done twice."""
        return epsilon_of([self.of_a_round] * self.num_rounds, delta=self.delta)

    def notes(self, num_planned: int) -> tuple[str, ...]:
        """Return what there is to say of it before a run of `num_planned` rounds, in a line each."""
        releases = "one noised sum" if len(self.clips) == 1 else f"{len(self.clips)} noised sums"
        ends = f", after which privacy.epsilon = {self.budget:g} ends the run" if self.num_rounds < num_planned else ""
        product = (
            "privacy: A and B are both noised, and their product B A has the noise of each times the other and that of "
            f"both together, which grows as its square; under {self.linear} a round noises one of them"
        )
        return (
            f"privacy: epsilon {self.epsilon:.2f} of each client at delta {self.delta:g}, by the adapters of "
            f"{self.num_rounds} of {num_planned} rounds{ends}: {releases} a round, noise multiplier "
            f"{self.noise_multiplier:g}; nothing is gained by sampling, for sites know the seed that draws the cohorts",
            "privacy: epsilon is of the global adapters alone, and not of scores, losses and who took part; such a run "
            "is not reproducible, for its noise comes from no seed",
            *([product] if self.linear else []),
        )


@dataclass(frozen=True)
class Spent:
    """What one attempt at a round has cost. It is on disk before its noise is drawn.

    Attributes:
        round: counted from 1; a round that was cut off has several.
        noise_multiplier: of each of its releases.
        count: its releases.
        adapter_sha256: of the adapter that came of it; empty until that is on disk.
        num_clipped: by release, how many clients' terms were longer than their clip; empty until then too.
    """

    round: int
    noise_multiplier: float
    count: int
    adapter_sha256: str = ""
    num_clipped: tuple[int, ...] = ()


@dataclass(frozen=True)
class PrivacyRecord:
    """The ledger of a run.

    Attributes:
        noise_multiplier: of all its releases.
        delta: at which epsilon is told.
        spent: in the order in which it was.
    """

    noise_multiplier: float
    delta: float
    spent: tuple[Spent, ...] = ()

    def with_spent(self, spent: Spent) -> "PrivacyRecord":
        """Return the record with one more attempt."""
        return replace(self, spent=(*self.spent, spent))

    def with_result(self, adapter_sha256: str, num_clipped: Sequence[int]) -> "PrivacyRecord":
        """Return the record with what came of the last attempt."""
        last = replace(self.spent[-1], adapter_sha256=adapter_sha256, num_clipped=tuple(num_clipped))
        return replace(self, spent=(*self.spent[:-1], last))

    def result_of(self, number: int) -> Spent | None:
        """Return the attempt at a round that an adapter came of; None where there is none yet."""
        found = [spent for spent in self.spent if spent.round == number and spent.adapter_sha256]
        return found[-1] if found else None

    def epsilon(self, *further: Release) -> float:
        """Return what is spent so far, and with further releases."""
        spent = [Release(each.noise_multiplier, each.count) for each in self.spent]
        return epsilon_of([*spent, *further], delta=self.delta)


CODEC = Codec(PrivacyRecord)
