"""The memory that is planned, held against what torch's profiler finds alive while LocalTrainer trains."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from fedlora.common.config import CausalLm, ImageClassification, RunConfig
from fedlora.models.base_model import load_base_model
from fedlora.training.footprint.outline import ASSUMED_LABELS, outline_of
from fedlora.training.footprint.step import UNTOUCHED, step_cost
from fedlora.training.peft_bridge import add_lora
from fedlora.training.tasks.causal_lm import CausalLm as LanguageTask
from fedlora.training.tasks.causal_lm import PreparedConversations
from fedlora.training.tasks.image_classification import PreparedImages
from fedlora.training.tasks.sequence_classification import PreparedTexts
from fedlora.training.trainer import LocalTrainer

MakeRun = Callable[..., RunConfig]
LABELS = tuple(map(str, range(ASSUMED_LABELS)))
# What an operation takes and gives back within itself is not planned; it counts in models as tiny as these.
CLOSE = pytest.approx(1, abs=0.06)


@pytest.fixture
def lm_run(tiny_language_model: Path, tmp_path: Path, chat_run: MakeRun) -> MakeRun:
    """Return a function that gives a run of a Llama of which activations, logits and weights all count."""
    folder = tmp_path / "llama"
    tokenizer_size = json.loads((tiny_language_model / "config.json").read_text())["vocab_size"]
    config = LlamaConfig(
        vocab_size=max(2048, tokenizer_size),
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for file in tiny_language_model.iterdir():
        if "token" in file.name or file.name == "chat_template.jinja":
            (folder / file.name).write_bytes(file.read_bytes())
    return lambda **sections: chat_run(
        **{**sections, "model": {"name": str(folder), **sections.get("model", {})}}  # type: ignore[dict-item]
    )


def planned(config: RunConfig) -> int:
    return sum(step_cost(outline_of(config), config, is_cuda=False).training.values())


def measured(config: RunConfig, *, num_steps: int = 2) -> int:
    """Return the most bytes of tensors alive in two steps on examples of the full length, the model's included."""
    base = load_base_model(config, LABELS)
    resident = add_lora(
        base.module, config.lora, heads=base.heads, task_type=base.peft_task_type, name=config.model.name
    )
    if config.train.gradient_checkpointing:
        resident.save_memory()
    trainer: LocalTrainer[Any] = LocalTrainer(resident, base.task, config.train, device=torch.device("cpu"))
    tensors = [*resident.peft_model.parameters(), *resident.peft_model.buffers()]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    prepared = full_examples(config)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        trainer.train(prepared, progress=(0.0, 1.0), batch_seed=0, dropout_seed=0, max_steps=num_steps)
    changes = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return sum(storages.values()) + int(np.cumsum([event.nbytes() for event in changes]).max())


def full_examples(config: RunConfig) -> Any:
    """Return as many examples as two steps take, as long as they may be but for one token of every other text."""
    num_examples = 2 * config.train.batch_size
    targets = torch.arange(num_examples) % len(LABELS)
    if isinstance(config.task, ImageClassification):
        size = config.task.image_size
        return PreparedImages(torch.zeros(num_examples, 3, size, size, dtype=torch.uint8), targets)
    lengths = [config.task.max_length - index % 2 for index in range(num_examples)]  # type: ignore[union-attr]
    token_ids = [torch.ones(length, dtype=torch.int64) for length in lengths]
    if isinstance(config.task, CausalLm):
        return PreparedConversations(token_ids, [ids.bool() for ids in token_ids], np.arange(num_examples))
    return PreparedTexts(token_ids, targets)


@pytest.mark.parametrize(
    "train",
    [
        {},
        {"precision": "bfloat16"},
        {"optimizer": "sgd"},
        # As of a language model, below.
        pytest.param({"micro_batch_size": 6}, marks=pytest.mark.slow),
        pytest.param({"gradient_checkpointing": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_the_memory_of_pictures_is_what_the_profiler_finds(vision_run: MakeRun, train: dict[str, object]) -> None:
    config = vision_run(train={"batch_size": 16, **train})
    assert planned(config) / measured(config) == CLOSE


@pytest.mark.parametrize("head", ["linear", "auto"])
def test_the_memory_of_texts_is_what_the_profiler_finds(text_run: MakeRun, head: str) -> None:
    config = text_run(model={"head": head}, task={"max_length": 64})
    assert planned(config) / measured(config) == CLOSE


@pytest.mark.parametrize(
    ("max_length", "sections"),
    [
        pytest.param(32, {}, marks=pytest.mark.slow),
        (128, {}),
        (128, {"train": {"gradient_checkpointing": True}}),
        (128, {"train": {"micro_batch_size": 2}}),
        (128, {"train": {"packing": True}}),
        (32, {"model": {"dtype": "bfloat16"}}),
        (32, {"lora": {"target_modules": "all-linear", "rank": 8, "use_dora": True}}),
        (32, {"lora": {"modules_to_save": ["lm_head"]}}),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_the_memory_of_a_language_model_is_what_the_profiler_finds(
    lm_run: MakeRun, max_length: int, sections: dict[str, dict[str, object]]
) -> None:
    config = lm_run(**{**sections, "task": {"max_length": max_length}})
    assert planned(config) / measured(config) == CLOSE


def test_the_parts_add_up_and_the_weights_are_those_of_the_model(lm_run: MakeRun) -> None:
    config = lm_run(task={"max_length": 64}, train={"micro_batch_size": 2})
    outline = outline_of(config)
    cost = step_cost(outline, config, is_cuda=False)
    module = load_base_model(config, ()).module
    weights = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
    assert cost.training["weights"] == weights
    assert cost.training["adapter"] == cost.training["gradients"] == 4 * outline.num_trained
    assert 2 * cost.training["adapter"] <= cost.training["optimizer"] < 2.1 * cost.training["adapter"]


def test_judging_takes_no_gradients_and_more_with_more_examples(lm_run: MakeRun) -> None:
    few, many = (
        step_cost(outline_of(config), config, is_cuda=False).evaluation
        for config in (lm_run(evaluation={"batch_size": size}) for size in (2, 32))
    )
    assert not few.get("gradients")
    assert not few.get("optimizer")
    assert few["weights"] == many["weights"]
    assert many["activations"] > 8 * few["activations"]


def test_who_changes_base_weights_keeps_the_first_ones_too(lm_run: MakeRun) -> None:
    config = lm_run()
    outline = outline_of(config)
    kept = step_cost(outline, config, is_cuda=False, changes_base=True).training[UNTOUCHED]
    assert kept == sum(4 * pair.A.shape[1] * pair.B.shape[0] for pair in outline.adapter.layers.values())


def test_checkpointing_costs_operations_and_saves_memory(lm_run: MakeRun) -> None:
    plain, saving = (
        step_cost(outline_of(config), config, is_cuda=False)
        for config in (
            lm_run(task={"max_length": 128}, train={"gradient_checkpointing": is_on}) for is_on in (False, True)
        )
    )
    assert plain.flops * 1.1 < saving.flops < plain.flops * 1.6
    assert sum(saving.training.values()) < 0.8 * sum(plain.training.values())


def test_cuda_computes_norms_in_float32_and_rounds_what_it_gives(vision_run: MakeRun) -> None:
    config = vision_run(train={"precision": "bfloat16"})
    cpu, cuda = (step_cost(outline_of(config), config, is_cuda=is_cuda).training for is_cuda in (False, True))
    assert cuda["activations"] > cpu["activations"]
    assert cuda["workspace"] > 0
    assert all(size % 512 == 0 for size in cuda.values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("is_on", [False, True])
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_the_memory_of_a_gpu_is_what_its_allocator_says(tmp_path: Path, chat_run: MakeRun, is_on: bool) -> None:
    folder = tmp_path / "llama"
    size = {"vocab_size": 32_000, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8}
    LlamaForCausalLM(LlamaConfig(**size)).bfloat16().save_pretrained(folder)
    config = chat_run(
        model={"name": str(folder), "dtype": "bfloat16"},
        task={"max_length": 1024},
        train={"device": "cuda", "batch_size": 8, "gradient_checkpointing": is_on},
    )
    expected = sum(step_cost(outline_of(config), config, is_cuda=True).training.values())
    base = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    base.config.use_cache = False
    resident = add_lora(base, config.lora, heads=(), task_type="CAUSAL_LM", name="llama")
    if is_on:
        resident.save_memory()
    device = torch.device("cuda")
    resident.peft_model.to(device)
    tokenizer = SimpleNamespace(pad_token_id=0, eos_token_id=0)
    task = LanguageTask(tokenizer, max_length=1024, picks_positions=True)
    trainer: LocalTrainer[Any] = LocalTrainer(resident, task, config.train, device=device)
    torch.cuda.reset_peak_memory_stats()
    trainer.train(full_examples(config), progress=(0.0, 1.0), batch_seed=0, dropout_seed=0, max_steps=2)
    assert expected / torch.cuda.max_memory_allocated() == pytest.approx(1, abs=0.15)
