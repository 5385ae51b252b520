"""What a site allows: whether it takes part at the moment, and which numbers leave it. Pure."""

import math
from dataclasses import replace
from datetime import time

from fedlora.client.site.site_file import LimitsSection, is_quiet
from fedlora.common.fates import PARTS
from fedlora.common.messages import (
    EvaluateReceipt,
    Failure,
    SiteDescription,
    TrainReceipt,
    merge_generated,
    merge_scores,
)


def standing(limits: LimitsSection, *, is_paused: bool, now: time) -> str:
    """Return the code of what the site itself says against taking part at this time of the day, nothing if nothing."""
    if is_paused:
        return "paused"
    return "quiet_hours" if is_quiet(limits.quiet_hours, now) else ""


def allows_base_model(limits: LimitsSection, *, name: str, fingerprint: str) -> bool:
    """Return whether a base model may be trained here, by its name in the run or by its fingerprint."""
    return not limits.base_models or not {name, fingerprint}.isdisjoint(limits.base_models)


def data_lines(description: SiteDescription) -> list[str]:
    """Return what the site's own terminal says of its data: what is left out, cut or not read, in a line each."""
    return [*description.fate_lines(*PARTS), *description.notes]


def allowed_training(receipt: TrainReceipt, limits: LimitsSection) -> TrainReceipt:
    """Return a receipt without the numbers that the site keeps to itself, and with their names in `withheld`."""
    withheld = tuple(name for name in ("loss", "scores") if name not in limits.metrics)
    receipt = replace(receipt, withheld=withheld)
    if "scores" in withheld:
        receipt = replace(receipt, before=None, after=None)
    return replace(receipt, loss=math.nan) if "loss" in withheld else receipt


def allowed_evaluation(receipt: EvaluateReceipt, limits: LimitsSection, *, site: str) -> EvaluateReceipt | Failure:
    """Return the score of all examples under the site's name: groups and labels are its own words."""
    if "scores" not in limits.metrics:
        return Failure("withheld", "limits.metrics names no scores")
    scores = list(receipt.groups.values())
    generated = list(receipt.generated.values())
    return replace(
        receipt,
        groups={site: merge_scores(scores)} if scores else {},
        predictions={},
        answers={},
        generated={site: merge_generated(generated)} if generated else {},
    )
