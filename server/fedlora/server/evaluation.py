"""The global adapter's score on the held-out set, judged by the workers that hold it, shard by shard."""

import math
from dataclasses import replace
from functools import partial

from flwr.app import MessageType

from fedlora.adapters import Adapter, pack
from fedlora.common.errors import RunError
from fedlora.common.messages import EvaluateReceipt, EvaluateRequest, Score, merge_scores
from fedlora.server.conversation import Addressed, Inquiry, ask, expect
from fedlora.server.round_report import HeldOutReport
from fedlora.server.sites import Federation

_SHARD_EXAMPLES = 128


def judge(
    federation: Federation, adapter: Adapter, *, round: int, num_examples: int | None, patience: float
) -> tuple[HeldOutReport | None, dict[int, int]]:
    """Return the adapter's score, and the predicted labels by place in the held-out set where all of it is judged.

    Where each site has a held-out set of its own, the sites that are there judge on theirs, and the groups are the
    sites. Otherwise the shards depend on the number of examples alone, so that the score does not depend on the
    workers.

    Args:
        num_examples: of the held-out set, in equal parts by group; None for all of it.
        patience: seconds for which a site that has lost its connection is waited for.

    Raises:
        RunError: a site could not answer.
    """
    if federation.has_own_held_out:
        return _judge_at_sites(federation, adapter, round=round, num_examples=num_examples, patience=patience), {}
    sites = list(federation.sites.values())
    size = num_examples or federation.num_held_out
    request = EvaluateRequest(
        run=federation.run_id,
        round=round,
        num_examples=num_examples,
        shard=0,
        num_shards=math.ceil(size / _SHARD_EXAMPLES),
        with_predictions=num_examples is None,
        adapter=pack(adapter),
    )
    asked = {
        f"shard {shard}": Addressed(sites[shard % len(sites)].node, partial(_shard_request, request, shard))
        for shard in range(request.num_shards)
    }
    answers = ask(federation.grid, asked, message_type=MessageType.EVALUATE, expected=EvaluateReceipt)
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
    report = HeldOutReport(merge_scores(list(groups.values())), groups, is_complete=num_examples is None)
    return report, dict(sorted(predictions.items()))


def _judge_at_sites(
    federation: Federation, adapter: Adapter, *, round: int, num_examples: int | None, patience: float
) -> HeldOutReport | None:
    """Return the score over the sites that answered, or None where none did; who is away for long is not waited for."""
    there = [name for name in federation.expected(patience) if federation.sites[name].description.num_held_out > 0]
    share = None if num_examples is None else max(1, num_examples // max(1, len(there)))
    request = EvaluateRequest(federation.run_id, round, share, 0, 1, with_predictions=False, adapter=pack(adapter))
    asked = {name: Addressed(federation.sites[name].node, lambda _attempt: request) for name in there}
    inquiry = Inquiry(federation.grid, asked, message_type=MessageType.EVALUATE, expected=EvaluateReceipt)
    groups: dict[str, Score] = {}
    for answer in inquiry.answers(lambda waiting: not set(waiting) & set(federation.expected(patience))):
        if isinstance(answer.content, EvaluateReceipt) and answer.content.groups:
            groups[answer.key] = merge_scores(list(answer.content.groups.values()))
    inquiry.withdraw()
    if not groups or sum(score.num_examples for score in groups.values()) == 0:
        return None
    is_complete = num_examples is None and len(groups) == len(federation.sites)
    return HeldOutReport(merge_scores(list(groups.values())), dict(sorted(groups.items())), is_complete)


def _shard_request(request: EvaluateRequest, shard: int, _attempt: int) -> EvaluateRequest:
    return replace(request, shard=shard)
