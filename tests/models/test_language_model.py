"""Language models as base models: what fits, what is refused, initialisers, precision, 4 and 8 bits."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedlora.adapters import save_adapter
from fedlora.common.config import RunConfig
from fedlora.common.errors import ModelError
from fedlora.models.base_model import load_base_model
from fedlora.models.reach import logits_of
from fedlora.training.data import load_federated_data
from fedlora.training.peft_bridge import ResidentModel, add_lora, with_saved_adapter
from fedlora.training.trainer import LocalTrainer, TrainingResult

MakeRun = Callable[..., RunConfig]
CPU = torch.device("cpu")
TOKENS = torch.arange(5, 25)[None]


@pytest.fixture
def copied(tiny_language_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_language_model, tmp_path / "model"))


def resident_of(config: RunConfig) -> ResidentModel:
    torch.manual_seed(0)
    base = load_base_model(config, ())
    return add_lora(base.module, config.lora, heads=base.heads, task_type=base.peft_task_type, name="tiny")


def trained(config: RunConfig, steps: int = 3) -> tuple[LocalTrainer[Any], TrainingResult]:
    """Return a trainer after some steps on the first client, and what they gave."""
    torch.manual_seed(0)
    data = load_federated_data(config)
    base = load_base_model(config, data.labels)
    resident = add_lora(base.module, config.lora, heads=base.heads, task_type=base.peft_task_type, name="tiny")
    if config.train.gradient_checkpointing:
        resident.save_memory()
    trainer: LocalTrainer[Any] = LocalTrainer(resident, base.task, config.train, device=CPU)
    prepared = base.task.prepare(data.clients["de"].training)
    result = trainer.train(prepared, progress=(0.0, 0.1), batch_seed=1, dropout_seed=1, max_steps=steps)
    return trainer, result


def largest_difference(one: LocalTrainer[Any], other: LocalTrainer[Any]) -> float:
    pairs = zip(one.model.parameters, other.model.parameters, strict=True)
    return max(float((left.detach() - right.detach()).abs().max()) for left, right in pairs)


def test_all_linear_leaves_the_output_layer_alone(chat_run: MakeRun) -> None:
    layers = resident_of(chat_run(lora={"target_modules": "all-linear"})).read().layers
    names = {path.rpartition(".")[2] for path in layers}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_modules_to_save_are_trained_whole_and_load_in_plain_peft(chat_run: MakeRun, tmp_path: Path) -> None:
    config = chat_run(lora={"modules_to_save": ["lm_head", "norm"]})
    trainer, _ = trained(config)
    adapter = trainer.model.read()
    assert sorted(adapter.dense) == ["lm_head.weight", "model.norm.weight"]
    save_adapter(adapter, tmp_path / "adapter")
    plain = with_saved_adapter(AutoModelForCausalLM.from_pretrained(config.model.name), tmp_path / "adapter")
    trainer.model.set_training(False)
    torch.testing.assert_close(plain(input_ids=TOKENS).logits, trainer.model.peft_model(input_ids=TOKENS).logits)


def test_a_module_that_shares_its_weights_is_not_trained_whole(chat_run: MakeRun, copied: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(copied)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(copied)
    with pytest.raises(ModelError, match=r"lm_head.* shares its weights with model\.embed_tokens"):
        resident_of(chat_run(model={"name": str(copied)}, lora={"modules_to_save": ["lm_head"]}))


def test_a_weight_that_the_files_lack_must_be_trained_whole(chat_run: MakeRun, copied: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r'holds no lm_head\.weight.*lora\.modules_to_save = \["lm_head"\]'):
        resident_of(chat_run(model={"name": str(copied)}))
    resident_of(chat_run(model={"name": str(copied)}, lora={"modules_to_save": ["lm_head"]}))


def test_texts_longer_than_the_models_positions_are_refused(chat_run: MakeRun) -> None:
    with pytest.raises(ModelError, match=r"task\.max_length is 300; .* takes at most 256 tokens"):
        resident_of(chat_run(task={"max_length": 300}))


def test_an_encoder_is_no_language_model(chat_run: MakeRun, tiny_vision_model: Path) -> None:
    with pytest.raises(ModelError, match="is no causal language model"):
        resident_of(chat_run(model={"name": str(tiny_vision_model)}))


def test_a_tokenizer_with_more_tokens_than_the_model_embeds_is_refused(chat_run: MakeRun, copied: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(copied)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(copied)
    with pytest.raises(ModelError, match="has 262 tokens, the model embeds 261"):
        resident_of(chat_run(model={"name": str(copied)}))


def test_each_part_of_how_texts_become_tokens_has_a_fingerprint(chat_run: MakeRun, copied: Path) -> None:
    first = load_base_model(chat_run(), ()).fingerprints
    assert load_base_model(chat_run(), ()).fingerprints == first
    other = load_base_model(chat_run(task={"chat_template": "{{ messages[0]['content'] }}"}), ()).fingerprints
    assert {name for name in first if first[name] != other[name]} == {"chat_template"}
    tokenizer = AutoTokenizer.from_pretrained(copied)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(copied)
    model = AutoModelForCausalLM.from_pretrained(copied)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(copied)
    added = load_base_model(chat_run(model={"name": str(copied)}), ()).fingerprints
    assert {name for name in first if first[name] != added[name]} == {"added_tokens"}


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_adapter_out_of_the_base_weights_changes_nothing_at_first(
    chat_run: MakeRun, tmp_path: Path, init: str
) -> None:
    config = chat_run(lora={"init": init})
    resident = resident_of(config)
    plain = AutoModelForCausalLM.from_pretrained(config.model.name)
    first = resident.taken_out_of_base(init)
    # Whoever made it still has its base weights, and whoever receives it takes the same part out.
    receiver = resident_of(config)
    for model in (resident, receiver):
        model.load(first)
        model.set_training(False)
        torch.testing.assert_close(
            model.peft_model(input_ids=TOKENS).logits, plain(input_ids=TOKENS).logits, atol=2e-5, rtol=1e-4
        )
    assert min(float(layer.B.abs().max()) for layer in first.layers.values()) > 0.01
    # The folder holds one pair of twice the rank, which plain PEFT loads onto the untouched model.
    save_adapter(first, tmp_path / "adapter")
    loaded = with_saved_adapter(plain, tmp_path / "adapter")
    torch.testing.assert_close(
        loaded(input_ids=TOKENS).logits, receiver.peft_model(input_ids=TOKENS).logits, atol=2e-5, rtol=1e-4
    )


def test_pissas_pairs_are_the_principal_part(chat_run: MakeRun) -> None:
    config = chat_run(lora={"init": "pissa"})
    first = resident_of(config).taken_out_of_base("pissa")
    weights = AutoModelForCausalLM.from_pretrained(config.model.name).state_dict()
    for path, layer in first.layers.items():
        U, S, V = torch.linalg.svd(weights[f"{path}.weight"])
        principal = U[:, : layer.rank] * S[: layer.rank] @ V[: layer.rank]
        torch.testing.assert_close(layer.scaling * layer.B @ layer.A, principal, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("init", ["gaussian", "orthogonal"])
def test_other_starts_leave_the_model_as_it_is(chat_run: MakeRun, init: str) -> None:
    config = chat_run(lora={"init": init})
    resident = resident_of(config)
    resident.set_training(False)
    plain = AutoModelForCausalLM.from_pretrained(config.model.name)
    expected, default = plain(input_ids=TOKENS).logits, resident_of(chat_run()).read()
    torch.testing.assert_close(resident.peft_model(input_ids=TOKENS).logits, expected, atol=1e-4, rtol=1e-4)
    pairs = [(layer.A, default.layers[path].A) for path, layer in resident.read().layers.items()]
    assert not any(torch.equal(one, other) for one, other in pairs)


def test_dora_trains_magnitudes_too(chat_run: MakeRun) -> None:
    trainer, result = trained(chat_run(lora={"use_dora": True}))
    assert result.is_finite
    assert all(layer.magnitude is not None for layer in trainer.model.read().layers.values())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_what_is_trained_is_float32_whatever_the_base_weights_are(chat_run: MakeRun, dtype: str) -> None:
    trainer, result = trained(chat_run(model={"dtype": dtype}, lora={"modules_to_save": ["lm_head"]}), steps=5)
    assert {parameter.dtype for parameter in trainer.model.parameters} == {torch.float32}
    assert trainer.model.base_dtype == getattr(torch, dtype)
    _, expected = trained(chat_run(lora={"modules_to_save": ["lm_head"]}), steps=5)
    assert result.is_finite
    assert result.loss == pytest.approx(expected.loss, rel=0.02)


@pytest.mark.parametrize(
    "train", [{"micro_batch_size": 3}, {"packing": True}, {"gradient_checkpointing": True}], ids=str
)
def test_what_saves_memory_or_time_changes_no_update(chat_run: MakeRun, train: dict[str, Any]) -> None:
    plain, expected = trained(chat_run(train={"optimizer": "sgd"}))
    other, result = trained(chat_run(train={"optimizer": "sgd", **train}))
    assert result.loss == pytest.approx(expected.loss, rel=1e-5)
    assert result.num_tokens == expected.num_tokens > 0
    assert largest_difference(plain, other) < 1e-6


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_quantised_base_weights_train_where_bitsandbytes_is(chat_run: MakeRun, quantization: str) -> None:
    config = chat_run(model={"quantization": quantization}, lora={"target_modules": "all-linear"})
    trainer, result = trained(config, steps=8)
    assert result.is_finite
    quantised = trainer.model.peft_model.get_base_model().get_submodule("model.layers.0.mlp.up_proj.base_layer")
    assert not quantised.weight.is_floating_point()  # type: ignore[operator, union-attr]
    _, expected = trained(chat_run(lora={"target_modules": "all-linear"}), steps=8)
    assert result.loss == pytest.approx(expected.loss, rel=0.2)


def test_logits_are_taken_from_an_output_or_are_it() -> None:
    assert logits_of(TOKENS) is TOKENS
