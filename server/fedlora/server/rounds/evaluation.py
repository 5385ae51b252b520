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
    Generated,
    Score,
    merge_generated,
    merge_scores,
)
from fedlora.common.packed_file import Packed
from fedlora.server.record.fair_shares import merge_fairly
from fedlora.server.record.round_report import HeldOutReport
from fedlora.server.rounds.believable import generated_in, score_in
from fedlora.server.rounds.federation import Federation
from fedlora.server.rounds.inquiry import Addressed, Inquiry, ask, expect

logger = logging.getLogger(__name__)

_SHARD_EXAMPLES = 128


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

    Where each site has a held-out set of its own, the sites that are there judge on theirs, and the groups are the
    sites. Otherwise the shards depend on the number of examples alone, so that the score does not depend on the
    workers.

    Args:
        num_examples: of the held-out set, in equal parts by group; None for all of it.
        num_generated: of these, so many are also answered by generated text.
        patience: seconds for which a site that has lost its connection is waited for.
        is_own_task: whether scores are those of a task of one's own; see `believable`.

    Raises:
        RunError: a site could not answer.
    """
    request = _unsharded(federation, adapter, round=round, num_examples=num_examples)
    request = replace(request, num_generated=num_generated)
    if federation.has_own_held_out:
        return Judged(_judge_at_sites(federation, request, patience=patience, is_own_task=is_own_task))
    sites = list(federation.sites)
    size = num_examples or federation.num_held_out
    num_shards = math.ceil(size / _SHARD_EXAMPLES)
    request = replace(request, num_shards=num_shards, with_predictions=num_examples is None)
    asked = {
        f"shard {shard}": Addressed(sites[shard % len(sites)], partial(_shard_request, request, shard))
        for shard in range(num_shards)
    }
    answers = ask(federation.link, asked, expected=EvaluateReceipt)
    receipts = sorted((expect(answer) for answer in answers), key=lambda receipt: receipt.shard)
    by_group: dict[str, list[Score]] = {}
    for receipt in receipts:
        for group, score in receipt.groups.items():
            by_group.setdefault(group, []).append(score)
    judged = sum(score.num_examples for scores in by_group.values() for score in scores)
    if judged != size:
        raise RunError(f"round {round}: {judged} of {size} held-out examples were judged; all sites need the same set")
    groups = {group: merge_scores(scores) for group, scores in sorted(by_group.items())}
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
    scores = _scores(receipts, {name: min(num_examples, held[name]) for name in receipts}, round, is_own_task)
    return merge_fairly(scores) if scores else None


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

    def share(num_examples: int) -> int:
        return math.ceil(num_examples / max(1, len(there)))

    of_a_site = replace(
        request,
        num_examples=None if request.num_examples is None else share(request.num_examples),
        num_generated=share(request.num_generated),
    )
    receipts = _answers_of_sites(federation, dict.fromkeys(there, of_a_site), patience=patience)
    asked = held if of_a_site.num_examples is None else dict.fromkeys(receipts, of_a_site.num_examples)
    groups = _scores(receipts, {name: min(asked[name], held[name]) for name in receipts}, request.round, is_own_task)
    if not groups:
        return None
    generated: list[Mapping[str, Generated]] = []
    for name, receipt in receipts.items():
        if (found := generated_in(receipt, name, most=of_a_site.num_generated)) is not None:
            generated.append({name: found})
        elif receipt.generated:
            logger.warning("round %d: the answers of %s do not count: more than asked for", request.round, name)
    is_complete = request.num_examples is None and len(groups) == len(federation.sites)
    return _report(merge_fairly(groups), groups, generated, is_complete=is_complete)


def _scores(
    receipts: Mapping[str, EvaluateReceipt], most: Mapping[str, int], round: int, is_own_task: bool
) -> dict[str, Score]:
    """Return by site the scores that can be true; `most` examples each are they over at most. The others are said."""
    scores: dict[str, Score] = {}
    for name, receipt in receipts.items():
        score, fault = score_in(receipt, name, most=most[name], is_own_task=is_own_task)
        if fault:
            logger.warning("round %d: a score of %s does not count: %s", round, name, fault)
        if score is not None:
            scores[name] = score
    return scores


def _answers_of_sites(
    federation: Federation, requests: Mapping[str, EvaluateRequest], *, patience: float
) -> dict[str, EvaluateReceipt]:
    """Return what the sites answered, by name; who is away for long is not waited for, and who cannot is left out."""

    def asking(name: str, _attempt: int) -> EvaluateRequest:
        return requests[name]

    asked = {name: Addressed(name, partial(asking, name)) for name in requests}
    inquiry = Inquiry(federation.link, asked, expected=EvaluateReceipt)
    answers = inquiry.answers(lambda waiting: not set(waiting) & set(federation.expected(patience)))
    receipts = {answer.key: answer.content for answer in answers if isinstance(answer.content, EvaluateReceipt)}
    inquiry.withdraw()
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


def _shard_request(request: EvaluateRequest, shard: int, _attempt: int) -> EvaluateRequest:
    generated = request.num_generated
    of_shard = generated // request.num_shards + (shard < generated % request.num_shards)
    return replace(request, shard=shard, num_generated=of_shard)
