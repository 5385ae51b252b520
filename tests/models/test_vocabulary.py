"""Tokens without an embedding, and texts longer than a table of positions: refused before anything is trained."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models

from fedlora.common.config import RunConfig
from fedlora.common.errors import ModelError
from fedlora.models.base_model import load_base_model
from fedlora.simulation import simulate
from fedlora.training.footprint.outline import outline_of

MakeRun = Callable[..., RunConfig]
LABELS = ("a", "b", "c")
TABLE = {"kind": "sequence_classification", "max_length": 32}


def with_more_tokens(folder: Path, source: Path, *, num_tokens: int = 2) -> Path:
    """Return a copy of a model's folder in which somebody has added tokens to the tokenizer alone."""
    shutil.copytree(source, folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<new{number}>" for number in range(num_tokens)])
    tokenizer.save_pretrained(folder)
    return folder


def refusals(config: RunConfig, out: Path) -> set[str]:
    """Return the lines with which a plan, a simulation before its workers, and a worker refuse a run."""
    found = []
    for refused_by in (
        lambda: outline_of(config),
        lambda: simulate(config, out=out),
        lambda: load_base_model(config, LABELS),
    ):
        with pytest.raises(ModelError) as refused:
            refused_by()
        found.append(str(refused.value))
    assert not out.exists()
    return set(found)


@pytest.mark.parametrize("head", ["linear", "auto"])
def test_a_classifiers_tokens_without_an_embedding_are_refused(
    text_run: MakeRun, tiny_text_model: Path, tmp_path: Path, head: str
) -> None:
    folder = with_more_tokens(tmp_path / "model", tiny_text_model)
    num_tokens = len(transformers.AutoTokenizer.from_pretrained(folder))
    (line,) = refusals(text_run(model={"name": str(folder), "head": head}), tmp_path / "run")
    assert f"has {num_tokens} tokens, the model embeds {num_tokens - 2}; " in line
    assert "model.resize_token_embeddings(len(tokenizer))" in line


def test_a_language_models_tokens_without_an_embedding_are_refused(
    chat_run: MakeRun, tiny_language_model: Path, tmp_path: Path
) -> None:
    folder = with_more_tokens(tmp_path / "model", tiny_language_model)
    (line,) = refusals(chat_run(model={"name": str(folder)}), tmp_path / "run")
    assert "has 263 tokens, the model embeds 261" in line


def test_the_highest_token_counts_and_not_how_many_there_are(
    text_run: MakeRun, tiny_text_model: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_text_model, tmp_path / "model"))
    holes = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "good": 2, "bad": 900}, unk_token="[UNK]"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=holes, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(
        folder
    )
    (line,) = refusals(text_run(model={"name": str(folder)}), tmp_path / "run")
    assert "has 901 tokens" in line


def test_fewer_tokens_than_embeddings_are_taken(text_run: MakeRun, tiny_text_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_text_model, tmp_path / "model"))
    model = transformers.AutoModel.from_pretrained(folder, add_pooling_layer=False)
    model.resize_token_embeddings(model.config.vocab_size + 7, mean_resizing=False)
    model.save_pretrained(folder)
    config = text_run(model={"name": str(folder)})
    load_base_model(config, LABELS)
    assert outline_of(config).notes == ()


def test_a_plan_without_a_tokenizer_says_that_it_was_not_looked_at(
    text_run: MakeRun, tiny_text_model: Path, tmp_path: Path
) -> None:
    shutil.copy(tiny_text_model / "config.json", tmp_path)
    assert "the model's tokenizer is not here" in outline_of(text_run(model={"name": str(tmp_path)})).notes[0]


def test_a_padding_token_without_an_embedding_is_refused(
    chat_run: MakeRun, tiny_language_model: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_language_model, tmp_path / "model"))
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"pad_token_id": 0', '"pad_token_id": 261'))
    config = chat_run(model={"name": str(folder)})
    for refused_by in (lambda: outline_of(config), lambda: load_base_model(config, ())):
        with pytest.raises(ModelError, match="pad_token_id = 261, and vocab_size = 261; expected a token below 261"):
            refused_by()


def test_texts_longer_than_a_clips_table_of_positions_are_refused(
    text_run: MakeRun, tiny_text_model: Path, tmp_path: Path
) -> None:
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    settings = transformers.CLIPTextConfig(
        **size, vocab_size=200, max_position_embeddings=16, pad_token_id=0, bos_token_id=2, eos_token_id=3
    )
    torch.manual_seed(0)
    transformers.CLIPTextModel(settings).save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(tiny_text_model).save_pretrained(tmp_path)
    for task in ({**TABLE, "max_length": 17}, TABLE):
        config = text_run(model={"name": str(tmp_path)}, task=task)
        for refused_by in (outline_of, lambda run: load_base_model(run, LABELS)):
            with pytest.raises(ModelError, match=r"task.max_length is \d+; .* takes at most 16 tokens"):
                refused_by(config)
