"""What does not go with privacy.unit = "client": whatever lets a client count for more than its clipped, noised terms.

Pure.
"""

from fedlora.common.config.federation import EvaluationSection, ExchangeSection, FederationSection, RobustSection
from fedlora.common.config.training import LoraSection, TrainSection
from fedlora.methods import Method, why_no_sums


def require_private_settings(
    federation: FederationSection,
    robust: RobustSection,
    lora: LoraSection,
    train: TrainSection,
    evaluation: EvaluationSection,
    exchange: ExchangeSection,
) -> None:
    """Check that a run which protects its clients does nothing else with what they send.

    Raises:
        ValueError: it does; the message says what, why, and what to do.
    """
    for is_set, key, why, remedy in (
        (
            federation.weighting != "uniform",
            f'federation.weighting = "{federation.weighting}"',
            "weighs a client by how many examples it has, which nothing hides",
            'use "uniform"',
        ),
        (federation.max_share is not None, "federation.max_share", "is for weights, and all weigh alike", "remove it"),
        (
            federation.late != "discard",
            f'federation.late = "{federation.late}"',
            "lets a client have two updates in a round",
            'use "discard"',
        ),
        (
            federation.oversample > 1,
            f"federation.oversample = {federation.oversample:g}",
            "lets one client's update keep out another's",
            "set it to 1",
        ),
        (
            federation.server_optimizer != "none",
            f'federation.server_optimizer = "{federation.server_optimizer}"',
            "steps to means that nobody has noised",
            'use "none"',
        ),
        (robust != RobustSection(), "[robust]", "compares updates with each other", "remove the section"),
        (bool(lora.client_ranks), "lora.client_ranks", "tells which ranks took part", "remove it"),
        (
            train.optimizer_state == "shared",
            'train.optimizer_state = "shared"',
            "sends the optimisers' moments beside the updates",
            'use "keep" or "reset"',
        ),
        (
            evaluation.early_stopping > 0,
            "evaluation.early_stopping",
            "ends the run by scores that nobody has noised",
            "set it to 0",
        ),
        (
            exchange.publish_margin is not None,
            "exchange.publish_margin",
            "holds adapters back by scores that nobody has noised",
            "remove it",
        ),
    ):
        if is_set:
            raise ValueError(f'privacy.unit = "client" does not go with {key}, which {why}; {remedy}')


def require_private_method(method: Method) -> None:
    """Check that a method is made of sums, to which noise can be added.

    Raises:
        ValueError: it is not.
    """
    unfit = why_no_sums(method)
    if unfit is not None:
        why, able = unfit
        raise ValueError(
            f'privacy.unit = "client" adds noise to sums, and aggregation.method = {method.name} {why}; take {able}'
        )
