"""Which scores of clients can be true: over no more examples than asked for and held, and of possible values. Pure."""

import math
from dataclasses import replace

from fedlora.common.messages import EvaluateReceipt, Generated, Score, SiteDescription, TrainReceipt, TrainRequest

# Of a sum of many numbers.
_ROUNDING = 1e-6


def is_finite(score: Score) -> bool:
    """Return whether a score is of numbers, as that of an adapter is which has not diverged."""
    return math.isfinite(score.loss) and math.isfinite(score.metric)


def score_fault(score: Score, *, most: int, is_own_task: bool) -> str:
    """Return what speaks against a score, nothing where it can be true.

    Args:
        most: the examples that it can be over.
        is_own_task: whether loss and metric are those of a task of one's own, and may be any finite numbers. Others
            have losses of at least 0, and shares of what is right.
    """
    if score.num_examples > most:
        return f"over {score.num_examples:,} examples; expected at most {most:,}"
    if not math.isfinite(score.loss) or (score.loss < -_ROUNDING and not is_own_task):
        return f"a loss of {score.loss:g}; expected a finite one" + ("" if is_own_task else " of at least 0")
    if not math.isfinite(score.metric) or not (is_own_task or -_ROUNDING <= score.metric <= 1 + _ROUNDING):
        return f"a metric of {score.metric:g}; expected " + ("a finite one" if is_own_task else "0 to 1")
    return ""


def believable_update(
    receipt: TrainReceipt, *, request: TrainRequest, site: SiteDescription, is_own_task: bool
) -> tuple[TrainReceipt, str]:
    """Return the receipt without a score that cannot be true, and what speaks against that, nothing as a rule."""
    most = min(request.validation_examples, site.num_validation)
    before, after = (
        "" if score is None else score_fault(score, most=most, is_own_task=is_own_task)
        for score in (receipt.before, receipt.after)
    )
    believed = replace(receipt, before=None if before else receipt.before, after=None if after else receipt.after)
    return believed, before or after


def score_in(receipt: EvaluateReceipt, site: str, *, most: int, is_own_task: bool) -> tuple[Score | None, str]:
    """Return a site's score under its own name, None where it has none that can be true, and what speaks against it."""
    score = receipt.groups.get(site)
    if score is None:
        return None, f"{len(receipt.groups):,} groups, none of its name" if receipt.groups else ""
    fault = score_fault(score, most=most, is_own_task=is_own_task)
    return (None, fault) if fault else (score, "")


def generated_in(receipt: EvaluateReceipt, site: str, *, most: int) -> Generated | None:
    """Return how a site's answers compare, under its own name; None where it tells none, or of more than asked for."""
    found = receipt.generated.get(site)
    return found if found is not None and found.num_examples <= most else None
