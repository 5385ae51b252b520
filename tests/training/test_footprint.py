"""What is known of a run from its model's config.json: sizes, shapes, and what cannot work."""

import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from fedlora.common.config import EvaluationSection, RunConfig
from fedlora.common.errors import ConfigError, ModelError
from fedlora.models.base_model import load_base_model
from fedlora.training.footprint.live_bytes import ACTIVATIONS, LiveBytes
from fedlora.training.footprint.outline import ASSUMED_LABELS, outline_of
from fedlora.training.footprint.quantised import quantised_bytes
from fedlora.training.footprint.step import step_cost
from fedlora.training.peft_bridge import add_lora

MakeRun = Callable[..., RunConfig]
NO_CHANGE: dict[str, dict[str, object]] = {}


def llama_run(folder: Path, chat_run: MakeRun, *, num_layers: int = 32, **model: object) -> RunConfig:
    """Return a run of a Llama 3.1 8B, of which `folder` has the config.json and nothing else."""
    LlamaConfig(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=num_layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=131_072,
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder)
    return chat_run(
        model={"name": str(folder), "dtype": "bfloat16", **model},
        task={"max_length": 512},
        train={"batch_size": 4, "micro_batch_size": 1},
        evaluation={"batch_size": 1},
        lora={"rank": 16},
    )


# All 32 layers are the 8 billion; two of them alone would be three gigabytes.
@pytest.mark.parametrize("num_layers", [2, pytest.param(32, marks=pytest.mark.slow)])
def test_a_model_of_8_billion_is_planned_without_its_weights_or_memory(
    tmp_path: Path, chat_run: MakeRun, num_layers: int
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    config = llama_run(tmp_path, chat_run, num_layers=num_layers)
    outline = outline_of(config)
    cost = step_cost(outline, config, is_cuda=True)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 0.5e9
    assert [path.name for path in tmp_path.glob("*.json")] == ["config.json"]
    assert outline.num_parameters == 8_030_261_248 - (32 - num_layers) * 218_112_000
    assert (
        outline.num_trained == 6_815_744 * num_layers // 32
    )  # as PEFT prints it for this model, rank and target modules
    assert cost.training["weights"] == pytest.approx(2 * outline.num_parameters, rel=1e-3)
    # Two operations for each weight and token forward, and as many backward; the embeddings are looked up.
    weights = outline.num_parameters - 128_256 * 4096
    assert cost.flops == pytest.approx(4 * 512 * 4 * weights, rel=0.1)


def test_judging_takes_no_more_at_once_than_training_unless_the_run_says_so(tmp_path: Path, chat_run: MakeRun) -> None:
    config = llama_run(tmp_path, chat_run, num_layers=2)
    config = config.model_copy(update={"evaluation": EvaluationSection()})
    outline = outline_of(config)
    followed = step_cost(outline, config, is_cuda=True)
    assert sum(followed.evaluation.values()) <= sum(followed.training.values())
    large = config.model_copy(update={"evaluation": EvaluationSection(batch_size=32)})
    assert sum(step_cost(outline, large, is_cuda=True).evaluation.values()) > sum(followed.training.values())


@pytest.mark.parametrize(("quantization", "bits"), [("8bit", 8.0), ("4bit", 4.127)])
def test_quantised_weights_take_what_bitsandbytes_needs(
    tmp_path: Path, chat_run: MakeRun, quantization: str, bits: float
) -> None:
    """The 0.127 bits of 4bit are those of QLoRA's double quantisation (arXiv 2305.14314, section 3)."""
    config = llama_run(tmp_path, chat_run, num_layers=2, quantization=quantization)
    outline = outline_of(config)
    cost = step_cost(outline, config, is_cuda=True)
    in_full = 2 * 128_256 * 4096  # embeddings and logits stay in bfloat16
    quantised = (outline.num_parameters - in_full) * bits / 8
    assert cost.training["weights"] == pytest.approx(2 * in_full + quantised, rel=0.002)
    assert quantised_bytes((4096, 4096), num_bits=4) * 8 / 4096**2 == pytest.approx(4.127, abs=0.001)


def test_what_is_trained_is_what_the_loaded_model_trains(text_run: MakeRun) -> None:
    for sections in (NO_CHANGE, {"lora": {"use_dora": True}}, {"lora": {"target_modules": "all-linear"}}):
        config = text_run(**sections)
        base = load_base_model(config, tuple(map(str, range(ASSUMED_LABELS))))
        resident = add_lora(base.module, config.lora, heads=base.heads, task_type=base.peft_task_type, name="bert")
        outline, adapter = outline_of(config), resident.read()
        assert outline.num_trained == sum(parameter.numel() for parameter in resident.parameters)
        assert outline.adapter.size_bytes() == adapter.size_bytes()
        assert {path: pair.shapes() for path, pair in outline.adapter.layers.items()} == {
            path: pair.shapes() for path, pair in adapter.layers.items()
        }


def test_a_method_that_trains_one_factor_trains_less_and_keeps_no_moments_of_the_other(chat_run: MakeRun) -> None:
    config = chat_run()
    both, only_B = outline_of(config), outline_of(config, trains=("B",))
    assert only_B.num_trained == sum(pair.B.numel() for pair in both.adapter.layers.values())
    costs = [step_cost(outline, config, is_cuda=False).training for outline in (both, only_B)]
    assert costs[0]["adapter"] == costs[1]["adapter"]
    assert costs[0]["optimizer"] > 1.5 * costs[1]["optimizer"]


def test_what_steps_pull_to_or_go_on_with_is_one_more_copy_of_what_is_trained(vision_run: MakeRun) -> None:
    def optimizer(**train: object) -> int:
        config = vision_run(train=train)
        return step_cost(outline_of(config), config, is_cuda=False).training["optimizer"]

    plain, size = optimizer(), 4 * outline_of(vision_run()).num_trained
    assert optimizer(client_momentum=0.5) == plain + size
    assert optimizer(client_momentum=0.5, proximal_mu=0.1) == plain + 2 * size


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"lora": {"rank": 64}}, "lora.rank is 64, more than q_proj"),
        ({"lora": {"target_modules": ["nothing"]}}, "'nothing' matches no linear layer"),
        ({"lora": {"modules_to_save": ["nothing"]}}, "'nothing' is no module"),
        ({"task": {"max_length": 257}}, "task.max_length is 257; .* at most 256 tokens"),
        ({"model": {"name": "/nowhere"}}, "no folder /nowhere"),
    ],
)
def test_what_cannot_work_with_a_language_model_is_refused(
    chat_run: MakeRun, sections: dict[str, dict[str, object]], words: str
) -> None:
    with pytest.raises(ModelError, match=words) as refused:
        outline_of(chat_run(**sections))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("head", ["linear", "auto"])
def test_texts_longer_than_a_table_of_positions_are_refused(text_run: MakeRun, head: str) -> None:
    with pytest.raises(ModelError, match=r"task.max_length is 129; .* at most 128 tokens"):
        outline_of(text_run(model={"head": head}, task={"max_length": 129}))


def test_a_model_of_another_kind_is_refused(text_run: MakeRun, vision_run: MakeRun, chat_run: MakeRun) -> None:
    text, vision = text_run().model.name, vision_run().model.name
    with pytest.raises(ModelError, match="is a vision encoder"):
        outline_of(text_run(model={"name": vision}))
    with pytest.raises(ModelError, match="is no vision encoder"):
        outline_of(vision_run(model={"name": text}))
    with pytest.raises(ModelError, match="no causal language model"):
        outline_of(chat_run(model={"name": vision}))


def test_pictures_that_a_model_does_not_take_are_refused(vision_run: MakeRun) -> None:
    config = vision_run(task={"image_size": 24}, model={"head": "auto"})
    with pytest.raises(ModelError, match="inputs of 24 pixels"):
        step_cost(outline_of(config), config, is_cuda=False)


def test_a_folder_without_config_is_refused(tmp_path: Path, chat_run: MakeRun) -> None:
    with pytest.raises(ModelError, match=r"holds no config.json"):
        outline_of(chat_run(model={"name": str(tmp_path)}))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot load"):
        outline_of(chat_run(model={"name": str(tmp_path)}))


def test_a_hub_model_is_refused_in_words_where_the_hub_cannot_be_reached(
    chat_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="hub cannot be reached"):
        outline_of(chat_run(model={"name": "nobody/such-a-model"}))


def test_an_own_task_cannot_be_planned() -> None:
    config = RunConfig.model_validate({"task": {"kind": "own", "name": "tone"}})
    with pytest.raises(ConfigError, match=r"'tone' .* cannot be planned"):
        outline_of(config)


def test_bytes_are_counted_once_for_each_storage_and_until_it_is_freed() -> None:
    live = LiveBytes()
    with live:
        one = torch.ones(100)
        view = one[10:].view(9, 10)
        two = one + 1
        del two, one
        three = torch.ones(50)
    assert live.peak == {ACTIVATIONS: 800}
    live.restart()
    assert live.peak == {ACTIVATIONS: 600}
    live.count([view], "weights")
    assert live.peak == {ACTIVATIONS: 600}
    del three
    with live:
        four = torch.ones(1000)
    assert live.peak == {"weights": 400, ACTIVATIONS: four.nbytes}


def test_an_allocator_that_rounds_up_takes_more() -> None:
    live = LiveBytes(block_bytes=512)
    live.count([torch.ones(1), torch.ones(129)], "weights")
    assert live.peak == {"weights": 512 + 1024}
