"""What a configuration says of its pairs, and state dicts that are no adapter's, of PEFT's own making."""

import dataclasses
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from fedlora.adapters import Adapter, LoraLayer, load_adapter, with_base_change_inside
from fedlora.adapters.meaning import difference_in_meaning, refuse_another_product, refuse_unknown
from fedlora.adapters.settings import fitted_config, plain_config
from fedlora.adapters.targets import layer_not_chosen
from fedlora.aggregation import aggregate
from fedlora.common.errors import AdapterError

CONFIG = plain_config(LoraConfig(r=2, lora_alpha=2, target_modules=["first", "second"]).to_dict())


def tiny_model(config: Any) -> nn.Module:
    torch.manual_seed(0)
    layers = {"first": nn.Linear(6, 8), "second": nn.Linear(8, 6)}
    return get_peft_model(nn.Sequential(OrderedDict(layers)), config)  # type: ignore[arg-type]


def adapter_of(**changes: object) -> Adapter:
    layers = {path: LoraLayer(torch.ones(2, 6), torch.ones(8, 2), 1.0) for path in ("first", "second")}
    return Adapter(layers, {}, CONFIG | changes)


DIFFERENT: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "PiSSA and plain": ({"init_lora_weights": "pissa"}, {}, "init_lora_weights is 'pissa'; expected True"),
    "plain and OLoRA": ({}, {"init_lora_weights": "olora"}, "init_lora_weights is True; expected 'olora'"),
    "OLoRA and Gaussian": ({"init_lora_weights": "OLoRA"}, {"init_lora_weights": "gaussian"}, "is 'OLoRA'; expected"),
    "PiSSA and PiSSA by fewer steps": (
        {"init_lora_weights": "pissa_niter_4"},
        {"init_lora_weights": "pissa"},
        "init_lora_weights is 'pissa_niter_4'; expected 'pissa': PEFT would load it onto other base weights",
    ),
    "PiSSA of other ranks": (
        {"init_lora_weights": "pissa", "rank_pattern": {"first": 4}},
        {"init_lora_weights": "pissa"},
        "init_lora_weights is 'pissa' with rank_pattern {'first': 4}; expected None",
    ),
    "CorDA, each of its own data": (
        {"init_lora_weights": "corda"},
        {"init_lora_weights": "corda"},
        "init_lora_weights is 'corda': what it takes out of the base weights follows from each client's own data",
    ),
    "LoftQ of other bits": (
        {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4, "loftq_iter": 1}},
        {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 2, "loftq_iter": 1}},
        "init_lora_weights is 'loftq' with loftq_config {'loftq_bits': 4, 'loftq_iter': 1}; expected",
    ),
    "a start that nobody knows": ({"init_lora_weights": "newest"}, {}, "init_lora_weights is 'newest'; expected True"),
    "DoRA and plain": ({"use_dora": True}, {}, "use_dora is True; expected None: all must be DoRA or none"),
    "other invocation tokens": (
        {"alora_invocation_tokens": [1, 2]},
        {"alora_invocation_tokens": [2, 1]},
        "alora_invocation_tokens is [1, 2]; expected [2, 1]",
    ),
    "aLoRA and plain": ({"alora_invocation_tokens": [1]}, {}, "alora_invocation_tokens is [1]; expected None"),
    "pooled by other numbers": (
        {"use_qalora": True, "qalora_group_size": 8},
        {"use_qalora": True},
        "qalora_group_size is 8; expected 16",
    ),
    "another stack of layers": ({"layer_replication": [(0, 2), (1, 3)]}, {}, "layer_replication is [[0, 2], [1, 3]]"),
    "tied and not": ({"ensure_weight_tying": True}, {}, "ensure_weight_tying is True; expected None"),
    "the same tokens in another order": (
        {"trainable_token_indices": [1, 5]},
        {"trainable_token_indices": {"embed": [5, 1]}},
        "trainable_token_indices is [1, 5]; expected {'embed': [5, 1]}",
    ),
}


@pytest.mark.parametrize(("one", "other", "message"), DIFFERENT.values(), ids=DIFFERENT.keys())
def test_adapters_of_different_meaning_are_refused_by_the_settings_name(
    one: dict[str, Any], other: dict[str, Any], message: str
) -> None:
    assert message in str(difference_in_meaning(CONFIG | one, CONFIG | other))
    with pytest.raises(AdapterError) as caught:
        aggregate({"north": adapter_of(**other), "south": adapter_of(**one)})
    assert str(caught.value).startswith("south: ")
    assert message.partition(": ")[0] in str(caught.value)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"init_lora_weights": True}, {"init_lora_weights": "gaussian"}),
        ({"init_lora_weights": False}, {"init_lora_weights": "orthogonal"}),
        ({"init_lora_weights": "eva", "eva_config": {"rho": 2.0}}, {"init_lora_weights": "mica"}),
        ({"init_lora_weights": "pissa"}, {"init_lora_weights": "pissa"}),
        ({"lora_dropout": 0.5, "inference_mode": True, "peft_version": "0.1"}, {}),
        ({"use_rslora": True, "r": 8, "lora_alpha": 1, "rank_pattern": {"x": 4}}, {}),
        ({"layer_replication": [(0, 2)]}, {"layer_replication": [[0, 2]]}),
        ({"trainable_token_indices": [1, 5]}, {"trainable_token_indices": {"embed": [1, 5]}}),
        ({"trainable_token_indices": [1, 5]}, {}),
        ({"loftq_config": {"loftq_bits": 4}}, {"loftq_config": {}}),
    ],
)
def test_what_leaves_the_meaning_alone_mixes(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert difference_in_meaning(CONFIG | one, CONFIG | other) is None
    assert difference_in_meaning(CONFIG | other, CONFIG | one) is None


def test_the_rounds_start_must_mean_the_same_too() -> None:
    with pytest.raises(AdapterError, match=r"a: init_lora_weights is True; expected 'pissa' as the round's start has"):
        aggregate({"a": adapter_of()}, reference=adapter_of(init_lora_weights="pissa"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "VERA"}, "here: peft_type is 'VERA'; expected 'LORA'"),
        ({"kasa_config": {"beta": 1e-4}}, "here: kasa_config is {'beta': 0.0001}; it truncates the base weights"),
        ({"use_bdlora": {"nblocks": 2}}, "here: use_bdlora is {'nblocks': 2}; its A and B are blocks"),
        ({"monteclora_config": {"n": 1}}, "here: monteclora_config is {'n': 1}; its A is drawn anew"),
        ({"arrow_config": {"top_k": 3}}, "here: arrow_config is {'top_k': 3}; it routes between several"),
        ({"target_parameters": ["experts.up"]}, "here: target_parameters is ['experts.up']; fedlora takes LoRA on"),
    ],
)
def test_what_is_no_plain_product_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapterError) as caught:
        refuse_another_product(CONFIG | changes, origin="here")
    assert str(caught.value).startswith(message)


def test_a_setting_of_a_newer_peft_is_refused_unless_it_is_unset() -> None:
    for value in (None, False, [], {}, "", "none"):
        refuse_unknown(CONFIG | {"use_xlora3": value}, origin="here")
    for value in (True, 3, "fast", [1]):
        with pytest.raises(AdapterError, match=r"here: use_xlora3 is .* does not know .* update fedlora"):
            refuse_unknown(CONFIG | {"use_xlora3": value}, origin="here")


def test_every_setting_of_the_installed_peft_is_known() -> None:
    refuse_unknown({field.name: "set" for field in dataclasses.fields(LoraConfig)}, origin="here")


OTHER_KINDS: dict[str, Any] = {
    "VeRA": lambda: peft.VeraConfig(r=2, target_modules=["first"]),
    "LoHa": lambda: peft.LoHaConfig(r=2, target_modules=["first"]),
    "LoKr": lambda: peft.LoKrConfig(r=2, target_modules=["first"]),
    "OFT": lambda: peft.OFTConfig(r=0, oft_block_size=2, target_modules=["first"]),
    "IA3": lambda: peft.IA3Config(target_modules=["first"], feedforward_modules=[]),
    "AdaLoRA": lambda: peft.AdaLoraConfig(
        init_r=2, target_r=1, target_modules=["first"], total_step=9, tinit=1, tfinal=1
    ),
    "FourierFT": lambda: peft.FourierFTConfig(n_frequency=4, target_modules=["first"]),
}


@pytest.mark.parametrize("make", OTHER_KINDS.values(), ids=OTHER_KINDS.keys())
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_tensors_of_another_kind_of_adapter_are_refused_under_any_configuration(make: Any) -> None:
    config = make()
    model = tiny_model(config)
    assert isinstance(model, PeftModel)
    tensors: dict[str, Tensor] = get_peft_model_state_dict(model)
    with pytest.raises(AdapterError, match="peft_type is"):
        load_adapter(tensors, config)
    with pytest.raises(AdapterError, match=r"another kind of adapter|not part of a linear or embedding LoRA layer"):
        load_adapter(tensors, CONFIG)


PAIR = {"first.lora_A.weight": torch.ones(2, 6), "first.lora_B.weight": torch.ones(8, 2)}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {f"_orig_mod.base_model.model.{key}": t for key, t in PAIR.items()},
            "torch.compile gives; save the adapter of",
        ),
        ({f"base_model.model._orig_mod.{key}": t for key, t in PAIR.items()}, "a name that torch.compile gives"),
        ({f"module.base_model.model.{key}": t for key, t in PAIR.items()}, "a name that a parallel wrapper gives"),
        (
            PAIR | {"first.base_layer.weight": torch.ones(8, 6)},
            "first.base_layer.weight is a frozen weight of the base",
        ),
        (PAIR | {"head.weight.absmax": torch.ones(3)}, "tensor head.weight.absmax is a part of a quantised weight"),
        (PAIR | {"head.weight.quant_state.bitsandbytes__nf4": torch.ones(3)}, "is a part of a quantised weight"),
        (PAIR | {"head.weight": torch.ones(48, 1, dtype=torch.uint8)}, "head.weight is uint8; expected float32"),
        (PAIR | {"first.lora_A.weight": torch.ones(2, 6, dtype=torch.int8)}, "first.lora_A.weight is int8; expected"),
        (
            PAIR | {"first.lora_A.weight": torch.ones(2, 6).to(torch.float8_e4m3fn)},
            "is float8_e4m3fn; expected float32",
        ),
        (
            PAIR | {"base_model.model.first.lora_A.default.weight": torch.ones(2, 6)},
            "base_model.model.first.lora_A.default.weight and first.lora_A.weight are one tensor by their names",
        ),
        ({"first.lora_A.mine.weight": torch.ones(2, 6)}, "first.lora_A.mine.weight is not part of a linear"),
        ({"head.weight": torch.ones(2, 6)}, "no LoRA layer; expected tensors named lora_A and lora_B; found are 1"),
        ({}, "no LoRA layer; expected tensors named lora_A and lora_B"),
    ],
)
def test_what_is_no_adapters_tensor_is_refused_by_its_name(
    tensors: dict[str, Tensor], message: str, tmp_path: Path
) -> None:
    with pytest.raises(AdapterError) as caught:
        load_adapter(tensors, CONFIG)
    assert message in str(caught.value)
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(AdapterError) as caught:
        load_adapter(tmp_path)
    assert message in str(caught.value) or "numbers of the type 'F8_E4M3'" in str(caught.value)


def test_what_a_batch_norm_counts_is_no_leftover() -> None:
    counted = {"norm.num_batches_tracked": torch.tensor(3), "norm.seen": torch.tensor(True)}
    assert load_adapter(PAIR | counted, CONFIG).dense["norm.num_batches_tracked"] == 3


def test_a_missing_rank_and_alpha_are_pefts_defaults() -> None:
    adapter = load_adapter(PAIR, {"peft_type": "LORA"})
    assert adapter.layers["first"].scaling == LoraConfig().lora_alpha / 2
    assert adapter.config["lora_alpha"] == LoraConfig().lora_alpha
    assert LoraConfig().r == 8
    fitted = fitted_config(adapter.config, adapter.layers)
    assert (fitted["r"], fitted["lora_alpha"]) == (2, 8)


def test_a_folder_that_holds_the_adapter_further_inside_is_named(tmp_path: Path) -> None:
    for inside in ("checkpoint-500", "best/default"):
        (tmp_path / inside).mkdir(parents=True)
        (tmp_path / inside / "adapter_config.json").write_text("{}")
    with pytest.raises(AdapterError) as caught:
        load_adapter(tmp_path)
    named = f"give the folder that holds the adapter: {tmp_path / 'best/default'}, {tmp_path / 'checkpoint-500'}"
    assert str(caught.value).endswith(named)
    with pytest.raises(AdapterError, match="is a file; expected the PEFT folder that it lies in"):
        load_adapter(tmp_path / "checkpoint-500" / "adapter_config.json")


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_change_of_the_base_weights_does_not_go_into_the_rank_of_a_start_from_them(start: str) -> None:
    adapter = adapter_of(init_lora_weights=start)
    change = {"first": LoraLayer(torch.ones(1, 6), torch.ones(8, 1), 1.0)}
    with pytest.raises(AdapterError, match=f"init_lora_weights is '{start}': with a change of the base weights"):
        with_base_change_inside(dataclasses.replace(adapter, base_change=change))


CHOICES: list[dict[str, Any]] = [
    {"target_modules": ["q", "v"]},
    {"target_modules": ["layers.0.q"]},
    {"target_modules": r".*\.(q|v)"},
    {"target_modules": r".*layers\.1\.q"},
    {"target_modules": ["q", "v"], "exclude_modules": ["layers.0.v"]},
    {"target_modules": ["q", "v"], "exclude_modules": r".*\.1\..*"},
    {"target_modules": ["q", "v"], "layers_to_transform": 0},
    {"target_modules": ["q", "v"], "layers_to_transform": [1]},
    {"target_modules": ["q", "v"], "layers_to_transform": [1], "layers_pattern": "layers"},
    {"target_modules": ["q", "v"], "layers_to_transform": [0], "layers_pattern": ["blocks", "layers"]},
    {"target_modules": "all-linear"},
]


@pytest.mark.parametrize("choice", CHOICES, ids=map(str, CHOICES))
def test_a_configuration_chooses_the_layers_that_peft_adapts_by_it(choice: dict[str, Any]) -> None:
    layers = [nn.ModuleDict({"q": nn.Linear(2, 2), "v": nn.Linear(2, 2)}) for _ in range(2)]
    base = nn.ModuleDict({"model": nn.ModuleDict({"layers": nn.ModuleList(layers)})})
    paths = [path for path, module in base.named_modules() if isinstance(module, nn.Linear)]
    model = get_peft_model(base, LoraConfig(r=1, **choice))  # type: ignore[arg-type]
    adapted = {path for path in paths if hasattr(model.get_submodule(f"base_model.model.{path}"), "lora_A")}
    assert adapted
    assert {path for path in paths if not layer_not_chosen(choice, [path], origin="")} == adapted


def test_an_expression_that_is_none_is_refused() -> None:
    with pytest.raises(AdapterError, match=r"file: target_modules .* make no sense \(.*unbalanced paren"):
        layer_not_chosen({"target_modules": "(q"}, ["q"], origin="file")
