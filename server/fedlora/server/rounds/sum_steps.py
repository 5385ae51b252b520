"""The steps of a round over secure sums: whom the server asks for what, and what of it is on disk before the next."""

import logging
import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

from fedlora.common.config import RunConfig
from fedlora.common.messages import Failure, SumReceipt, SumRequest, SumTerms, TrainReceipt, TrainRequest
from fedlora.common.packed_file import packed_bytes, wire_bytes
from fedlora.common.phases import announce
from fedlora.secure_sums.gathering import Gathering, SumLost
from fedlora.secure_sums.keys import PublicKeys
from fedlora.secure_sums.member import Revealed, Sealed
from fedlora.secure_sums.round_terms import packed_vector, plan_of, share_of, unpacked_vector, with_weight
from fedlora.server.disk.sum_journal import SumJournal
from fedlora.server.record.draw import Draw
from fedlora.server.record.events import Listener, RoundStarted, UpdateArrived
from fedlora.server.rounds.admission import Refusal, receipt_refusal
from fedlora.server.rounds.believable import believable_update
from fedlora.server.rounds.ending import is_over, why_missing
from fedlora.server.rounds.federation import Federation
from fedlora.server.rounds.inquiry import Addressed, Deadline, Inquiry, never
from fedlora.server.rounds.misses import Misses

logger = logging.getLogger(__name__)

_REFUSED = "sums_refused"


@dataclass
class SumRound:
    """A round while its sums go on.

    Attributes:
        refused: by client, why it has no part, or none any more.
        accusations: by client, whose keys or shares it says are wrong.
        receipts: of those that have trained.
        vouchers: by sum and client, what it has signed of its numbers.
        num_clipped: numbers, over all clients and sums.
        scaled: the clients whose change was larger than the round allows.
    """

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
    vouchers: dict[int, dict[str, bytes]] = field(default_factory=dict)
    bytes_down: int = 0
    bytes_up: int = 0
    num_clipped: int = 0
    scaled: set[str] = field(default_factory=set)

    @cached_property
    def gathering(self) -> Gathering:
        """The server's part."""
        return Gathering(plan_of(self.federation.run_id, self.number, self.terms))

    def request(self, step: str, **parts: Any) -> SumRequest:
        """Return what a step asks for."""
        about = {"run": self.federation.run_id, "round": self.number, "repetition": self.terms.repetition}
        return SumRequest(**{**about, "step": step, **parts})


class SumSteps:
    """Asks the clients of rounds for step after step."""

    def __init__(self, config: RunConfig, listener: Listener, misses: Misses) -> None:
        """`misses` are those of trainings."""
        self._config = config
        self._listener = listener
        self._misses = misses

    def train(self, round: SumRound, request: TrainRequest, *, deadline: Deadline) -> None:
        """Have the clients train, those whose receipt is not there, until the round waits for nobody more."""
        federation, draw, journal = round.federation, round.draw, round.journal
        round.receipts.update(journal.answers(TrainReceipt, "train"))
        federation.go_on()
        self._listener(RoundStarted(round.number, draw.cohort, tuple(round.receipts)))
        missing = [client for client in draw.cohort if client not in round.receipts]
        asked = missing if journal.roster() is None else []
        requests = {client: Addressed(client, lambda attempt: replace(request, attempt=attempt)) for client in asked}
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

    def seal(self, round: SumRound) -> tuple[str, ...]:
        """Hand on the keys of all who have trained, and return who has sealed shares of its secrets for the others.

        Raises:
            SumLost: too few have.
        """
        journal, gathering = round.journal, round.gathering
        roster = journal.roster() or tuple(sorted(round.receipts))
        found = {name: round.receipts[name].keys for name in roster if name in round.receipts}
        public = {name: keys for name, keys in found.items() if keys is not None}
        for name, keys in public.items():
            gathering.add_keys(PublicKeys(name, keys.sealing, keys.masking, keys.own_seeds, keys.signature))
        gathering.roster()
        journal.write_roster(roster)
        known = journal.sealers()
        for name, receipt in self._step(round, round.request("seal", keys=public), to=known or roster).items():
            try:
                gathering.add_sealed(name, Sealed(receipt.sealed, receipt.digests))
            except ValueError as error:
                round.refused[name] = f"{_REFUSED}: {error}"
        sealers = gathering.sealers()
        if known is not None and sealers != known:
            raise SumLost(f"{', '.join(sorted(set(known) - set(sealers)))} had sealed shares, which are lost")
        journal.write_sealers(sealers)
        return sealers

    def sum(
        self, round: SumRound, index: int, size: int, among: Sequence[str], former: bytes
    ) -> tuple[tuple[str, ...], bytes]:
        """Return who is in a sum, and its total, packed.

        Args:
            round: the round.
            index: of the sum.
            size: how many numbers it is of.
            among: who was in the sum before.
            former: its total; nothing for the first.

        Raises:
            SumLost: too few are left, or not all of those of whom the others have been told, or somebody has lied.
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
        consents = self._step(round, round.request("consent", index=index, there=there), to=there)
        signed = {name: receipt.consent for name, receipt in consents.items()}
        vouchers = {name: round.vouchers[index][name] for name in there}
        reveal = round.request("reveal", index=index, consents=signed, vouchers=vouchers)
        for name, receipt in self._step(round, reveal, to=tuple(signed)).items():
            gathering.add_revealed(index, name, Revealed(receipt.own_seeds, receipt.masking))
        total = gathering.total(index)
        if index == 0:
            weights = (share_of(round.terms, round.receipts[name].num_examples) for name in there)
            total = with_weight(total, round.terms, math.fsum(weights))
        packed = packed_vector(total)
        journal.write_total(index, packed)
        return there, packed

    def _take_receipt(
        self, round: SumRound, client: str, content: TrainReceipt | Failure, request: TrainRequest, attempt: int
    ) -> str:
        """Take a training's receipt, and return the reason where it does not count."""
        site, is_own_task = round.federation.sites[client], self._config.task.kind == "own"
        if isinstance(content, Failure):
            round.refused[client] = str(Refusal(content.code, content.text))
            return round.refused[client]
        refusal = self._refusal(round, client, content, replace(request, attempt=attempt))
        if refusal is not None:
            round.refused[client] = str(refusal)
            return round.refused[client]
        receipt, fault = believable_update(content, request=request, site=site, is_own_task=is_own_task)
        if fault:
            logger.warning("round %d: a score of %s does not count: %s", round.number, client, fault)
        announce("accept")
        round.journal.write("train", 0, receipt)
        round.receipts[client] = receipt
        round.refused.pop(client, None)
        return ""

    def _refusal(self, round: SumRound, client: str, receipt: TrainReceipt, request: TrainRequest) -> Refusal | None:
        num_examples = round.federation.sites[client].num_examples
        found = receipt_refusal(receipt, request=request, client=client, num_examples=num_examples)
        if found is None and (receipt.keys is None or len(receipt.keys.masking) != len(round.terms.clips)):
            return Refusal(_REFUSED, "no keys for the round's sums came with it")
        return found

    def _mask(self, round: SumRound, index: int, size: int, to: Sequence[str], former: bytes) -> None:
        """Have the hidden numbers of a sum."""
        sealers = round.gathering.sealers()
        vouchers = round.vouchers.setdefault(index, {})

        def request_for(name: str) -> SumRequest:
            sealed, digests = round.gathering.sealed_for(name)
            parts = {"sealed": sealed, "digests": digests, "sealers": sealers, "num_numbers": size, "adapter": former}
            return round.request("mask", index=index, **parts)

        for name, receipt in self._asked(round, {name: request_for(name) for name in to}):
            try:
                round.gathering.add_masked(index, name, unpacked_vector(packed_bytes(receipt.adapter), size))
            except ValueError as error:
                round.refused[name] = f"{_REFUSED}: {error}"
                continue
            vouchers[name] = receipt.voucher
            round.num_clipped += receipt.num_clipped
            round.scaled |= {name} if receipt.is_scaled else set()
            round.bytes_up += wire_bytes(receipt.adapter)
        round.bytes_down += len(former) * len(to)

    def _step(self, round: SumRound, request: SumRequest, *, to: Sequence[str]) -> dict[str, SumReceipt]:
        """Return the answers to a step, by member: those that are there already, and the others as they come."""
        found = round.journal.answers(SumReceipt, request.step, request.index)
        for name, receipt in self._asked(round, {name: request for name in to if name not in found}):
            round.journal.write(request.step, request.index, receipt)
            found[name] = receipt
        return {name: receipt for name, receipt in found.items() if name in to}

    def _asked(self, round: SumRound, requests: Mapping[str, SumRequest]) -> Iterator[tuple[str, SumReceipt]]:
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
            content, name = answer.content, answer.key
            if isinstance(content, Failure):
                round.refused[name] = str(Refusal(content.code, content.text))
            elif not _answers(content, requests[name], name):
                round.refused[name] = "wrong_request"
            elif content.accused:
                round.refused[name] = f"{_REFUSED}: it says that {', '.join(content.accused)} are at fault"
                round.accusations[name] = content.accused
            else:
                yield name, content
        federation.misses.note(answered=requests.keys() - inquiry.waiting, missed=inquiry.waiting - inquiry.in_time)
        for name in inquiry.waiting:
            round.refused[name] = "away" if federation.seconds_away(name) > 0 else "late"
        inquiry.withdraw()


def _same(request: SumRequest, _attempt: int) -> SumRequest:
    return request


def _answers(receipt: SumReceipt, request: SumRequest, name: str) -> bool:
    """Return whether a receipt is that of a request."""
    of = (receipt.run, receipt.round, receipt.repetition, receipt.step, receipt.index, receipt.client)
    return of == (request.run, request.round, request.repetition, request.step, request.index, name)
