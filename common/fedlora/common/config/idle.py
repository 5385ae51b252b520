"""Settings of a run file that do nothing, in a table: which one, when, and why. Pure."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from fedlora.common.config.run import RunConfig
from fedlora.common.section import Section
from fedlora.methods import Method

Place = Literal["simulation", "server", "superlink"]


_CHOICES = ("kind", "by")


@dataclass(frozen=True)
class Occasion:
    """What is known of a run beside its file.

    Attributes:
        place: where it runs; None where that is open.
        num_test: the held-out examples; None where only the run file says whether there are any.
        num_validation: those of all clients for their own validation; None likewise.
        num_clients: that hold data; None where only the run file says so.
        has_given_data: whether data sets were given in Python, in place of those of the run file.
    """

    place: Place | None = None
    num_test: int | None = None
    num_validation: int | None = None
    num_clients: int | None = None
    has_given_data: bool = False


@dataclass(frozen=True)
class _Rule:
    keys: tuple[str, ...]
    why: str
    applies: Callable[[RunConfig, Occasion], bool]


def idle_settings(config: RunConfig, occasion: Occasion | None = None) -> tuple[str, ...]:
    """Return in a line each the settings that are set to something and do nothing, and why.

    What has its default is not named: a run file that was written by `--print-config` sets everything.
    """
    occasion = occasion or Occasion()
    lines: dict[str, str] = {}
    for rule in _RULES:
        for path in rule.keys:
            if path not in lines and _is_set(config, path) and rule.applies(config, occasion):
                lines[path] = f"{path} = {_value(config, path)} does nothing here: {rule.why}"
    if isinstance(config.aggregation, Method):
        for key, why in config.aggregation.idle().items():
            if _is_set(config, path := f"aggregation.{key}"):
                lines[path] = f"{path} = {_value(config, path)} does nothing here: {why}"
    return tuple(lines.values())


def _is_set(config: RunConfig, path: str) -> bool:
    name, key = path.split(".")
    section: Section = getattr(config, name)
    # Which variant a section is has its default in the run's own.
    variant = getattr(RunConfig.model_fields[name].default, key, None) if key in _CHOICES else None
    field = type(section).model_fields.get(key)
    is_given = field is not None and key in section.model_fields_set
    return is_given and field is not None and getattr(section, key) != (variant or field.default)


def _value(config: RunConfig, path: str) -> str:
    name, key = path.split(".")
    return json.dumps(getattr(getattr(config, name), key), ensure_ascii=False)


def _is_deployment(_: RunConfig, occasion: Occasion) -> bool:
    return occasion.place in ("server", "superlink")


def _is_simulation(_: RunConfig, occasion: Occasion) -> bool:
    return occasion.place == "simulation"


def _has_given_data(_: RunConfig, occasion: Occasion) -> bool:
    return occasion.has_given_data


def _has_no_test(config: RunConfig, occasion: Occasion) -> bool:
    return config.data.test == 0.0 if occasion.num_test is None else occasion.num_test == 0


def _validates_nothing(config: RunConfig, occasion: Occasion) -> bool:
    if config.evaluation.client_examples == 0:
        return True
    return config.data.validation == 0.0 if occasion.num_validation is None else occasion.num_validation == 0


def _is_private_by_example(config: RunConfig, _: Occasion) -> bool:
    return config.privacy.unit == "example"


def _num_updates(config: RunConfig, occasion: Occasion) -> float:
    """Return how many updates a round has at most, infinity where that is open."""
    settings = config.federation
    if settings.cohort is not None:
        return settings.cohort
    known = occasion.num_clients
    if known is None and not _is_deployment(config, occasion):
        known = getattr(config.partition, "num_clients", None)
    return float("inf") if known is None else max(1, int(settings.fraction * known + 0.5))


def _is_of_kind(*kinds: str) -> Callable[[RunConfig, Occasion], bool]:
    return lambda config, _: config.task.kind in kinds


def _deals_by_label(config: RunConfig, occasion: Occasion) -> bool:
    is_dealt_out = not _is_deployment(config, occasion) and not occasion.has_given_data
    return is_dealt_out and config.partition.by in ("dirichlet", "label_shards")


def _reads_archive(config: RunConfig, occasion: Occasion) -> bool:
    is_read = not _is_deployment(config, occasion) and not occasion.has_given_data
    return is_read and config.data.path.lower().endswith(".npz")


def _reads_other_format(config: RunConfig, *formats: str) -> bool:
    return config.task.kind == "causal_lm" and config.data.format not in ("auto", *formats)


_ALL_OF_PARTITION = ("partition.by", "partition.num_clients", "partition.alpha", "partition.shards_per_client")
_ALL_OF_EXCHANGE = (
    "exchange.precision",
    "exchange.max_start_megabytes",
    "exchange.published",
    "exchange.publish_margin",
)
_NO_TEST = "no test examples are held out (data.test)"
_NO_VALIDATION = "the clients judge no validation examples (data.validation, evaluation.client_examples)"

_RULES = (
    _Rule(
        ("train.max_grad_norm",),
        'under privacy.unit = "example" each example\'s gradient is clipped, to privacy.clip',
        lambda config, _: config.privacy.unit == "example",
    ),
    _Rule(
        ("exchange.precision",),
        "the sums of privacy.secure_sums start from the server's very numbers, in float32",
        lambda config, _: config.privacy.secure_sums,
    ),
    _Rule(
        ("model.revision",),
        "model.name is no model of the hub",
        lambda config, _: config.model.name.startswith(("package:", ".", "/", "~")),
    ),
    _Rule(
        ("model.head", "model.pooling"),
        "only a classification has a head of its own",
        _is_of_kind("causal_lm", "own"),
    ),
    _Rule(
        ("model.pooling",),
        'model.head = "auto" takes the head of the checkpoint',
        lambda config, _: config.model.head == "auto",
    ),
    _Rule(
        ("task.chat_template",),
        'data.format = "text" goes through no template',
        lambda config, _: config.data.format == "text",
    ),
    _Rule(
        ("data.path", *_ALL_OF_PARTITION),
        "each site brings its own examples, which its site file names",
        _is_deployment,
    ),
    _Rule(
        ("data.test",),
        "a path names nothing at the sites, which hold out a share of their own",
        lambda config, occasion: _is_deployment(config, occasion) and isinstance(config.data.test, str),
    ),
    _Rule(
        ("data.path", "data.test", "data.group", "data.split_by", *_ALL_OF_PARTITION),
        "the data sets were given in Python",
        _has_given_data,
    ),
    _Rule(
        ("data.text", "data.prompt", "data.completion"),
        "the task reads pictures, and no texts",
        _is_of_kind("image_classification"),
    ),
    _Rule(
        ("data.image",),
        "the task reads texts, and no pictures",
        _is_of_kind("sequence_classification", "causal_lm"),
    ),
    _Rule(("data.image", "data.label", "data.group"), "an .npz file has no columns", _reads_archive),
    _Rule(
        ("data.text", "data.prompt", "data.completion"),
        "a task of one's own reads the rows itself",
        _is_of_kind("own"),
    ),
    _Rule(
        ("data.prompt", "data.completion"),
        "a classification reads data.text and data.label",
        _is_of_kind("sequence_classification"),
    ),
    _Rule(
        ("data.text",),
        "data.format names a format with other columns",
        lambda config, _: _reads_other_format(config, "text"),
    ),
    _Rule(
        ("data.prompt", "data.completion"),
        "data.format names a format with other columns",
        lambda config, _: _reads_other_format(config, "prompt_completion"),
    ),
    _Rule(
        ("data.label",),
        "nothing is dealt out by label, and the task has none",
        lambda config, occasion: config.task.kind in ("causal_lm", "own") and not _deals_by_label(config, occasion),
    ),
    _Rule(
        ("data.validation",),
        "evaluation.client_examples = 0 judges none of what is kept for validation",
        lambda config, _: config.evaluation.client_examples == 0 and config.data.validation > 0,
    ),
    _Rule(
        ("lora.client_ranks",),
        "all of them have lora.rank",
        lambda config, _: (
            all(rank == config.lora.rank for rank in config.lora.client_ranks.values()) and not config.lora.rank_pattern
        ),
    ),
    _Rule(
        ("lora.init",),
        "federation.start_from names the adapter to start from",
        lambda config, _: config.federation.start_from is not None and config.lora.init in ("gaussian", "orthogonal"),
    ),
    _Rule(
        ("train.momentum",),
        'train.optimizer = "adamw" has its own',
        lambda config, _: config.train.optimizer == "adamw",
    ),
    _Rule(
        ("train.packing",),
        "a forward pass has a single example",
        lambda config, _: (config.train.micro_batch_size or config.train.batch_size) == 1,
    ),
    _Rule(
        ("train.micro_batch_size",),
        "it is train.batch_size",
        lambda config, _: config.train.micro_batch_size == config.train.batch_size,
    ),
    _Rule(
        ("train.proximal_mu",),
        "the single step of a round begins where it pulls to",
        lambda config, _: config.train.steps == 1,
    ),
    _Rule(
        ("train.client_momentum",),
        "a run of one round has no change of the global adapter before it",
        lambda config, _: config.federation.rounds == 1,
    ),
    _Rule(
        ("train.optimizer_state",),
        "a run of one round has none before it",
        lambda config, _: config.federation.rounds == 1,
    ),
    _Rule(
        ("train.optimizer_state",),
        "sgd without momentum has no state",
        lambda config, _: config.train.optimizer == "sgd" and config.train.momentum == 0,
    ),
    _Rule(
        ("train.shared_second_moments",),
        'train.optimizer_state = "shared" is what sends moments',
        lambda config, _: config.train.optimizer_state != "shared",
    ),
    _Rule(
        ("train.shared_second_moments",),
        "sgd has no second moments",
        lambda config, _: config.train.optimizer == "sgd",
    ),
    _Rule(
        ("train.shared_second_moments",),
        "a run of one round has no moments before it",
        lambda config, _: config.federation.rounds == 1,
    ),
    _Rule(
        ("train.max_grad_norm",),
        'with privacy.unit = "example" the gradient of each example is clipped (privacy.clip), and not their sum',
        _is_private_by_example,
    ),
    _Rule(
        ("evaluation.client_examples", "data.validation"),
        'privacy.unit = "example" withholds what clients judge of their own examples',
        lambda config, occasion: (
            _is_private_by_example(config, occasion)
            and config.evaluation.client_examples > 0
            and config.data.validation > 0
        ),
    ),
    _Rule(
        ("privacy.delta",),
        'privacy.unit = "none" adds no noise',
        lambda config, _: config.privacy.unit == "none",
    ),
    _Rule(("train.device",), "each site's own file says where it trains", _is_deployment),
    _Rule(
        ("federation.fraction",),
        "federation.cohort says how many clients a round has",
        lambda config, _: config.federation.cohort is not None,
    ),
    _Rule(("federation.sites",), "a simulation has all clients of its data from the start", _is_simulation),
    _Rule(
        ("federation.patience",),
        "clients do not lose their connection here",
        lambda _, occasion: occasion.place in ("simulation", "superlink"),
    ),
    _Rule(
        ("federation.oversample",),
        "all clients are asked in each round",
        lambda config, _: config.federation.cohort is None and config.federation.fraction == 1,
    ),
    _Rule(
        ("federation.deadline_deviations",),
        'federation.deadline is not "adaptive"',
        lambda config, _: config.federation.deadline != "adaptive",
    ),
    _Rule(
        ("federation.late",),
        "without federation.deadline or oversample no update is late",
        lambda config, occasion: (
            _is_simulation(config, occasion)
            and config.federation.deadline is None
            and config.federation.oversample == 1
        ),
    ),
    _Rule(
        ("federation.max_share",),
        'federation.weighting = "uniform" lets all clients weigh alike',
        lambda config, _: config.federation.weighting == "uniform",
    ),
    _Rule(
        ("federation.weighting", "federation.max_share", "robust.clip", "robust.weighting"),
        "a round has the update of a single client",
        lambda config, occasion: _num_updates(config, occasion) <= 1,
    ),
    _Rule(
        (
            "federation.server_acts_on",
            "federation.server_learning_rate",
            "federation.server_momentum",
            "federation.server_beta_1",
            "federation.server_beta_2",
            "federation.server_tau",
        ),
        'federation.server_optimizer = "none" takes what the method makes of the updates as it is',
        lambda config, _: config.federation.server_optimizer == "none",
    ),
    _Rule(
        ("federation.server_momentum",),
        "adam and yogi have federation.server_beta_1",
        lambda config, _: config.federation.server_optimizer in ("adam", "yogi"),
    ),
    _Rule(
        ("federation.server_beta_1", "federation.server_beta_2", "federation.server_tau"),
        'federation.server_optimizer = "momentum" has federation.server_momentum alone',
        lambda config, _: config.federation.server_optimizer == "momentum",
    ),
    _Rule(
        ("federation.server_optimizer",),
        "at a learning rate of 1 it adds a part of the rounds before, and there is none",
        lambda config, _: (
            config.federation.server_optimizer == "momentum"
            and config.federation.server_learning_rate in (None, 1.0)
            and (config.federation.server_momentum == 0 or config.federation.rounds == 1)
        ),
    ),
    _Rule(("robust.gauge_limit",), "robust.regauge is off", lambda config, _: not config.robust.regauge),
    _Rule(
        ("federation.norm_limit",),
        "fewer than three updates of a round have no median to compare with",
        lambda config, occasion: _num_updates(config, occasion) < 3,
    ),
    _Rule(
        ("federation.norm_limit",),
        'under privacy.unit = "client" no update is refused for what others have sent; privacy.clip bounds it',
        lambda config, _: config.privacy.unit == "client",
    ),
    _Rule(
        ("privacy.delta",),
        'privacy.unit = "none" adds no noise',
        lambda config, _: config.privacy.unit == "none",
    ),
    _Rule(("evaluation.round_examples", "evaluation.generate"), _NO_TEST, _has_no_test),
    _Rule(
        ("evaluation.round_examples",),
        "the only round is the last one, after which the whole test set is judged",
        lambda config, _: config.federation.rounds == 1 and config.evaluation.round_examples > 0,
    ),
    _Rule(
        ("evaluation.max_new_tokens",),
        "evaluation.generate = 0 generates no answers",
        lambda config, _: config.evaluation.generate == 0,
    ),
    _Rule(
        ("evaluation.client_examples",),
        "the clients keep no validation examples (data.validation)",
        lambda config, occasion: config.evaluation.client_examples > 0 and _validates_nothing(config, occasion),
    ),
    _Rule(("evaluation.early_stopping",), _NO_VALIDATION, _validates_nothing),
    _Rule(
        ("evaluation.early_stopping",),
        "federation.rounds ends the run before so many rounds without a lower loss can be known",
        lambda config, _: config.evaluation.early_stopping > config.federation.rounds - 2,
    ),
    _Rule(
        ("evaluation.batch_size",),
        "nothing is judged",
        lambda config, occasion: _has_no_test(config, occasion) and _validates_nothing(config, occasion),
    ),
    _Rule(
        ("exchange.publish_margin",),
        "nothing is judged",
        lambda config, occasion: (
            _validates_nothing(config, occasion)
            and (_has_no_test(config, occasion) or config.evaluation.round_examples == 0)
        ),
    ),
    _Rule(_ALL_OF_EXCHANGE, "a simulation sends nothing over a wire", _is_simulation),
    _Rule(
        _ALL_OF_EXCHANGE,
        "Flower's runtime carries adapters whole, in float32",
        lambda _, occasion: occasion.place == "superlink",
    ),
)
