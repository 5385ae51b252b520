"""Which layers get LoRA: what is left out by the run, by itself, or not at all; and what cannot be trained."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from fedlora.adapters import save_adapter
from fedlora.common.config import LoraSection, RunConfig, TrainSection
from fedlora.common.errors import ModelError
from fedlora.models.base_model import load_base_model
from fedlora.models.reach import without_gradient
from fedlora.models.targets import expression_for
from fedlora.training.data import load_federated_data
from fedlora.training.footprint.outline import outline_of
from fedlora.training.footprint.step import step_cost
from fedlora.training.peft_bridge import ResidentModel, add_lora
from fedlora.training.tasks.sequence_classification import PreparedTexts, SequenceClassification
from fedlora.training.trainer import LocalTrainer

MakeRun = Callable[..., RunConfig]
CPU = torch.device("cpu")
WORDS: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 264,  # transformers gives a Qwen2 a token more
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
TOWER = {**{name: WORDS[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")},
    "intermediate_size": 64, "image_size": 16, "patch_size": 8}  # fmt: skip
MIXTURE = {**WORDS, "num_local_experts": 4, "num_experts_per_tok": 2}
DEEPSEEK = {**WORDS, "num_key_value_heads": 4, "n_routed_experts": 4, "n_group": 1, "topk_group": 1,
    "num_experts_per_tok": 2, "moe_intermediate_size": 32, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8,
    "v_head_dim": 8, "qk_nope_head_dim": 8, "first_k_dense_replace": 1}  # fmt: skip
FAMILIES: dict[str, tuple[dict[str, Any], object]] = {
    "Llama": (WORDS, "all-linear"),
    "Qwen2": (WORDS, "all-linear"),
    "Qwen3": ({**WORDS, "head_dim": 8}, "all-linear"),
    "Gemma2": ({**WORDS, "head_dim": 8}, "all-linear"),
    "Gemma3Text": ({**WORDS, "head_dim": 8}, "all-linear"),
    "Phi3": (WORDS, "all-linear"),
    "GPT2": ({**WORDS, "n_inner": 64}, "all-linear"),
    "GPTNeoX": (WORDS, "all-linear"),
    "OPT": ({**WORDS, "ffn_dim": 64, "word_embed_proj_dim": 32}, "all-linear"),
    "Falcon": (WORDS, "all-linear"),
    "Mamba": ({**WORDS, "state_size": 4}, ["in_proj", "x_proj", "dt_proj"]),
    "Mixtral": (MIXTURE, "all-linear"),
    "Qwen3Moe": ({**MIXTURE, "num_experts": 4, "moe_intermediate_size": 32, "head_dim": 8}, "all-linear"),
    "GptOss": ({**MIXTURE, "head_dim": 8}, "all-linear"),
    "DeepseekV3": (DEEPSEEK, "all-linear"),
    "Gemma3": (
        {"text_config": {**WORDS, "head_dim": 8}, "vision_config": TOWER, "mm_tokens_per_image": 4},
        "all-linear",
    ),
}


@pytest.fixture
def family_run(chat_run: MakeRun, tiny_language_model: Path, tmp_path: Path) -> MakeRun:
    """Return a function that gives a run of a tiny random model of a family, with a tokenizer."""

    def make(family: str, settings: Mapping[str, Any] | None = None, **sections: Any) -> RunConfig:
        folder = tmp_path / family
        if not folder.exists():
            shutil.copytree(tiny_language_model, folder, ignore=shutil.ignore_patterns("config.json", "*.safetensors"))
            config = getattr(transformers, f"{family}Config")(**(settings or FAMILIES[family][0]))
            torch.manual_seed(0)
            AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        return chat_run(**{**sections, "model": {"name": str(folder), **sections.get("model", {})}})

    return make


def resident_of(config: RunConfig) -> ResidentModel:
    torch.manual_seed(0)
    base = load_base_model(config, ())
    return add_lora(
        base.module,
        config.lora,
        heads=base.heads,
        task_type=base.peft_task_type,
        name=config.model.name,
        unreached=base.unreached,
    )


def refusal(config: RunConfig) -> str:
    """Return the one line with which both a plan and a worker refuse a run."""
    with pytest.raises(ModelError) as planned:
        outline_of(config)
    with pytest.raises(ModelError) as refused:
        resident_of(config)
    line = str(refused.value)
    assert "\n" not in line
    assert line == str(planned.value)
    return line


@pytest.mark.parametrize("mu", [0.0, 0.1])
def test_a_tower_that_texts_do_not_reach_is_neither_trained_nor_sent(
    family_run: MakeRun, tmp_path: Path, mu: float
) -> None:
    config = family_run("Gemma3", train={"proximal_mu": mu})
    resident, outline = resident_of(config), outline_of(config)
    adapter = resident.read()
    assert len(adapter.layers) == 4
    assert outline.adapter.layers.keys() == adapter.layers.keys()
    assert not any("vision" in path for path in adapter.layers)
    assert outline.notes == resident.notes
    assert "of which 4 get no gradient" in resident.notes[0]
    assert r"lora.exclude_modules = 'model\.vision_tower\..*'" in resident.notes[0]

    data = load_federated_data(config)
    base = load_base_model(config, data.labels)
    trainer: LocalTrainer[Any] = LocalTrainer(resident, base.task, config.train, device=CPU)
    result = trainer.train(
        base.task.prepare(data.clients["de"].training), progress=(0.0, 1.0), batch_seed=0, dropout_seed=0
    )
    assert result.is_finite
    assert all(bool(layer.B.any()) for layer in resident.read().layers.values())
    save_adapter(resident.read(), tmp_path / "adapter")
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(config.model.name), tmp_path / "adapter")
    assert sum("lora_A" in name for name, _ in plain.named_parameters()) == 4


def test_what_the_run_leaves_out_is_not_told_and_what_is_left_is_the_same(family_run: MakeRun) -> None:
    expected = resident_of(family_run("Gemma3")).read().layers.keys()
    for excluded in (r"model\.vision_tower\..*", ["layers.0.self_attn.q_proj"]):
        config = family_run("Gemma3", lora={"exclude_modules": excluded})
        resident = resident_of(config)
        found = resident.read().layers.keys()
        if isinstance(excluded, str):
            assert (found, resident.notes) == (expected, ())
            assert resident.read().config["exclude_modules"] == excluded
        else:
            assert expected - found == {"model.language_model.layers.0.self_attn.q_proj"}
        assert outline_of(config).adapter.layers.keys() == found


def test_layers_by_an_expression_are_those_that_it_matches_whole(family_run: MakeRun, tmp_path: Path) -> None:
    expression = r"model\.layers\.[1]\.(self_attn\.q|mlp\.up)_proj"
    resident = resident_of(family_run("Llama", lora={"target_modules": expression, "use_dora": True}))
    adapter = resident.read()
    assert sorted(adapter.layers) == ["model.layers.1.mlp.up_proj", "model.layers.1.self_attn.q_proj"]
    assert adapter.config["target_modules"] == expression
    # In a mixture PEFT would go by the last part of the names alone, and put LoRA into the other layer too.
    mixture = family_run("Mixtral", lora={"target_modules": r"model\.layers\.1\..*q_proj"})
    found = resident_of(mixture).read()
    assert list(found.layers) == list(outline_of(mixture).adapter.layers) == ["model.layers.1.self_attn.q_proj"]
    save_adapter(found, tmp_path / "adapter")
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(mixture.model.name), tmp_path / "adapter")
    assert sum("lora_A" in name for name, _ in plain.named_parameters()) == 1


@pytest.mark.parametrize(
    ("family", "lora", "words"),
    [
        ("Llama", {"target_modules": "q_proj"}, "as an expression for a layer's whole path"),
        ("Llama", {"target_modules": r".*\.mlp"}, "matches model.layers.0.mlp, a LlamaMLP, not a linear layer"),
        ("Llama", {"exclude_modules": ["vision_tower"]}, "'vision_tower' excludes none of the 4 layers"),
        ("Llama", {"exclude_modules": "q_proj"}, "'q_proj' excludes none of the 4 layers"),
        ("Llama", {"exclude_modules": ".*"}, "leaves none of the 4 layers"),
        ("Llama", {"rank_pattern": {"q_prj": 2}}, "lora.rank_pattern: 'q_prj' matches none of the 4 layers"),
        ("Gemma2", {"target_modules": ["q_proj", "lm_head"]}, "shares its weights with model.embed_tokens"),
        ("Gemma3", {"target_modules": r".*vision_tower.*q_proj"}, "all 2 layers of "),
        ("Gemma3", {"modules_to_save": ["multi_modal_projector"]}, "gets no gradient from this task's inputs; "),
        ("DeepseekV3", {"target_modules": ["o_proj", "down_proj"]}, "is what PEFT calls the experts"),
        ("Mamba", {"target_modules": ["in_proj", "out_proj"]}, "lora: PEFT refuses it for"),
    ],
)  # fmt: skip
def test_layers_that_cannot_be_trained_are_refused_in_one_line_by_plan_and_worker(
    family_run: MakeRun, family: str, lora: dict[str, object], words: str
) -> None:
    assert words in refusal(family_run(family, lora=lora))


def test_an_output_layer_of_its_own_weights_can_be_named(family_run: MakeRun) -> None:
    config = family_run("Llama", lora={"target_modules": ["lm_head"]})
    assert list(resident_of(config).read().layers) == list(outline_of(config).adapter.layers) == ["lm_head"]


@pytest.mark.parametrize("family", ["Mixtral", "DeepseekV3"])
def test_all_linear_says_that_experts_stay_frozen(family_run: MakeRun, family: str) -> None:
    config = family_run(family, lora={"target_modules": "all-linear"})
    resident, outline = resident_of(config), outline_of(config)
    assert resident.notes == outline.notes
    module = AutoModelForCausalLM.from_pretrained(config.model.name)
    experts = [name for name, parameter in module.named_parameters() if parameter.ndim == 3]
    size = sum(module.get_parameter(name).numel() for name in experts)
    expected = f"leaves the experts frozen: {len(experts) // 2} modules with {size:,} of {outline.num_parameters:,} "
    assert expected in outline.notes[0]
    assert resident_of(family_run(family, lora={"target_modules": ["o_proj"]})).notes == ()
    if family == "DeepseekV3":
        assert "leaves 6 linear layers out, such as model.layers.0.mlp.gate_proj" in outline.notes[1]


def test_a_mixture_in_float32_is_planned_with_the_work_of_its_experts(family_run: MakeRun) -> None:
    costs = {}
    for dtype in ("float32", "bfloat16"):
        config = family_run("Mixtral", model={"dtype": dtype}, train={"batch_size": 2})
        costs[dtype] = step_cost(outline_of(config), config, is_cuda=False)
    assert costs["float32"].flops == costs["bfloat16"].flops
    # Two experts for each of 128 tokens, in two layers: gate, up and down, forward and backward.
    assert costs["float32"].flops > 2 * 2 * 128 * 2 * 2 * 3 * 32 * 64
    assert 1.9 < costs["float32"].training["weights"] / costs["bfloat16"].training["weights"] < 2.1


class Mixture(nn.Module):
    """A user's own: each text goes to one of its experts, and a layer is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(10, 8)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.unused = nn.Linear(8, 8)
        self.classifier = nn.Linear(8, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = (self.words(input_ids) * attention_mask[:, :, None]).mean(1)
        chosen = int(input_ids[0, 0]) % len(self.experts)
        logits: Tensor = self.classifier(self.experts[chosen](hidden))
        return logits


def test_an_expert_that_nothing_was_sent_to_is_not_taken_for_unreached() -> None:
    example = {"input_ids": torch.zeros(1, 3, dtype=torch.int64), "attention_mask": torch.ones(1, 3)}
    assert without_gradient(Mixture(), example) == {"unused", "unused.weight", "unused.bias"}


def test_what_gets_no_gradient_is_not_pulled_and_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    settings = LoraSection(rank=2, target_modules=("unused", "experts.0", "experts.1"))
    resident = add_lora(Mixture(), settings, heads=("classifier",), name="mixture")
    train = TrainSection(steps=4, batch_size=1, proximal_mu=0.5, weight_decay=0.1, device="cpu")
    task = SequenceClassification(tokenize=lambda texts: [[0] for _ in texts], pad_token_id=0)
    prepared = PreparedTexts([torch.tensor([place]) for place in range(2)], torch.tensor([0, 1]))
    before = resident.read()
    trainer: LocalTrainer[Any] = LocalTrainer(resident, task, train, device=CPU)
    for _ in range(2):
        assert trainer.train(prepared, progress=(0.0, 1.0), batch_seed=0, dropout_seed=0).is_finite
    after = resident.read()
    assert torch.equal(before.layers["unused"].A, after.layers["unused"].A)
    assert all(not torch.equal(before.layers[f"experts.{n}"].B, after.layers[f"experts.{n}"].B) for n in range(2))
    (record,) = caplog.records
    assert record.getMessage().startswith(
        "2 of the 8 tensors that are trained got no gradient in a whole round, such as"
    )


def test_an_expression_for_paths_is_short_and_matches_no_other() -> None:
    tower = [f"vision.layers.{n}.{leaf}" for n in range(12) for leaf in ("q", "v")]
    text = [f"text.layers.{n}.{leaf}" for n in range(12) for leaf in ("q", "v")]
    assert expression_for(tower, tower + text) == r"vision\..*"
    assert expression_for(text[::2], text) == r"text\.layers\.\d+\.q"
    assert expression_for([text[22], "head"], [*text, "head"]) == r"text\.layers\.11\.q|head"


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_planned_and_trained_alike(family_run: MakeRun, family: str) -> None:
    config = family_run(family, lora={"target_modules": FAMILIES[family][1], "rank": 2}, train={"proximal_mu": 0.1})
    resident, outline = resident_of(config), outline_of(config)
    assert {path: pair.shapes() for path, pair in outline.adapter.layers.items()} == {
        path: pair.shapes() for path, pair in resident.read().layers.items()
    }
    assert outline.num_trained == sum(parameter.numel() for parameter in resident.parameters)
    assert step_cost(outline, config, is_cuda=False).flops > 0
    assert outline.notes == resident.notes
    data = load_federated_data(config)
    base = load_base_model(config, data.labels)
    trainer: LocalTrainer[Any] = LocalTrainer(resident, base.task, config.train, device=CPU)
    prepared = base.task.prepare(data.clients["de"].training)
    assert trainer.train(prepared, progress=(0.0, 1.0), batch_seed=0, dropout_seed=0).is_finite
    assert all(bool(layer.B.any()) for layer in resident.read().layers.values())
