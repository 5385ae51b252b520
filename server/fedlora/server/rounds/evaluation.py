"""The global adapter's score on the held-out set, judged by the workers that hold it, shard by shard."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from fedlora.common.errors import RunError
from fedlora.common.messages import (
    EvaluateReceipt,
    EvaluateRequest,
    Failure,
    Generated,
    Score,
    merge_generated,
    merge_scores,
)
from fedlora.common.packed_file import Packed
from fedlora.server.record.fair_shares import merge_fairly
from fedlora.server.record.round_report import HeldOutReport
from fedlora.server.rounds.believable import generated_in, is_finite, score_in
from fedlora.server.rounds.federation import Federation
from fedlora.server.rounds.inquiry import Addressed, Answer, Inquiry, ask, expect, never

logger = logging.getLogger(__name__)

_SHARD_EXAMPLES = 128
_MAX_SITES_OF_A_SHARD = 3


@dataclass(frozen=True)
class Judged:
    """What the held-out set says of an adapter.

    Attributes:
        report: None where nothing was judged.
        predictions: the predicted labels by place in the held-out set, where all of it was judged.
        answers: generated answers by place, where some were asked for.
    """

    report: HeldOutReport | None = None
    predictions: Mapping[int, int] = field(default_factory=dict)
    answers: Mapping[int, str] = field(default_factory=dict)


def judge(
    federation: Federation,
    adapter: Packed,
    *,
    round: int,
    num_examples: int | None,
    num_generated: int = 0,
    patience: float,
    is_own_task: bool = False,
) -> Judged:
    """Return what the held-out set says of the adapter.

    Where each site has a held-out set of its own, the sites that are there judge on examples of their own choice, the
    same in each round, and the groups are the sites. Otherwise the shards depend on the number of examples alone, so
    that the score does not depend on the workers.

    Args:
        num_examples: of the held-out set, in equal parts by group; None for all of it.
        num_generated: of these, so many are also answered by generated text.
        patience: seconds for which a site that has lost its connection is waited for.
        is_own_task: whether scores are those of a task of one's own; see `believable`.

    Raises:
        RunError: of one held-out set for all, no site could judge a part, or another number was judged.
    """
    request = _unsharded(federation, adapter, round=round, num_examples=num_examples)
    request = replace(request, num_generated=num_generated)
    if federation.has_own_held_out:
        return Judged(_judge_at_sites(federation, request, patience=patience, is_own_task=is_own_task))
    size = num_examples or federation.num_held_out
    num_shards = math.ceil(size / _SHARD_EXAMPLES)
    receipts = _shards(federation, replace(request, num_shards=num_shards, with_predictions=num_examples is None))
    by_group: dict[str, list[Score]] = {}
    for receipt in receipts:
        for group, score in receipt.groups.items():
            by_group.setdefault(group, []).append(score)
    groups = {group: merge_scores(scores) for group, scores in sorted(by_group.items())}
    if (judged := _judged(groups)) != size:
        raise RunError(f"round {round}: {judged} of {size} held-out examples were judged; all sites need the same set")
    predictions = {place: label for receipt in receipts for place, label in receipt.predictions.items()}
    generated = [receipt.generated for receipt in receipts]
    report = _report(merge_scores(list(groups.values())), groups, generated, is_complete=num_examples is None)
    texts = {place: text for receipt in receipts for place, text in receipt.answers.items()}
    return Judged(report, dict(sorted(predictions.items())), dict(sorted(texts.items())))


def validate(
    federation: Federation,
    adapter: Packed,
    *,
    round: int,
    num_examples: int,
    patience: float,
    is_own_task: bool = False,
) -> Score | None:
    """Return the adapter's score on the clients' own validation examples, at most `num_examples` of each.

    It is over the clients that answered, none of which owns it (see `merge_fairly`), and None where none did or none
    has any.
    """
    request = replace(_unsharded(federation, adapter, round=round, num_examples=num_examples), of_validation=True)
    held = {name: federation.sites[name].num_validation for name in federation.expected(patience)}
    there = [name for name, number in held.items() if number > 0]
    receipts = _answers_of_sites(federation, dict.fromkeys(there, request), patience=patience)
    scores = _scores(
        federation, receipts, {name: min(num_examples, held[name]) for name in receipts}, round, is_own_task
    )
    return merge_fairly(scores) if scores else None


def _shards(federation: Federation, request: EvaluateRequest) -> list[EvaluateReceipt]:
    """Return what the sites say of each shard, in order; one that a site cannot judge goes to the next.

    Raises:
        RunError: several could not.
    """
    sites = list(federation.sites)
    receipts: dict[int, EvaluateReceipt] = {}
    failed: list[Answer[EvaluateReceipt]] = []
    for turn in range(min(len(sites), _MAX_SITES_OF_A_SHARD)):
        asked = {
            f"shard {shard}": Addressed(sites[(shard + turn) % len(sites)], partial(_shard_request, request, shard))
            for shard in range(request.num_shards)
            if shard not in receipts
        }
        # These sites are there for as long as the run lasts, and Flower answers for a node that is not.
        answers = list(ask(federation.link, asked, expected=EvaluateReceipt, deadline=never))
        failed = [answer for answer in answers if isinstance(answer.content, Failure)]
        receipts |= {got.shard: got for answer in answers if isinstance(got := answer.content, EvaluateReceipt)}
        if not failed:
            break
        names = ", ".join(sorted({asked[answer.key].site for answer in failed}))
        federation.note(f"round {request.round}: {names} could not judge a part of the held-out set; another is asked")
    for answer in failed:
        expect(answer)
    return [receipts[shard] for shard in sorted(receipts)]


def _unsharded(federation: Federation, adapter: Packed, *, round: int, num_examples: int | None) -> EvaluateRequest:
    """Return a request to judge the adapter in one piece."""
    return EvaluateRequest(
        run=federation.run_id,
        round=round,
        num_examples=num_examples,
        shard=0,
        num_shards=1,
        with_predictions=False,
        adapter=adapter,
    )


def _judge_at_sites(
    federation: Federation, request: EvaluateRequest, *, patience: float, is_own_task: bool
) -> HeldOutReport | None:
    """Return the score over the sites that answered, or None where none did; who is away for long is not waited for."""
    held = {name: federation.sites[name].num_held_out for name in federation.expected(patience)}
    there = [name for name, number in held.items() if number > 0]
    receipts = _answers_of_sites(federation, dict.fromkeys(there, request), patience=patience)
    most = {name: held[name] if request.num_examples is None else request.num_examples for name in receipts}
    most = {name: min(most[name], held[name]) for name in receipts}
    groups = _scores(federation, receipts, most, request.round, is_own_task)
    if not groups:
        return None
    generated: list[Mapping[str, Generated]] = []
    for name, receipt in receipts.items():
        if (found := generated_in(receipt, name, most=request.num_generated)) is not None:
            generated.append({name: found})
        elif receipt.generated:
            logger.warning("round %d: the answers of %s do not count: more than asked for", request.round, name)
    held_out = {name: site.num_held_out for name, site in federation.sites.items() if site.num_held_out}
    is_complete = {name: score.num_examples for name, score in groups.items()} == held_out
    return _report(merge_fairly(groups), groups, generated, is_complete=is_complete)


def _scores(
    federation: Federation,
    receipts: Mapping[str, EvaluateReceipt],
    most: Mapping[str, int],
    round: int,
    is_own_task: bool,
) -> dict[str, Score]:
    """Return by site the scores that can be true; `most` examples each are they over at most. The others are said."""
    scores: dict[str, Score] = {}
    for name, receipt in receipts.items():
        score, fault = score_in(receipt, name, most=most[name], is_own_task=is_own_task)
        if fault:
            logger.warning("round %d: a score of %s does not count: %s", round, name, fault)
        if (told := receipt.groups.get(name)) is not None and not is_finite(told):
            federation.note_not_finite(round, name)
        if score is not None:
            scores[name] = score
    return scores


def _answers_of_sites(
    federation: Federation, requests: Mapping[str, EvaluateRequest], *, patience: float
) -> dict[str, EvaluateReceipt]:
    """Return what the sites answered, by name, and say who is left out.

    That is who is away for long, who does not answer in time, and who cannot.
    """

    def asking(name: str, _attempt: int) -> EvaluateRequest:
        return requests[name]

    asked = {name: Addressed(name, partial(asking, name)) for name in requests}
    inquiry = Inquiry(federation.link, asked, expected=EvaluateReceipt, deadline=federation.answer_seconds)
    answers = list(inquiry.answers(lambda waiting: not set(waiting) & set(federation.expected(patience))))
    silent = dict.fromkeys(inquiry.waiting - inquiry.in_time, "late")
    federation.misses.note(answered=requests.keys() - inquiry.waiting, missed=silent)
    silent |= dict.fromkeys(inquiry.waiting & inquiry.in_time, "away")
    inquiry.withdraw()
    receipts = {answer.key: answer.content for answer in answers if isinstance(answer.content, EvaluateReceipt)}
    silent |= {answer.key: answer.content.code for answer in answers if isinstance(answer.content, Failure)}
    if silent:
        number = next(iter(requests.values())).round
        why = ", ".join(f"{name} ({code})" for name, code in sorted(silent.items()))
        federation.note(f"round {number}: the score is without {why}")
    return dict(sorted(receipts.items()))


def _report(
    overall: Score, groups: Mapping[str, Score], generated: Sequence[Mapping[str, Generated]], *, is_complete: bool
) -> HeldOutReport:
    by_group: dict[str, list[Generated]] = {}
    for part in generated:
        for group, compared in part.items():
            by_group.setdefault(group, []).append(compared)
    merged = {group: merge_generated(parts) for group, parts in sorted(by_group.items())}
    return HeldOutReport(
        overall,
        groups,
        is_complete,
        merged,
        merge_generated(list(merged.values())) if merged else None,
    )


def _judged(groups: Mapping[str, Score]) -> int:
    """Return from how many examples the scores are."""
    return sum(score.num_examples for score in groups.values())


def _shard_request(request: EvaluateRequest, shard: int, _attempt: int) -> EvaluateRequest:
    generated = request.num_generated
    of_shard = generated // request.num_shards + (shard < generated % request.num_shards)
    return replace(request, shard=shard, num_generated=of_shard)
