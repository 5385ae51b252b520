"""What a site allows: whether it takes part at the moment, and which numbers leave it, how exact. Pure."""

import math
from dataclasses import replace
from datetime import time

from fedlora.client.site.limits_section import LimitsSection, is_quiet
from fedlora.client.site.rounding import MOST_LOSS, rounded, rounded_generated, rounded_score
from fedlora.client.site.site_file import SiteConfig
from fedlora.client.worker.own_site import OwnSite
from fedlora.common.config import RunConfig
from fedlora.common.fates import PARTS
from fedlora.common.messages import (
    EvaluateReceipt,
    Failure,
    Score,
    SiteDescription,
    TrainReceipt,
    merge_generated,
    merge_scores,
)

WITHHELD = "withheld"


def standing(limits: LimitsSection, *, is_paused: bool, now: time) -> str:
    """Return the code of what the site itself says against taking part at this time of the day, nothing if nothing."""
    if is_paused:
        return "paused"
    return "quiet_hours" if is_quiet(limits.quiet_hours, now) else ""


def data_lines(description: SiteDescription) -> list[str]:
    """Return what the site's own terminal says of its data: what is left out, cut or not read, in a line each."""
    return [*description.fate_lines(*PARTS), *description.notes]


def own_site(run: RunConfig, site: SiteConfig) -> OwnSite:
    """Return what the site's worker needs to know of it."""
    limits = site.limits
    return OwnSite(
        site.site.name,
        site.data.only_group,
        limits.max_steps,
        limits.max_seconds,
        # What a task of one's own calls loss has a scale of its own.
        most_loss=None if run.task.kind == "own" else MOST_LOSS,
        epsilon=limits.epsilon,
        least_cohort=limits.least_cohort,
    )


def allowed_training(
    receipt: TrainReceipt, limits: LimitsSection, run: RunConfig, *, objection: str = "", step_examples: int = 0
) -> TrainReceipt:
    """Return a receipt with rounded numbers, without those that the site keeps to itself and names in `withheld`.

    Args:
        objection: why nothing was judged, where something was to be.
        step_examples: of an optimiser step, where they are not the run's.
    """
    is_own = run.task.kind == "own"
    scores = [score for score in (receipt.before, receipt.after) if score is not None]
    is_kept = bool(objection) or any(not _is_enough(score, limits) for score in scores)
    keeps = {"loss": "loss" not in limits.metrics, "scores": "scores" not in limits.metrics or is_kept}
    keeps = {name: is_withheld or name in receipt.withheld for name, is_withheld in keeps.items()}
    num_seen = receipt.num_tokens or receipt.num_steps * min(
        step_examples or run.train.batch_size, receipt.num_examples
    )
    return replace(
        receipt,
        withheld=tuple(name for name, is_withheld in keeps.items() if is_withheld),
        loss=math.nan if keeps["loss"] else rounded(receipt.loss, max(1, num_seen), is_relative=is_own),
        before=None if keeps["scores"] else _told(receipt.before, is_own=is_own),
        after=None if keeps["scores"] else _told(receipt.after, is_own=is_own),
    )


def allowed_evaluation(
    receipt: EvaluateReceipt, limits: LimitsSection, run: RunConfig, *, site: str
) -> EvaluateReceipt | Failure:
    """Return the rounded score of all examples under the site's name: groups and labels are its own words."""
    if "scores" not in limits.metrics:
        return Failure(WITHHELD, "limits.metrics names no scores")
    if run.privacy.unit == "example" and "metrics" not in limits.model_fields_set:
        return Failure(
            WITHHELD,
            'the run has privacy.unit = "example", and scores have no noise; to tell those of held-out examples, which '
            'are not trained on: limits.metrics = ["scores"]',
        )
    scores, generated = list(receipt.groups.values()), list(receipt.generated.values())
    score = merge_scores(scores) if scores else None
    if score is not None and not _is_enough(score, limits):
        return Failure(
            WITHHELD,
            f"the score is of {score.num_examples} examples, fewer than limits.least_examples = "
            f"{limits.least_examples}: it would tell of single ones",
        )
    answered = merge_generated(generated) if generated else None
    if answered is not None and answered.num_examples < limits.least_examples:
        answered = None
    return replace(
        receipt,
        groups={} if score is None else {site: rounded_score(score, is_relative=run.task.kind == "own")},
        predictions={},
        answers={},
        generated={} if answered is None else {site: rounded_generated(answered)},
    )


def _is_enough(score: Score, limits: LimitsSection) -> bool:
    return score.num_examples >= limits.least_examples


def _told(score: Score | None, *, is_own: bool) -> Score | None:
    return None if score is None else rounded_score(score, is_relative=is_own)
