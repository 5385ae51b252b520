"""What of its run file a run may be given anew when it goes on, and what there is to say of it.

A run is what its rounds have made of it: what has gone into them stays. How many rounds there are, how long they wait
and how they are judged has not.
"""

from pathlib import Path

from fedlora.common.config import RunConfig
from fedlora.common.errors import StoreError
from fedlora.common.run_file import differences

CHANGEABLE = (
    "federation.rounds",
    "federation.sites",
    "federation.quorum",
    "federation.deadline",
    "federation.deadline_deviations",
    "federation.patience",
    "evaluation.round_examples",
    "evaluation.early_stopping",
    "exchange.published",
    "exchange.publish_margin",
)


def changes(folder: Path, recorded: RunConfig, given: RunConfig) -> tuple[str, ...]:
    """Return what changes in a run that goes on, a line for each thing that its owner should know.

    Args:
        folder: the run's.
        recorded, given: the run as it was, and as it is to go on.

    Raises:
        StoreError: something changes that the rounds so far are made of, or there are more of them than are asked for.
    """
    changed = differences(recorded, given)
    if kept := [key for key in changed if key not in CHANGEABLE]:
        found = "; ".join(f"{key} is {changed[key][0]!r}, not {changed[key][1]!r}" for key in kept)
        raise StoreError(
            f"{folder} holds a run that differs from this one: {found}; start another with --out, or go on without "
            f"that: only {', '.join(CHANGEABLE)} may change"
        )
    lines = [f"{key} is changed from {old} to {new}" for key, (old, new) in changed.items()]
    if "federation.rounds" in changed:
        num_over = _num_over(folder)
        if num_over >= given.federation.rounds:
            raise StoreError(
                f"{folder}: federation.rounds is {given.federation.rounds}, but {num_over} rounds are over; "
                f"expected {num_over + 1} or more"
            )
        if given.train.schedule != "constant" or given.train.warmup > 0:
            lines.append(
                f"train.schedule = {given.train.schedule}, train.warmup = {given.train.warmup:g} span all rounds: from "
                f"round {num_over + 1} on the learning rate is that of a run of {given.federation.rounds}, so it may "
                "jump there, and the adapter is not that of a run planned so from its start"
            )
    return tuple(lines)


def _num_over(folder: Path) -> int:
    """Return how many rounds after the start are over."""
    return max((int(path.parent.name) for path in folder.glob("rounds/*/report.json")), default=0)
