"""A round whose server sees sums alone: its clients are asked step after step, and what comes is the next adapter.

The order of events, each on disk before the next (`sum_journal`):

    train     every client of the round trains, keeps its update, and makes keys known
    seal      whoever has trained gets all keys, and seals shares of its secrets for the others
    then for each sum, the means first and what the method asks for after that:
    mask      each adds its numbers, hidden
    consent   each of those whose numbers came signs who these are
    reveal    each tells its shares of what is to be taken out of the sum

Who leaves before its first numbers came is not in the round. Who leaves after that is in the means, and is taken in
what follows for one that agrees with them: without it the means would have to be summed up again, and the difference
of the two would be its update. Where too few are left, the round is begun anew, and all train by other draws.
"""

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from statistics import median_low
from typing import Any

import torch
from torch import Tensor

from fedlora.adapters import Adapter
from fedlora.common.config import RunConfig
from fedlora.common.errors import AdapterError, RunError
from fedlora.common.messages import PRIVACY_BUDGET, SumTerms, TrainReceipt
from fedlora.common.phases import announce
from fedlora.common.reasons import update_reason
from fedlora.methods import Method, MethodState
from fedlora.secure_sums.adapter_sums import AdapterSums, num_sums, trained_paths
from fedlora.secure_sums.gathering import SumLost
from fedlora.secure_sums.keys import least_threshold
from fedlora.secure_sums.round_terms import (
    LEAST_CLIP,
    MOST_CLIP,
    MOST_REPETITIONS,
    largest_error,
    read,
    share_of,
    unpacked_vector,
)
from fedlora.server.disk.store import RunFolder
from fedlora.server.disk.sum_journal import SumJournal
from fedlora.server.record.draw import Draw
from fedlora.server.record.events import Listener, Noted
from fedlora.server.record.fair_shares import MOST_TIMES_MEDIAN
from fedlora.server.record.round_report import Share
from fedlora.server.rounds.collect import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, Collected, Collector
from fedlora.server.rounds.draw import first_draw
from fedlora.server.rounds.ending import quorum_size
from fedlora.server.rounds.fault import at_fault
from fedlora.server.rounds.federation import Federation
from fedlora.server.rounds.starts import Starts
from fedlora.server.rounds.sum_steps import SumRound, SumSteps

_STATE = "secure_sums"
_LEAST_MEMBERS = 2
# Of one rank they are all.
_ANY_RANK = 1 << 30
# Of the first round; fixed point is then off by less than 2e-8 a client. Later it goes by what the sums were.
_FIRST_CLIP = MOST_CLIP
# A number that one client alone moves is so many times as large as the mean.
_TIMES_THE_MEAN = 64


@dataclass(frozen=True, eq=False)
class Summed:
    """What a round's sums have made.

    Attributes:
        adapter: the method's result.
        state: by what the next round's terms go.
        shares: how much of the weight each client has.
        notes: what is to be known of these sums, for the report.
        trained: when all had trained, by `time.perf_counter`.
    """

    adapter: Adapter
    state: MethodState
    shares: Mapping[str, Share]
    notes: tuple[str, ...]
    trained: float


class SumCollector(Collector):
    """Has the sums of round after round."""

    def __init__(self, config: RunConfig, method: Method, folder: RunFolder, *, listener: Listener) -> None:
        super().__init__(config, folder, by_factors=False, listener=listener)
        self._method = method
        self._steps = SumSteps(config, listener, self._misses)
        # Between whom something is wrong: they are not asked, as long as there are others.
        self._barred: set[str] = set()

    def summed(
        self,
        federation: Federation,
        number: int,
        starts: Starts,
        *,
        needed: Mapping[str, float],
        state: MethodState,
    ) -> tuple[Collected, Summed | None]:
        """Return what the clients of a round have said of themselves, and what their sums have made.

        That is None where no client has any privacy budget left.

        Where sites come and go, a round that too few of them end is begun anew, after a pause.

        Args:
            federation: who takes part.
            number: of the round.
            starts: what it starts from.
            needed: by client, the seconds that its last answer took.
            state: of the round before.

        Raises:
            RunError: too few ended it, and nobody could come who is not there.
        """
        pause, journal, times_anew = FIRST_PAUSE_SECONDS, self._folder.sum_journal(number), count()
        while True:
            times = next(times_anew)
            draw = self._drawn(federation, number, (), times)
            refused: dict[str, str] = {}
            accusations: dict[str, tuple[str, ...]] = {}
            liars: tuple[str, ...] = ()
            try:
                terms = self._terms(federation, draw, journal, starts.whole.adapter, state, is_anew=times > 0)
                round = SumRound(federation, number, draw, terms, journal, refused, accusations)
                return self._sums(round, starts, needed)
            except SumLost as lost:
                liars = lost.at_fault
                was_spent = self._note_spent(federation, refused)
                if len(federation.sites.keys() - federation.spent) < min(_LEAST_MEMBERS, len(federation.sites)):
                    return Collected(cohort=draw.cohort, refused=refused), None
                if was_spent:
                    continue
                reasons = "; ".join(f"{client}: {reason}" for client, reason in sorted(refused.items()))
                what = f"round {number}: {lost}" + (f" ({reasons})" if reasons else "")
                federation.wait_for(f"{what}; begun anew in {pause:.0f} s", seconds=pause, hopeless=what)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            finally:
                self._bar(number, {*at_fault(accusations, among=draw.cohort), *liars})

    def _note_spent(self, federation: Federation, refused: Mapping[str, str]) -> bool:
        """Note who has no privacy budget left, and return whether anybody is among them who was not before."""
        spent = {client for client, why in refused.items() if update_reason(why) == PRIVACY_BUDGET}
        is_new = not spent <= federation.spent
        federation.note_spent(spent)
        return is_new

    def _drawn(self, federation: Federation, number: int, kept: Collection[str], repetition: int) -> Draw:  # noqa: ARG002
        """Return whom to ask: as journaled, or drawn anew of those that are there and able.

        Those between whom something is wrong are left out, as long as enough others are there.
        """
        settings, known = self._config.federation, self._folder.draw(number)
        unable = self._barred | federation.spent
        if known is not None and not repetition and not unable & set(known.cohort):
            return known
        while len(there := federation.expected(settings.patience, without=self._barred | federation.spent)) < 1 or (
            self._barred and len(there) < _LEAST_MEMBERS
        ):
            if self._barred:
                self._note(number, f"too few are there without {', '.join(sorted(self._barred))}, who are asked again")
                self._barred.clear()
                continue
            what = f"round {number}: no site is ready"
            federation.wait_for(what, seconds=0.2, hopeless=what)
        draw = first_draw(
            there,
            size=settings.cohort,
            fraction=settings.fraction,
            oversample=1,
            seed=self._config.run.seed,
            round=number,
        )
        self._folder.write_draw(number, draw)
        return draw

    def _bar(self, number: int, barred: Collection[str]) -> None:
        """Ask these no more: for as long as this process lasts, and there are others."""
        if new := sorted(set(barred) - self._barred):
            self._barred |= set(new)
            self._note(number, f"the keys or shares of {', '.join(new)} are wrong: without them from here on")

    def _note(self, number: int, what: str) -> None:
        self._listener(Noted((f"round {number}: {what}",)))

    def _terms(
        self,
        federation: Federation,
        draw: Draw,
        journal: SumJournal,
        start: Adapter,
        state: MethodState,
        *,
        is_anew: bool,
    ) -> SumTerms:
        """Return what all members are told: as journaled, or journaled before any of them is asked.

        Raises:
            SumLost: they are too few for a sum, or for the run's quorum.
        """
        known, members = journal.terms(), tuple(sorted(draw.cohort))
        has_begun = journal.roster() is not None
        if known is not None and known.members == members and not (is_anew and has_begun):
            return known
        if len(members) < _LEAST_MEMBERS:
            raise SumLost(f"{len(members)} client takes part; a sum takes {_LEAST_MEMBERS}, better three")
        repetition = 0 if known is None else known.repetition + 1
        if repetition > MOST_REPETITIONS:
            raise RunError(
                f"the round was begun anew {MOST_REPETITIONS} times, and no sum of its updates could be had; see above "
                "why, and mend that, or start a new run from adapter/ (federation.start_from)"
            )
        least = quorum_size(draw.num_wanted, self._config.federation.quorum)
        kept = state.get(_STATE, {})
        clips = kept.get("clips", torch.full((num_sums(self._method, start),), _FIRST_CLIP))
        terms = SumTerms(
            members=members,
            threshold=max(least_threshold(len(members)), least),
            repetition=repetition,
            most_examples=self._most_examples(federation, members),
            most_change=self._config.federation.norm_limit * float(kept.get("largest_change", 0.0)),
            clips=tuple(clips.tolist()),
        )
        journal.begin(terms)
        return terms

    def _most_examples(self, federation: Federation, members: Sequence[str]) -> int:
        """Return by how many examples a client weighs at most, 0 where all weigh alike."""
        if self._config.federation.weighting == "uniform":
            return 0
        numbers = sorted(federation.sites[member].num_examples for member in members)
        return min(numbers[-1], MOST_TIMES_MEDIAN * median_low(numbers))

    def _sums(self, round: SumRound, starts: Starts, needed: Mapping[str, float]) -> tuple[Collected, Summed]:
        """Have a round's sums, step after step.

        Raises:
            SumLost: too few are left, or somebody has lied.
        """
        start = starts.whole
        deadline = self._deadline(round.federation, round.draw.cohort, needed, round.answered)
        self._steps.train(round, replace(start.request, sums=round.terms), deadline=deadline)
        round.bytes_down += sum(starts.bytes_down(client, _ANY_RANK) for client in round.draw.cohort)
        trained = time.perf_counter()
        announce("aggregate")
        there, total = self._steps.seal(round), b""
        sums = AdapterSums(self._method, start.adapter, only=trained_paths(start.adapter, start.request.trains))
        members: list[Sequence[str]] = []
        totals: list[Tensor] = []
        for index in range(len(round.terms.clips)):
            size = sum(sums.sizes())
            there, total = self._steps.sum(round, index, size, there, total)
            members.append(there)
            totals.append(read(unpacked_vector(total, size), round.terms, index=index))
            try:
                sums.take(totals[-1])
            except (AdapterError, RuntimeError) as error:
                raise SumLost(f"no adapter comes of the sums: {error}") from error
        self._note_spent(round.federation, round.refused)
        receipts = {client: round.receipts[client] for client in members[0]}
        summed = Summed(
            sums.result(),
            _state_after(totals, sums.weight, num_members=len(round.terms.members)),
            _shares(round.terms, receipts),
            self._notes(round, members, sums.weight),
            trained,
        )
        return _collected(round, receipts), summed

    def _notes(self, round: SumRound, members: Sequence[Sequence[str]], weight: float) -> tuple[str, ...]:
        """Return what is to be known of a round's sums, and tell at once what went otherwise than usual."""
        terms, unusual = round.terms, []
        for index, there in enumerate(members[1:], start=2):
            if left := sorted(set(members[0]) - set(there)):
                unusual.append(f"{', '.join(left)} left before sum {index}, and counts in it as one that agrees")
        if terms.repetition:
            unusual.append(f"begun anew, for the {terms.repetition}. time")
        if round.num_clipped:
            unusual.append(f"{round.num_clipped:,} numbers were clipped")
        if round.scaled:
            scaled = ", ".join(sorted(round.scaled))
            unusual.append(f"the changes of {scaled} were scaled down to {terms.most_change:.3g}")
        for what in unusual:
            self._note(round.number, what)
        off = max(largest_error(terms, index=index, weight=weight) for index in range(len(members)))
        usual = (
            f"{len(members[0])} of {len(terms.members)} clients in {len(members)} sums, {terms.threshold} needed, a "
            f"mean off by {off:.1g} at most"
        )
        return usual, *unusual


def _collected(round: SumRound, receipts: Mapping[str, TrainReceipt]) -> Collected:
    trained = dict.fromkeys(round.receipts, "away")
    return Collected(
        cohort=tuple(round.draw.cohort),
        receipts=receipts,
        refused={client: why for client, why in {**trained, **round.refused}.items() if client not in receipts},
        answered={client: round.answered[client] for client in receipts if client in round.answered},
        bytes_down=round.bytes_down,
        bytes_up=round.bytes_up,
    )


def _shares(terms: SumTerms, receipts: Mapping[str, TrainReceipt]) -> dict[str, Share]:
    """Return how much of the weight each client has, and would have without the cap."""
    sizes = {client: receipt.num_examples if terms.most_examples else 1 for client, receipt in receipts.items()}
    given = {client: share_of(terms, receipt.num_examples) for client, receipt in receipts.items()}
    of_sizes, of_given = sum(sizes.values()), sum(given.values())
    return {client: Share(sizes[client] / of_sizes, weight / of_given) for client, weight in given.items()}


def _state_after(totals: Sequence[Tensor], weight: float, *, num_members: int) -> dict[str, dict[str, Any]]:
    """Return by what the next round's terms go: to what numbers are clipped, and how large changes have been.

    A clip is a power of two far above the largest mean; at least 1 in the first sum, of which each client's own share
    is a number.
    """
    change, times = totals[0][:-1], max(_TIMES_THE_MEAN, 4 * num_members)
    clips = [_clip(change, weight, times, least=1.0)]
    clips += [_clip(total, weight, times, least=LEAST_CLIP) for total in totals[1:]]
    largest = float(change.double().norm()) / weight
    return {_STATE: {"clips": torch.tensor(clips), "largest_change": torch.tensor(largest)}}


def _clip(total: Tensor, weight: float, times: int, *, least: float) -> float:
    largest = times * float(total.abs().max()) / weight if total.numel() else 0.0
    if largest == 0:
        return _FIRST_CLIP
    return min(MOST_CLIP, max(least, 2.0 ** math.ceil(math.log2(largest))))
