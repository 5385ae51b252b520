"""Examples to tensors, and outputs to losses, metrics and labels."""

import math
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

from fedlora.training.data import Examples
from fedlora.training.tasks import Batch, ImageClassification, SequenceClassification
from fedlora.training.tasks.classification import Classification


def pictures(inputs: np.ndarray) -> Examples:
    return Examples(inputs, np.arange(len(inputs)), np.full(len(inputs), ""))


def texts(*inputs: str) -> Examples:
    return Examples(list(inputs), np.arange(len(inputs)), np.full(len(inputs), ""))


def by_letter(inputs: list[str]) -> list[list[int]]:
    return [[ord(letter) for letter in text] for text in inputs]


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_become_normalised_channels(channels: int) -> None:
    inputs = np.random.default_rng(0).integers(0, 256, (5, 4, 6, channels), dtype=np.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    task = ImageClassification(mean=mean, std=std)

    batch = task.collate(task.prepare(pictures(inputs)), np.array([3, 1]))

    expected = (np.broadcast_to(inputs[[3, 1]], (2, 4, 6, 3)) / 255 - mean) / std
    assert batch.inputs["pixel_values"].is_contiguous()
    torch.testing.assert_close(
        batch.inputs["pixel_values"], torch.from_numpy(expected).permute(0, 3, 1, 2).float(), rtol=0, atol=1e-5
    )
    assert batch.targets.tolist() == [3, 1]


def test_pictures_are_kept_as_bytes() -> None:
    task = ImageClassification(mean=(0.5,) * 3, std=(0.5,) * 3)
    assert task.prepare(pictures(np.zeros((2, 4, 4, 3), np.uint8))).pixels.nbytes == 2 * 4 * 4 * 3


def test_a_read_only_array_of_pictures_is_taken_without_a_warning() -> None:
    inputs = np.zeros((2, 4, 4, 1), np.uint8)
    inputs.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ImageClassification(mean=(0.5,) * 3, std=(0.5,) * 3).prepare(pictures(inputs))


def test_a_grey_models_pictures_keep_one_channel() -> None:
    task = ImageClassification(mean=(0.5,), std=(0.5,))
    prepared = task.prepare(pictures(np.zeros((2, 4, 4, 1), np.uint8)))
    assert task.collate(prepared, np.array([0, 1])).inputs["pixel_values"].shape == (2, 1, 4, 4)


def test_texts_are_padded_to_the_longest_of_their_batch_and_masked() -> None:
    task = SequenceClassification(tokenize=by_letter, pad_token_id=7)
    prepared = task.prepare(texts("abc", "a much longer text", "z"))

    batch = task.collate(prepared, np.array([2, 0]))

    assert batch.inputs["input_ids"].tolist() == [[122, 7, 7], [97, 98, 99]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]
    assert batch.targets.tolist() == [2, 0]


def test_padding_is_told_by_length_and_not_by_its_number() -> None:
    task = SequenceClassification(tokenize=by_letter, pad_token_id=ord("a"))
    batch = task.collate(task.prepare(texts("aa", "aaa")), np.array([0, 1]))
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]


def test_texts_are_tokenised_once_and_all_together() -> None:
    calls: list[list[str]] = []

    def tokenize(inputs: list[str]) -> list[list[int]]:
        calls.append(inputs)
        return by_letter(inputs)

    task = SequenceClassification(tokenize=tokenize, pad_token_id=0)
    prepared = task.prepare(texts("a", "b"))
    for _ in range(3):
        task.collate(prepared, np.array([0, 1]))
    assert calls == [["a", "b"]]


def test_a_text_without_tokens_is_one_padding_token() -> None:
    task = SequenceClassification(tokenize=by_letter, pad_token_id=7)
    batch = task.collate(task.prepare(texts("", "")), np.array([0, 1]))
    assert batch.inputs["input_ids"].tolist() == [[7], [7]]
    assert batch.inputs["input_ids"].dtype == torch.int64
    assert batch.inputs["attention_mask"].tolist() == [[1], [1]]


def test_no_texts_are_prepared_without_asking_the_tokenizer() -> None:
    task = SequenceClassification(tokenize=lambda _: pytest.fail("asked"), pad_token_id=0)
    assert len(task.prepare(texts())) == 0


def batch_of(*targets: int) -> Batch:
    return Batch({}, torch.tensor(targets))


def test_loss_and_metric_are_those_of_a_hand_computation() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 1.0]])
    batch = batch_of(0, 0, 1)
    expected = [math.log(1 + math.exp(-2)), math.log(1 + math.exp(1)), math.log(1 + math.exp(2))]

    losses, metrics, predictions = Classification().judge(logits, batch)

    assert losses.tolist() == pytest.approx(expected, rel=1e-6)
    assert metrics.tolist() == [1.0, 0.0, 0.0]
    assert predictions.tolist() == [0, 1, 0]
    assert float(Classification().loss(logits, batch)) == pytest.approx(sum(expected) / 3, rel=1e-6)


def test_the_loss_of_half_precision_is_computed_in_float32() -> None:
    logits: Tensor = torch.tensor([[8.0, 0.0]], dtype=torch.bfloat16)
    assert Classification().loss(logits, batch_of(0)).dtype == torch.float32
    assert float(Classification().loss(logits, batch_of(0))) == pytest.approx(math.log(1 + math.exp(-8)), rel=1e-3)
