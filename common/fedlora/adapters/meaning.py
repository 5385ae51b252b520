"""What a LoRA configuration says beyond ranks and scaling: what a pair means, and which weights it is added to.

Adapters can be averaged where all of that is the same. Of what else a configuration says, `targets` holds the keys
that only choose layers, which the tensors show too, and the rest (dropout, versions, how a training went about it)
leaves what the trained tensors mean as it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from fedlora.adapters.settings import PEFT_ALPHA, SHAPE_KEYS
from fedlora.common.errors import AdapterError

# Under these a layer's change is not scaling * B @ A.
_ANOTHER_PRODUCT = {
    "target_parameters": "fedlora takes LoRA on modules only, named in target_modules",
    "use_bdlora": "its A and B are blocks of larger matrices; train plain LoRA, or merge the adapter",
    "kasa_config": "it truncates the base weights and puts a diagonal between B and A; train plain LoRA",
    "monteclora_config": "its A is drawn anew at each use; train plain LoRA",
    "arrow_config": "it routes between several adapters; give these one by one",
}

# Set alike in all adapters, or in none.
_ALIKE = {
    "use_dora": "all must be DoRA or none",
    "alora_invocation_tokens": "all must act from the same invocation tokens on",
    "use_qalora": "all must pool their inputs or none",
    "layer_replication": "all must adapt one stack of layers",
    "ensure_weight_tying": "all must adapt the tied weights or none",
    "megatron_config": "all must adapt one parallel model",
}

# By how PEFT's name of a start begins: it takes what A and B begin with out of the base weights.
_STARTS_FROM_THE_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")
# What these take out follows from the data that the client itself has.
_STARTS_FROM_DATA = ("corda", "lora_ga")
_STARTS_BESIDE_THE_BASE = ("true", "false", "none", "gaussian", "eva", "orthogonal", "mica")
_OTHER_WEIGHTS = "PEFT would load it onto other base weights"
_CONVERT = (
    "save what starts from the base weights with path_initial_model_for_weight_conversion, which makes a plain adapter"
)

_SELECTION = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save")
_KNOWN = frozenset(
    (
        *_ANOTHER_PRODUCT, *_ALIKE, *_SELECTION, *SHAPE_KEYS, "init_lora_weights", "qalora_group_size",
        "trainable_token_indices", "bias", "lora_bias", "fan_in_fan_out", "base_model_name_or_path", "revision",
        # These leave open what the trained tensors mean.
        "task_type", "peft_type", "auto_mapping", "peft_version", "inference_mode", "lora_dropout", "megatron_core",
        "loftq_config", "eva_config", "corda_config", "lora_ga_config", "velora_config", "runtime_config",
    )
)  # fmt: skip


def with_pefts_alpha(config: Mapping[str, object]) -> dict[str, object]:
    """Return a configuration with an alpha: where it has none, that which PEFT takes then."""
    return {**config} if "lora_alpha" in config else {**config, "lora_alpha": PEFT_ALPHA}


def refuse_another_product(config: Mapping[str, object], *, origin: str) -> None:
    """Check that a configuration is LoRA's, and that its pairs act as scaling * B @ A; `origin` names it in errors.

    Raises:
        AdapterError: it is of another kind of adapter, or asks for a variant in which a pair is no plain product.
    """
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise AdapterError(f"{origin}: peft_type is {kind!r}; expected 'LORA'")
    for key, reason in _ANOTHER_PRODUCT.items():
        if not is_unset(config.get(key)):
            raise AdapterError(f"{origin}: {key} is {_short(config[key])}; {reason}")


def refuse_unknown(config: Mapping[str, object], *, origin: str) -> None:
    """Check that all settings of a configuration are known, or empty, null or false.

    Raises:
        AdapterError: one is not: of a newer PEFT's settings nobody here can say what they do to the pairs.
    """
    for key in sorted(config.keys() - _KNOWN):
        if not is_unset(config[key]):
            raise AdapterError(
                f"{origin}: {key} is {_short(config[key])}, a setting that this version of fedlora does not know and "
                "that may change what the tensors mean; update fedlora, or take the key out of the configuration if "
                "it only says how the adapter was trained"
            )


@dataclass(frozen=True)
class Difference:
    """A setting by which pairs mean something else: what was found and expected, and what all must have in common."""

    what: str
    reason: str

    def __str__(self) -> str:
        return f"{self.what}: {self.reason}"


def difference_in_meaning(config: Mapping[str, object], expected: Mapping[str, object]) -> Difference | None:
    """Return the first setting by which the pairs of two configurations mean something else.

    Ranks and alphas may differ, except under a start that takes a part out of the base weights.
    """
    start = _start_of(config)
    if start != _start_of(expected):
        found, wanted = (repr(_plain(each.get("init_lora_weights", True))) for each in (config, expected))
        return Difference(f"init_lora_weights is {found}; expected {wanted}", f"{_OTHER_WEIGHTS}; {_CONVERT}")
    if start.startswith(_STARTS_FROM_DATA):
        reason = "what it takes out of the base weights follows from each client's own data, so that"
        return Difference(f"init_lora_weights is {start!r}", f"{reason} {_OTHER_WEIGHTS}; {_CONVERT}")
    for key in (*SHAPE_KEYS, "loftq_config") if start else ():
        values = [each.get(key) or None for each in (config, expected)]
        if values[0] != values[1]:
            found, wanted = map(_short, values)
            what = f"init_lora_weights is {start!r} with {key} {found}; expected {wanted}"
            return Difference(what, f"{_OTHER_WEIGHTS}; {_CONVERT}")
    for key, reason in _ALIKE.items():
        if what := _difference(key, config.get(key), expected.get(key)):
            return Difference(what, reason)
    if not is_unset(config.get("use_qalora")):
        sizes = [each.get("qalora_group_size", 16) for each in (config, expected)]
        if what := _difference("qalora_group_size", *sizes):
            return Difference(what, "all must pool as many inputs")
    key = "trainable_token_indices"
    tokens, others = (_tokens(each.get(key)) for each in (config, expected))
    if tokens and others and tokens != others:
        return Difference(
            f"{key} is {_short(config[key])}; expected {_short(expected[key])}", "all must train the same tokens"
        )
    return None


def require_one_meaning(configs: Mapping[str, Mapping[str, object]]) -> None:
    """Check that the pairs of all configurations, by the name of whose they are, mean the same.

    Raises:
        AdapterError: they do not.
    """
    first, *others = configs
    for name in others:
        if found := difference_in_meaning(configs[name], configs[first]):
            raise AdapterError(f"{name}: {found.what} as {first} has it: {found.reason}")


def starts_from_the_base(config: Mapping[str, object]) -> str:
    """Return the start that takes a part out of the base weights, such as "pissa"; empty of any other.

    PEFT changes these weights again when it loads the adapter, by what rank and alpha are then.
    """
    start = _start_of(config)
    return start if start.startswith(_STARTS_FROM_THE_BASE) else ""


def is_unset(value: object) -> bool:
    """Return whether a value is what a newer PEFT writes of a setting that an older one leaves out.

    0 is none of these: it may be a layer's number.
    """
    return value is None or value is False or value in ("", "none", [], {}, ())


def _start_of(config: Mapping[str, object]) -> str:
    """Return the start in lower case; empty where the base weights stay as they are."""
    start = str(_plain(config.get("init_lora_weights", True))).lower()
    return "" if start in _STARTS_BESIDE_THE_BASE else start


def _tokens(value: object) -> list[object]:
    """Return the indices, in their order, of each module whose tokens are trained; PEFT takes a list for one module."""
    if is_unset(value):
        return []
    if isinstance(value, Mapping):
        return [_plain(value[name]) for name in sorted(value)]
    return [_plain(value)]


def _difference(key: str, found: object, expected: object) -> str:
    found, expected = (None if is_unset(value) else _plain(value) for value in (found, expected))
    return "" if found == expected else f"{key} is {_short(found)}; expected {_short(expected)}"


def _plain(value: object) -> object:
    """Return a value, or a list of pairs, without the difference of tuples to lists, which JSON does not keep."""
    if not isinstance(value, list | tuple):
        return value
    return [list(item) if isinstance(item, tuple) else item for item in value]


def _short(value: object) -> str:
    text = repr(_plain(value))
    return text if len(text) <= 120 else f"{text[:117]}..."
