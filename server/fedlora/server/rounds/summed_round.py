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

import logging
import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import count
from statistics import median_low
from typing import Any

import torch
from torch import Tensor

from fedlora.adapters import Adapter
from fedlora.common.config import RunConfig
from fedlora.common.messages import Failure, SumReceipt, SumRequest, SumTerms, TrainReceipt, TrainRequest
from fedlora.common.packed_file import packed_bytes, wire_bytes
from fedlora.common.phases import announce
from fedlora.methods import Method, MethodState
from fedlora.secure_sums.adapter_sums import AdapterSums, num_sums
from fedlora.secure_sums.gathering import Gathering, SumLost
from fedlora.secure_sums.keys import PublicKeys
from fedlora.secure_sums.member import Revealed
from fedlora.secure_sums.round_terms import largest_error, packed_vector, plan_of, read, share_of, unpacked_vector
from fedlora.server.disk.store import RunFolder
from fedlora.server.disk.sum_journal import SumJournal
from fedlora.server.record.draw import Draw
from fedlora.server.record.events import Listener, Noted, RoundStarted, UpdateArrived
from fedlora.server.record.fair_shares import MOST_TIMES_MEDIAN
from fedlora.server.record.round_report import Share
from fedlora.server.rounds.admission import Refusal, receipt_refusal
from fedlora.server.rounds.believable import believable_update
from fedlora.server.rounds.collect import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, Collected, Collector
from fedlora.server.rounds.ending import is_over, quorum_size, why_missing
from fedlora.server.rounds.federation import Federation
from fedlora.server.rounds.inquiry import Addressed, Inquiry, never
from fedlora.server.rounds.starts import Starts

logger = logging.getLogger(__name__)

_STATE = "secure_sums"
_LEAST_MEMBERS = 2
# Of one rank they are all.
_ANY_RANK = 1 << 30
# Of the first round; fixed point is then off by less than 2e-8 a client. Later it goes by what the sums were.
_FIRST_CLIP = 64.0
_TIMES_THE_LARGEST = 64.0
_LEAST_CLIP, _MOST_CLIP = 2.0**-8, 2.0**20


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


@dataclass
class _Round:
    """A round while its sums go on."""

    federation: Federation
    number: int
    draw: Draw
    terms: SumTerms
    journal: SumJournal
    refused: dict[str, str]
    accusations: dict[str, tuple[str, ...]]
    began: float = field(default_factory=time.monotonic)
    receipts: dict[str, TrainReceipt] = field(default_factory=dict)
    answered: dict[str, float] = field(default_factory=dict)
    bytes_down: int = 0
    bytes_up: int = 0
    num_clipped: int = 0

    @cached_property
    def gathering(self) -> Gathering:
        """The server's part."""
        return Gathering(plan_of(self.federation.run_id, self.number, self.terms))


class SumCollector(Collector):
    """Has the sums of round after round."""

    def __init__(self, config: RunConfig, method: Method, folder: RunFolder, *, listener: Listener) -> None:
        super().__init__(config, folder, by_factors=False, listener=listener)
        self._method = method

    def summed(
        self,
        federation: Federation,
        number: int,
        starts: Starts,
        *,
        needed: Mapping[str, float],
        state: MethodState,
    ) -> tuple[Collected, Summed]:
        """Return a round's result, and what its clients have said of themselves.

        Where sites come and go, a round that too few of them end is begun anew, after a pause.

        Args:
            needed: by client, the seconds that its last answer took.
            state: of the round before.

        Raises:
            RunError: too few ended it, and nobody could come who is not there.
        """
        pause, journal = FIRST_PAUSE_SECONDS, self._folder.sum_journal(number)
        for time_again in count():
            draw = self._drawn(federation, number, (), time_again)
            refused: dict[str, str] = {}
            accusations: dict[str, tuple[str, ...]] = {}
            try:
                terms = self._terms(federation, draw, journal, starts.whole.adapter, state, is_anew=time_again > 0)
                round = _Round(federation, number, draw, terms, journal, refused, accusations)
                return self._sums(round, starts, needed)
            except SumLost as lost:
                reasons = "; ".join(f"{client}: {reason}" for client, reason in sorted(refused.items()))
                what = f"round {number}: {lost}" + (f" ({reasons})" if reasons else "")
                federation.wait_for(f"{what}; begun anew in {pause:.0f} s", seconds=pause, hopeless=what)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            finally:
                self._bar(number, draw, accusations)
        raise AssertionError  # for the type checker: the count has no end

    def _bar(self, number: int, draw: Draw, accusations: Mapping[str, Sequence[str]]) -> None:
        """Ask those no more between whom something is wrong: one of whom most say so, or else both of a pair.

        Of two that contradict each other one lies, and nobody can tell which.
        """
        for accused in sorted({name for names in accusations.values() for name in names}):
            accusers = {name for name, names in accusations.items() if accused in names} - {accused}
            is_sure = 2 * len(accusers) >= len(draw.cohort)
            barred = {accused} if is_sure else {accused, *accusers}
            if barred <= self._barred:
                continue
            self._barred |= barred
            self._listener(
                Noted(
                    (
                        f"round {number}: {', '.join(sorted(accusers))} cannot work with {accused} in secure sums: "
                        f"without {', '.join(sorted(barred))} from here on, until the server starts again",
                    )
                )
            )

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
            SumLost: one client alone has nobody to hide among.
        """
        known, members = journal.terms(), tuple(sorted(draw.cohort))
        has_begun = journal.roster() is not None
        if known is not None and known.members == members and not (is_anew and has_begun):
            return known
        if len(members) < _LEAST_MEMBERS:
            raise SumLost(f"{len(members)} client takes part; a sum takes {_LEAST_MEMBERS}, better three")
        kept = state.get(_STATE, {})
        clips = kept.get("clips", torch.full((num_sums(self._method, start),), _FIRST_CLIP))
        terms = SumTerms(
            members=members,
            threshold=max(len(members) // 2 + 1, quorum_size(draw.num_wanted, self._config.federation.quorum)),
            repetition=0 if known is None else known.repetition + has_begun,
            most_examples=self._most_examples(federation, members),
            most_change=float(kept.get("most_change", 0.0)),
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

    def _sums(self, round: _Round, starts: Starts, needed: Mapping[str, float]) -> tuple[Collected, Summed]:
        """Have a round's sums, step after step.

        Raises:
            SumLost: too few are left.
        """
        self._train(round, starts, needed)
        trained = time.perf_counter()
        announce("aggregate")
        sealed = self._seal(round)
        sums = AdapterSums(self._method, starts.whole.adapter)
        there, notes, clips = tuple(sorted(sealed)), [], []
        most_change = 0.0
        total: bytes = b""
        for index in range(len(round.terms.clips)):
            size = sum(sums.sizes())
            there, total = self._sum(round, index, size, there, total)
            found = read(unpacked_vector(total, size), round.terms, index=index)
            sums.take(found)
            if not index:
                in_means = there
                change = found[:-1] / sums.weight
                most_change = self._config.federation.norm_limit * float(change.double().norm())
            left = sorted(set(in_means) - set(there))
            if left:
                notes.append(f"{', '.join(left)} left before sum {index + 1}, and counts in it as one that agrees")
            clips.append(
                _clip_after(found[:-1] if not index else found, sums.weight, least=_LEAST_CLIP if index else 1.0)
            )
        if round.terms.repetition:
            notes.append(f"the round was begun anew {round.terms.repetition} times")
        if round.num_clipped:
            notes.append(f"{round.num_clipped:,} numbers were clipped")
        if notes:
            self._listener(Noted(tuple(f"round {round.number}: {note}" for note in notes)))
        off = max(largest_error(round.terms, index=index, weight=sums.weight) for index in range(len(clips)))
        notes.insert(
            0,
            f"{len(in_means)} of {len(round.terms.members)} clients in {len(clips)} sums, {round.terms.threshold} "
            f"needed, a mean off by {off:.1g} at most",
        )
        receipts = {client: round.receipts[client] for client in in_means}
        for client in round.receipts.keys() - receipts.keys():
            round.refused.setdefault(client, "away")
        collected = Collected(
            cohort=tuple(round.draw.cohort),
            receipts=receipts,
            refused=round.refused,
            answered={client: round.answered[client] for client in receipts if client in round.answered},
            bytes_down=round.bytes_down,
            bytes_up=round.bytes_up,
        )
        state = {_STATE: {"clips": torch.tensor(clips), "most_change": torch.tensor(most_change)}}
        return collected, Summed(sums.result(), state, _shares(round.terms, receipts), tuple(notes), trained)

    def _train(self, round: _Round, starts: Starts, needed: Mapping[str, float]) -> None:
        """Have the clients train, those whose receipt is not there, until the round waits for nobody more.

        Raises:
            SumLost: too few have.
        """
        federation, draw, journal = round.federation, round.draw, round.journal
        round.receipts.update(journal.answers(TrainReceipt, "train"))
        federation.go_on()
        self._listener(RoundStarted(round.number, draw.cohort, tuple(round.receipts)))
        request = replace(starts.whole.request, sums=round.terms)
        missing = [client for client in draw.cohort if client not in round.receipts]
        asked = missing if journal.roster() is None else []
        requests = {client: Addressed(client, lambda attempt: replace(request, attempt=attempt)) for client in asked}
        deadline = self._deadline(federation, draw.cohort, needed, round.answered)
        inquiry = Inquiry(federation.link, requests, expected=TrainReceipt, deadline=deadline)

        def over(waiting: Collection[str]) -> bool:
            away = map(federation.seconds_away, waiting)
            patience = self._config.federation.patience
            return is_over(len(round.receipts), draw.num_wanted, seconds_away=away, patience=patience)

        for answer in inquiry.answers(over):
            client, reason = answer.key, self._take_receipt(round, answer.key, answer.content, request, answer.attempt)
            round.answered[client] = time.monotonic() - round.began
            federation.link.acknowledge(answer.reply_id, reason.partition(":")[0])
            loss = answer.content.loss if isinstance(answer.content, TrainReceipt) else math.nan
            self._listener(UpdateArrived(round.number, client, reason, loss))
        self._misses.note(answered=requests.keys() - inquiry.waiting, missed=inquiry.waiting - inquiry.in_time)
        for client in inquiry.waiting:
            round.refused[client] = why_missing(
                len(round.receipts), draw.num_wanted, seconds_away=federation.seconds_away(client)
            )
        inquiry.withdraw()
        round.bytes_down += sum(starts.bytes_down(client, _ANY_RANK) for client in draw.cohort)

    def _take_receipt(
        self, round: _Round, client: str, content: TrainReceipt | Failure, request: TrainRequest, attempt: int
    ) -> str:
        """Take a training's receipt, and return the reason where it does not count."""
        if isinstance(content, Failure):
            refusal = str(Refusal(content.code, content.text))
        else:
            asked, site = replace(request, attempt=attempt), round.federation.sites[client]
            found = receipt_refusal(content, request=asked, client=client, num_examples=site.num_examples)
            keys = content.keys
            if found is None and (keys is None or len(keys.masking) != len(round.terms.clips)):
                found = Refusal("sums_refused", "no keys for the round's sums came with it")
            if found is None:
                is_own_task = self._config.task.kind == "own"
                receipt, fault = believable_update(content, request=asked, site=site, is_own_task=is_own_task)
                if fault:
                    logger.warning("round %d: a score of %s does not count: %s", round.number, client, fault)
                announce("accept")
                round.journal.write("train", 0, receipt)
                round.receipts[client] = receipt
                round.refused.pop(client, None)
                return ""
            refusal = str(found)
        round.refused[client] = refusal
        return refusal

    def _seal(self, round: _Round) -> Mapping[str, SumReceipt]:
        """Hand on the keys of all who have trained, and have the shares that each has sealed for the others.

        Raises:
            SumLost: too few have.
        """
        journal = round.journal
        roster = journal.roster() or tuple(sorted(round.receipts))
        keys = {name: round.receipts[name].keys for name in roster if name in round.receipts}
        public = {name: each for name, each in keys.items() if each is not None}
        for name, each in public.items():
            round.gathering.add_keys(PublicKeys(name, each.sealing, each.masking, each.own_seeds, each.signature))
        round.gathering.roster()
        journal.write_roster(roster)
        sealed = self._step(round, SumRequest(**self._about(round), step="seal", keys=public), to=roster)
        for name, receipt in sealed.items():
            try:
                round.gathering.add_sealed(name, receipt.sealed)
            except ValueError as error:
                round.refused[name] = f"sums_refused: {error}"
        return {name: receipt for name, receipt in sealed.items() if name not in round.refused}

    def _sum(
        self, round: _Round, index: int, size: int, among: Sequence[str], former: bytes
    ) -> tuple[tuple[str, ...], bytes]:
        """Return who is in a sum, and its total.

        Args:
            round: the round.
            index: of the sum.
            size: how many numbers it is of.
            among: who was in the sum before.
            former: its total; nothing for the first.

        Raises:
            SumLost: too few are left, or not all of those of whom the others have been told.
        """
        journal, gathering = round.journal, round.gathering
        known, told = journal.total(index), journal.there(index)
        if known is not None and told is not None:
            return told, known
        self._mask(round, index, size, told or among, former)
        there = gathering.there(index)
        if told is not None and there != told:
            raise SumLost(f"{', '.join(sorted(set(told) - set(there)))} did not come back, and was said to be in a sum")
        journal.write_there(index, there)
        about = self._about(round) | {"index": index}
        consents = self._step(round, SumRequest(**about, step="consent", there=there), to=there)
        signed = {name: receipt.consent for name, receipt in consents.items()}
        revealed = self._step(round, SumRequest(**about, step="reveal", consents=signed), to=tuple(signed))
        for name, receipt in revealed.items():
            gathering.add_revealed(index, name, Revealed(receipt.own_seeds, receipt.masking))
        total = packed_vector(gathering.total(index))
        journal.write_total(index, total)
        return there, total

    def _mask(self, round: _Round, index: int, size: int, to: Sequence[str], former: bytes) -> None:
        """Have the hidden numbers of a sum."""
        about = self._about(round) | {"index": index}

        def request_for(name: str) -> SumRequest:
            sealed = round.gathering.sealed_for(name)
            return SumRequest(**about, step="mask", sealed=sealed, num_numbers=size, adapter=former)

        requests = {name: request_for(name) for name in to}
        for name, receipt in self._asked(round, requests):
            try:
                vector = unpacked_vector(packed_bytes(receipt.adapter), size)
                round.gathering.add_masked(index, name, vector)
            except ValueError as error:
                round.refused[name] = f"sums_refused: {error}"
                continue
            round.num_clipped += receipt.num_clipped
            round.bytes_up += wire_bytes(receipt.adapter)
        round.bytes_down += len(former) * len(to)

    def _step(self, round: _Round, request: SumRequest, *, to: Sequence[str]) -> dict[str, SumReceipt]:
        """Return the answers to a step, by member: those that are there already, and the others as they come."""
        found = round.journal.answers(SumReceipt, request.step, request.index)
        for name, receipt in self._asked(round, {name: request for name in to if name not in found}):
            round.journal.write(request.step, request.index, receipt)
            found[name] = receipt
        return {name: receipt for name, receipt in found.items() if name in to}

    def _asked(self, round: _Round, requests: Mapping[str, SumRequest]) -> Iterator[tuple[str, SumReceipt]]:
        """Yield the members' answers as they come; why others have none is noted."""
        federation = round.federation
        for step in {f"{request.step} {request.index}" for request in requests.values()}:
            announce(step)
        addressed = {name: Addressed(name, partial(_same, own)) for name, own in requests.items()}
        deadline = never if federation.link.are_fixed else federation.answer_seconds
        inquiry = Inquiry(federation.link, addressed, expected=SumReceipt, deadline=deadline)
        patience = self._config.federation.patience

        def over(waiting: Collection[str]) -> bool:
            return all(federation.seconds_away(name) > patience for name in waiting)

        for answer in inquiry.answers(over):
            content, asked = answer.content, requests[answer.key]
            if isinstance(content, Failure):
                round.refused[answer.key] = str(Refusal(content.code, content.text))
            elif not _answers(content, asked, answer.key):
                round.refused[answer.key] = "wrong_request"
            elif content.accused:
                round.refused[answer.key] = f"sums_refused: it says that {', '.join(content.accused)} are at fault"
                round.accusations[answer.key] = content.accused
            else:
                yield answer.key, content
        for name in inquiry.waiting:
            round.refused[name] = "away" if federation.seconds_away(name) > 0 else "late"
        inquiry.withdraw()

    def _about(self, round: _Round) -> dict[str, Any]:
        return {
            "run": round.federation.run_id,
            "round": round.number,
            "repetition": round.terms.repetition,
        }


def _same(request: SumRequest, _attempt: int) -> SumRequest:
    return request


def _answers(receipt: SumReceipt, request: SumRequest, name: str) -> bool:
    """Return whether a receipt is that of a request."""
    of = (receipt.run, receipt.round, receipt.repetition, receipt.step, receipt.index, receipt.client)
    return of == (request.run, request.round, request.repetition, request.step, request.index, name)


def _shares(terms: SumTerms, receipts: Mapping[str, TrainReceipt]) -> dict[str, Share]:
    given = {client: share_of(terms, receipt.num_examples) for client, receipt in receipts.items()}
    wanted = (
        given
        if not terms.most_examples
        else {client: float(receipt.num_examples) for client, receipt in receipts.items()}
    )
    return {
        client: Share(wanted[client] / sum(wanted.values()), weight / sum(given.values()))
        for client, weight in given.items()
    }


def _clip_after(total: Tensor, weight: float, *, least: float) -> float:
    """Return to what numbers of the next round's sum are clipped: a power of two far above the largest mean of this.

    At least to 1 in the first, of which each client's own share is a number.
    """
    largest = _TIMES_THE_LARGEST * float(total.abs().max()) / weight if total.numel() else 0.0
    if largest == 0:
        return _FIRST_CLIP
    return min(_MOST_CLIP, max(least, 2.0 ** math.ceil(math.log2(largest))))
