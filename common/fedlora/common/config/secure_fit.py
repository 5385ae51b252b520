"""What does not go with privacy.secure_sums: whatever takes a single client's update. Pure."""

from fedlora.common.config.federation import FederationSection, RobustSection
from fedlora.common.config.training import LoraSection, TrainSection
from fedlora.methods import Method, why_no_sums


def require_sums_fit(
    method: Method, *, lora: LoraSection, train: TrainSection, federation: FederationSection, robust: RobustSection
) -> None:
    """Check that a run whose server sees sums alone asks for nothing that takes single updates.

    Raises:
        ValueError: it does.
    """
    named = "privacy.secure_sums"
    unfit = why_no_sums(method)
    if unfit is not None:
        why, able = unfit
        raise ValueError(f"{named} does not go with aggregation.method = {method.name}, which {why}; take {able}")
    for is_set, key, why in (
        (bool(lora.client_ranks), "lora.client_ranks", "sums are over pairs of one rank"),
        (
            federation.late == "next_round",
            'federation.late = "next_round"',
            "a late update has no others to hide among",
        ),
        (federation.max_share is not None, "federation.max_share", "the server does not see who weighs how much"),
        (federation.weighting == "tokens", 'federation.weighting = "tokens"', "weights are agreed on before training"),
        (federation.oversample > 1, "federation.oversample", "who is asked and not waited for has no part in the sums"),
        (robust.regauge, "robust.regauge", "nobody sees a single update"),
        (robust.clip is not None, "robust.clip", "nobody sees a single update"),
        (robust.select != "all", f'robust.select = "{robust.select}"', "nobody sees a single update"),
        (robust.weighting != "given", f'robust.weighting = "{robust.weighting}"', "nobody sees a single update"),
        (train.optimizer_state == "shared", 'train.optimizer_state = "shared"', "each client's moments would be seen"),
    ):
        if is_set:
            raise ValueError(f"{named} does not go with {key}: {why}; remove one of them")
