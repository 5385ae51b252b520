"""Tiny real models and data for all tests: random weights from fixed seeds, saved as a user has them."""

import gc
import json
import os
import re
import string
from collections.abc import Callable, Generator, Mapping
from pathlib import Path

import numpy as np
import pytest

from fedlora.common.config import RunConfig

MakeRun = Callable[..., RunConfig]

# What a caller has exported changes what libraries and terminals do. Where files are kept (HF_HOME) does not.
_CALLERS = re.compile(
    r"(HF_(?!HOME$|HUB_CACHE$)|TRANSFORMERS_|FLWR_|RAY_|GRPC_|LC_).*|(HTTPS?|GRPC|ALL|NO)_PROXY|COLUMNS|LINES|TERM"
    r"|NO_COLOR|FORCE_COLOR|CLICOLOR.*|TTY_.*|LANG|LANGUAGE|TZ|PYTHON(WARNINGS|IOENCODING|UTF8|DEVMODE)",
    re.IGNORECASE,
)


def pytest_configure() -> None:
    """Forget the caller's environment; here, because some libraries read it once, when they are imported.

    One thread for each process: the tests run in two, and threads that wait for one another on matrices this small
    take five times as long.
    """
    for name in filter(_CALLERS.fullmatch, list(os.environ)):
        del os.environ[name]
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect without looking for garbage, which takes a third of the time: what is imported and collected stays."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let both halves, with which two processes begin, begin with long tests: none is left alone with them at the end.

    The tests of a file stay together, for what they share.
    """
    long, short = [], []
    for item in items:
        (long if "end_to_end" in item.path.parts else short).append(item)
    files = list(dict.fromkeys(item.path for item in long))
    halves = [[item for item in long if item.path in files[half::2]] for half in (0, 1)]
    middle = len(items) // 2 - len(halves[0])
    items[:] = [*halves[0], *short[: max(0, middle)], *halves[1], *short[max(0, middle) :]]


WORDS = ("good", "great", "fine", "bad", "poor", "awful", "the", "a", "film", "was", "not", "and", "very")


@pytest.fixture(scope="session")
def tiny_vision_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a ViT of two layers for pictures of 16 pixels: four patches and a class token."""
    import torch
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=16,
        patch_size=8,
        initializer_range=0.2,
    )
    folder = tmp_path_factory.mktemp("models") / "tiny-vit"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a BERT of two layers with its tokenizer, which knows `WORDS` whole and spells all others."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    letters = string.ascii_lowercase + string.digits + string.punctuation
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {entry: index for index, entry in enumerate(dict.fromkeys(entries))}
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        initializer_range=0.2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    BertTokenizer(vocab=vocabulary, model_max_length=128).save_pretrained(folder)
    return folder


CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="session")
def tiny_language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a Llama of two layers with a byte-level tokenizer and a chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    special = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {entry: index for index, entry in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>", additional_special_tokens=special[2:]
    )
    wrapped.chat_template = CHAT_TEMPLATE
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=256,
        initializer_range=0.2,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    wrapped.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a .jsonl of 90 conversations in three languages: a word of four letters is asked for backwards."""
    random = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "chats.jsonl"
    with path.open("w") as file:
        for number in range(90):
            word = "".join(random.choice(list("abcd"), size=2 + number % 5))
            messages = [{"role": "user", "content": word}, {"role": "assistant", "content": word[::-1]}]
            file.write(json.dumps({"messages": messages, "language": ("de", "en", "fr")[number % 3]}) + "\n")
    return path


@pytest.fixture(scope="session")
def tiny_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an .npz of three domains with 60 grey pictures of 16 pixels each.

    Label 0 has its ink at the left, 1 at the right, 2 in the middle; a domain has its own paper and ink.
    """
    random = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for domain, (paper, ink) in {"chalk": (20, 220), "pencil": (230, 90), "print": (140, 250)}.items():
        labels = np.arange(60) % 3
        images = np.full((60, 16, 16), paper, np.float64)
        for image, label in zip(images, labels, strict=True):
            start = (0, 11, 5)[label] + random.integers(0, 2)
            image[:, start : start + 4] = ink
        images += random.normal(0, 15, images.shape)
        arrays[f"{domain}_images"] = np.clip(images, 0, 255).astype(np.uint8)
        arrays[f"{domain}_labels"] = labels
    path = tmp_path_factory.mktemp("data") / "tiny_digits.npz"
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    return path


@pytest.fixture(scope="session")
def vision_run(tiny_vision_model: Path, tiny_digits: Path) -> MakeRun:
    """Return a function that gives a run over the tiny pictures; its keywords are sections, as tables, to change."""
    return _run(
        {
            "model": {"name": str(tiny_vision_model)},
            "task": {"kind": "image_classification", "image_size": 16},
            "data": {"path": str(tiny_digits)},
        }
    )


@pytest.fixture(scope="session")
def text_run(tiny_text_model: Path) -> MakeRun:
    """Return a function that gives a run over texts; its keywords are sections, as tables, to change."""
    return _run(
        {
            "model": {"name": str(tiny_text_model)},
            "task": {"kind": "sequence_classification", "max_length": 32},
            "data": {"path": "texts.csv", "group": "source"},
        }
    )


@pytest.fixture(scope="session")
def chat_run(tiny_language_model: Path, tiny_chats: Path) -> MakeRun:
    """Return a function that gives a run over the tiny conversations; its keywords are sections to change."""
    return _run(
        {
            "model": {"name": str(tiny_language_model)},
            "task": {"kind": "causal_lm", "max_length": 64},
            "data": {"path": str(tiny_chats), "group": "language"},
        }
    )


def _run(given: Mapping[str, Mapping[str, object]]) -> MakeRun:
    base = {
        **given,
        "lora": {"rank": 4},
        # A workbench by itself has no folder to keep moments in.
        "train": {"steps": 3, "batch_size": 8, "learning_rate": 0.01, "device": "cpu", "optimizer_state": "reset"},
        "evaluation": {"batch_size": 16},
    }

    def make(**sections: Mapping[str, object]) -> RunConfig:
        names = {*base, *sections}
        return RunConfig.model_validate({name: {**base.get(name, {}), **sections.get(name, {})} for name in names})

    return make
