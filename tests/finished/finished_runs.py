"""Runs of one client and one round, as their folders are left."""

import json
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fedlora.adapters import Adapter, save_adapter, unpack
from fedlora.client.worker.workbench import Workbench
from fedlora.common.config import RunConfig
from fedlora.common.messages import EvaluateRequest, TrainRequest
from fedlora.common.run_file import to_toml
from fedlora.training.data import Examples, FederatedData
from fedlora.training.data.examples import ClientData, Conversation, Turn

TEMPLATE = (
    "{% for message in messages %}{{ message.role }} : {{ message.content }} </s> {% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


def write_run(folder: Path, config: RunConfig, data: FederatedData) -> dict[int, int]:
    """Train one client for a round, leave what a run leaves, and return the predictions on the held-out set."""
    workbench = Workbench(config, data)
    client = workbench.client_names[0]
    receipt = workbench.train(client, TrainRequest("run", 1, 0, config.run.seed, 2, 0, workbench._initial))
    packed = receipt.adapter
    assert isinstance(packed, bytes)
    leave(folder, config, workbench, unpack(packed))
    judged = workbench.evaluate(client, EvaluateRequest("run", 1, None, 0, 1, True, packed))
    return dict(judged.predictions)


def trained_adapters(config: RunConfig, data: FederatedData) -> tuple[Workbench, dict[str, Adapter]]:
    """Return the workbench, and what each client makes of the first adapter in a round, by name."""
    workbench = Workbench(config, data)
    adapters = {}
    for client in workbench.client_names:
        receipt = workbench.train(client, TrainRequest("run", 1, 0, config.run.seed, 2, 0, workbench._initial))
        assert isinstance(receipt.adapter, bytes)
        adapters[client] = unpack(receipt.adapter)
    return workbench, adapters


def leave(folder: Path, config: RunConfig, workbench: Workbench, adapter: Adapter) -> None:
    """Write what a run with this adapter leaves."""
    save_adapter(adapter, folder / "adapter")
    (folder / "run.toml").write_text(to_toml(config))
    described = workbench.describe(workbench.client_names[0])
    manifest = {
        "labels": described.labels,
        "metric": described.metric_name,
        "base_model": {"name": config.model.name, "fingerprint": described.base_model_fingerprint},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def save_language_model(
    folder: Path, *, has_template: bool = True, dtype: torch.dtype = torch.float32, ties: bool = False
) -> None:
    """Write a Llama of two layers, with a tokenizer that knows a few words whole and spells all others by letter."""
    words = ("red", "green", "blue", "dog", "sky", "user", "assistant", ":", "is", "what", "the", "colour", "?")
    entries = ["<unk>", "<s>", "</s>", *words, *string.ascii_letters, *string.digits, *".,()=/+'`#\"-"]
    vocabulary = {entry: index for index, entry in enumerate(dict.fromkeys(entries))}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", model_max_length=128
    )
    if has_template:
        tokenizer.chat_template = TEMPLATE
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=ties,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def language_run(folder: Path, /, **sections: Mapping[str, object]) -> RunConfig:
    """Return a run of a causal language model on the CPU."""
    base: dict[str, dict[str, object]] = {
        "model": {"name": str(folder)},
        "task": {"kind": "causal_lm", "max_length": 64},
        "lora": {"rank": 4},
        "data": {"path": "questions.jsonl"},
        "partition": {"by": "iid"},
        "train": {"steps": 60, "batch_size": 4, "learning_rate": 0.02, "device": "cpu", "optimizer_state": "reset"},
    }
    names = {*base, *sections}
    return RunConfig.model_validate({name: {**base.get(name, {}), **sections.get(name, {})} for name in names})


def questions(style: Literal["chat", "instruction", "plain"] = "chat") -> FederatedData:
    """Return what one client asks and is answered; the test set is the same."""
    answers = {"what colour is the sky ?": "blue", "what colour is the dog ?": "red"}
    conversations = [
        Conversation((Turn("user", question), Turn("assistant", answer)), style) for question, answer in answers.items()
    ] * 4
    examples = Examples(conversations, np.zeros(8, dtype=np.int64), np.full(8, "", dtype=np.str_))
    return FederatedData((), {"asker": ClientData(examples, examples.take([]))}, examples, "sha256:0")
