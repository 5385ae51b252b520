"""What does not go with privacy.unit = "example", key by key, and why. Pure."""

from collections.abc import Iterator

from fedlora.common.config.federation import EvaluationSection, ExchangeSection, FederationSection
from fedlora.common.config.privacy import PrivacySection
from fedlora.common.config.sources import ModelSection
from fedlora.common.config.training import TrainSection

_UNIT = 'privacy.unit = "example"'


def objections(
    privacy: PrivacySection,
    *,
    model: ModelSection,
    train: TrainSection,
    federation: FederationSection,
    evaluation: EvaluationSection,
    exchange: ExchangeSection,
) -> Iterator[str]:
    """Yield what in a run whose examples are to be private would tell of them without noise, in a line each."""
    if privacy.unit != "example":
        return
    if len(privacy.clips) != 1:
        yield (
            f"privacy.clip has {len(privacy.clips)} numbers; expected one for {_UNIT}, which clips the gradients of "
            "all that is trained as one"
        )
    if train.packing:
        yield (
            f"train.packing does not go with {_UNIT}, which clips the gradient of each example: packed ones have one "
            "in common; set it to false"
        )
    if train.compile:
        yield (
            f"train.compile does not go with {_UNIT}, which computes the gradients of single examples: what is "
            "compiled is one pass over a whole batch; set it to false"
        )
    if train.precision == "float16" or (train.precision == "auto" and model.dtype == "float16"):
        key = "train.precision" if train.precision == "float16" else "model.dtype"
        yield (
            f"{key} = float16 does not go with {_UNIT}: its loss scale is by what gradients are, and skips steps by "
            'them; take "bfloat16" or "float32"'
        )
    if federation.weighting == "tokens":
        yield (
            f'federation.weighting = "tokens" does not go with {_UNIT}: how many tokens a step has tells of the '
            'examples in it; take "examples" or "uniform"'
        )
    for is_set, key in (
        (evaluation.early_stopping > 0, "evaluation.early_stopping"),
        (exchange.publish_margin is not None, "exchange.publish_margin"),
    ):
        if is_set:
            yield (
                f"{key} goes by scores on the clients' validation, which {_UNIT} withholds: they have no noise; "
                "leave it out"
            )
