"""Federated data from data sets in Python."""

from collections.abc import Iterator
from io import BytesIO
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from fedlora.common.config import DataSection
from fedlora.common.errors import DataError
from fedlora.training.data import Examples, federated_data_from
from fedlora.training.data.examples import Conversation, Turn

TEXTS = [(f"text {number}", number % 3) for number in range(20)]
GREY = np.full((6, 4), 9, np.uint8)


def png_of(picture: Image.Image) -> bytes:
    content = BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


def white_as(given: Any) -> Any:
    """Return white of the same kind and shape as an array or a tensor."""
    is_float = "float" in str(given.dtype)
    return given * 0 + (1 if is_float else 255)


class TorchLikeDataset:
    """Has a length and items, and does not end when iterated."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[str, int]:
        return f"text {index}", index % 2

    def __iter__(self) -> Iterator[tuple[str, int]]:
        raise AssertionError("iterated")


def test_texts_keep_their_labels_and_clients() -> None:
    data = federated_data_from({"b": TEXTS, "a": TEXTS[:10]}, TEXTS[:2], validation=0.2)

    assert data.labels == ("0", "1", "2")
    assert list(data.clients) == ["a", "b"]
    assert [(len(client.training), len(client.validation)) for client in data.clients.values()] == [(8, 2), (16, 4)]
    for client in data.clients.values():
        for examples in (client.training, client.validation):
            for text, label in zip(examples.inputs, examples.labels, strict=True):
                assert int(text.split()[1]) % 3 == label
    assert data.test.inputs == ["text 0", "text 1"]
    assert data.test.groups.tolist() == ["", ""]


def test_pictures_of_all_kinds_are_resized_and_share_their_channels() -> None:
    grey = [(GREY, 0), (Image.fromarray(GREY), 1), (GREY[..., np.newaxis], 1)]
    colour = [(np.zeros((5, 5, 3), np.uint8), 0), (Image.new("RGBA", (3, 3)), 1)]

    all_grey = federated_data_from({"a": grey}, image_size=8, validation=0.0).clients["a"].training
    mixed = federated_data_from({"a": grey}, colour, image_size=8)

    assert isinstance(all_grey.inputs, np.ndarray)
    assert isinstance(mixed.test.inputs, np.ndarray)
    assert all_grey.inputs.shape == (3, 8, 8, 1)
    assert np.all(all_grey.inputs == 9)
    assert mixed.test.inputs.shape == (2, 8, 8, 3)
    assert mixed.test.inputs.max() == 255


COLOUR = np.arange(6 * 5 * 3, dtype=np.uint8).reshape(6, 5, 3)


@pytest.mark.parametrize(
    ("given", "atol"),
    [
        (torch.from_numpy(COLOUR), 0),
        (torch.from_numpy(COLOUR).permute(2, 0, 1), 0),
        (torch.from_numpy(COLOUR).permute(2, 0, 1).float() / 255, 1),
        (torch.from_numpy(COLOUR).permute(2, 0, 1).to(torch.bfloat16) / 255, 1),
        (torch.from_numpy(COLOUR).float().requires_grad_() / 255, 1),
        (COLOUR.transpose(2, 0, 1), 0),
        (COLOUR.astype(np.float32) / 255, 1),
        (COLOUR.astype(np.int64), 1),
        (np.dstack([COLOUR, np.full((6, 5), 255, np.uint8)]), 0),
        (np.dstack([COLOUR / 255, np.ones((6, 5))]), 1),
        (png_of(Image.fromarray(COLOUR)), 0),
        ({"bytes": png_of(Image.fromarray(COLOUR)), "path": None}, 0),
    ],
    ids=[
        "tensor", "tensor CHW", "float tensor", "bfloat16", "with gradient", "CHW", "float", "int64", "RGBA",
        "float RGBA", "PNG", "struct",
    ],
)  # fmt: skip
def test_tensors_arrays_and_files_are_the_picture_that_they_hold(given: Any, atol: int) -> None:
    as_it_is = federated_data_from({"a": [(COLOUR, 0), (COLOUR, 1)]}, image_size=8, validation=0.0)
    # The second picture tells how far the values of the kind go.
    bright: Any = given if isinstance(given, bytes | dict) else white_as(given)
    data = federated_data_from({"a": [(given, 0), (bright, 1)]}, image_size=8, validation=0.0)

    found, expected = data.clients["a"].training.inputs, as_it_is.clients["a"].training.inputs
    assert isinstance(found, np.ndarray)
    assert isinstance(expected, np.ndarray)
    assert found.shape == (2, 8, 8, 3)
    assert np.abs(found[0].astype(int) - expected[0]).max() <= atol


def test_arrays_with_opacity_and_masks_are_put_on_white() -> None:
    grey = np.dstack([np.full((8, 8), 40, np.uint8), np.repeat([[0, 255]], 4, axis=1).repeat(8, axis=0)]).astype(
        np.uint8
    )
    pairs: list[Any] = [(grey, 0), (np.dstack([grey[..., 0]] * 3 + [grey[..., 1]]), 1), (grey[..., 1] > 0, 0)]

    inputs = federated_data_from({"a": pairs}, image_size=8, validation=0.0).clients["a"].training.inputs

    assert isinstance(inputs, np.ndarray)
    assert inputs[:, 0, 0].tolist() == [[255] * 3, [255] * 3, [0] * 3]
    assert inputs[:, 0, 7].tolist() == [[40] * 3, [40] * 3, [255] * 3]


def test_rows_of_a_data_set_of_pictures_have_their_labels_names() -> None:
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["zebra", "ant"])})
    rows = {"img": [Image.fromarray(COLOUR)] * 4, "label": [0, 1, 0, 1]}
    data_set: Any = datasets.Dataset.from_dict(rows, features=features)

    data = federated_data_from(
        {"a": data_set}, kind="image_classification", data=DataSection(image="img"), image_size=8, validation=0.0
    )

    assert data.labels == ("ant", "zebra")
    assert data.clients["a"].training.labels.tolist() == [1, 0, 1, 0]
    undecoded: Any = data_set.cast_column("img", datasets.Image(decode=False))
    again = federated_data_from({"a": undecoded}, data=DataSection(image="img"), image_size=8, validation=0.0)
    assert np.array_equal(again.clients["a"].training.inputs, data.clients["a"].training.inputs)


def test_test_sets_by_name_become_groups() -> None:
    data = federated_data_from({"a": TEXTS}, {"x": TEXTS[:2], "y": TEXTS[:1]})

    assert sorted(data.test.groups.tolist()) == ["x", "x", "y"]


def test_no_test_set_is_an_empty_one() -> None:
    data = federated_data_from({"a": [(GREY, 0), (GREY, 1)]}, image_size=8)

    assert len(data.test) == 0
    assert isinstance(data.test.inputs, np.ndarray)
    assert data.test.inputs.shape == (0, 8, 8, 1)


def test_with_labels_given_a_number_is_an_index_and_a_word_a_name() -> None:
    data = federated_data_from({"a": [("t", 1), ("u", "zebra"), ("v", 0)]}, labels=("zebra", "ant"), validation=0.0)

    assert data.labels == ("zebra", "ant")
    assert data.clients["a"].training.labels.tolist() == [1, 0, 0]


def test_a_data_set_needs_a_length_and_items_only() -> None:
    data_set: Any = TorchLikeDataset()
    assert len(federated_data_from({"a": data_set}, validation=0.0).clients["a"].training) == 10


def test_the_seed_decides_the_validation_examples_and_not_the_fingerprint() -> None:
    one, same, other = (federated_data_from({"a": TEXTS}, validation=0.3, seed=seed) for seed in (0, 0, 1))

    assert one.clients["a"].validation.inputs == same.clients["a"].validation.inputs
    assert one.clients["a"].validation.inputs != other.clients["a"].validation.inputs
    assert one.fingerprint == other.fingerprint != federated_data_from({"a": TEXTS[1:]}).fingerprint


@pytest.mark.parametrize(
    ("clients", "test", "message"),
    [
        ({}, [], "no client; expected a data set for each client's name"),
        ({"a": TEXTS, "b": []}, [], "client 'b' has no examples; remove it"),
        ({"a": [("t", 1)]}, [], "the clients: only the label '1'; a classification needs at least two"),
        ({"a": TEXTS}, [("t", 7)], "the test set: labels that are not in the run's vocabulary: '7'; it has '0', '1'"),
        ({"a": ["text"]}, [], r"client 'a', example 0: a str; expected a pair \(input, label\)"),
        ({"a": [("t", 0.5)]}, [], "client 'a', example 0: a label of type float; expected int or str"),
        ({"a": [("t", 0), (GREY, 1)]}, [], "client 'a', example 1: a ndarray among texts; expected str"),
        (
            {"a": [(GREY, 0), ("t", 1)]},
            [],
            "client 'a', example 1: a str; expected a Pillow picture, an array or a tens",
        ),
        ({"a": [(GREY * 1j, 0), (GREY, 1)]}, [], r"example 0: complex128 of shape \(6, 4\); expected numbers"),
        ({"a": [(GREY / np.nan, 0), (GREY, 1)]}, [], "example 0: has values that are not finite; replace NaN"),
        ({"a": [(GREY[:0], 0), (GREY, 1)]}, [], r"example 0: of shape \(0, 4\); expected \(height, width\)"),
        ({"a": [(b"GIF", 0), (GREY, 1)]}, [], r"example 0: not a picture \(3 bytes\)"),
        (
            {"a": [{"image": GREY, "digit": 0}]},
            [],
            r"example 0: no column 'label' \(data.label\); the co",
        ),
        ({"train": TEXTS, "test": TEXTS}, [], "the clients are 'train', 'test', which are splits of one data set"),
    ],
)
def test_data_that_cannot_be_used_is_refused(clients: Any, test: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        federated_data_from(clients, test, image_size=8)


def test_a_label_index_beyond_the_labels_is_refused() -> None:
    with pytest.raises(DataError, match="client 'a', example 0: label 2; expected 0 to 1, an index into labels"):
        federated_data_from({"a": [("t", 2)]}, labels=("x", "y"))


def test_pictures_without_a_size_are_the_programmers_mistake() -> None:
    with pytest.raises(ValueError, match="pictures need image_size"):
        federated_data_from({"a": [(GREY, 0), (GREY, 1)]})


def conversations(examples: Examples) -> list[tuple[str, list[tuple[str, str]]]]:
    return [
        (given.style, [(turn.role, turn.content) for turn in given.turns])
        for given in examples.inputs
        if isinstance(given, Conversation)
    ]


def test_a_language_model_takes_pairs_texts_conversations_and_rows_of_any_format() -> None:
    asked, answered = [{"role": "user", "content": "Q"}], [{"role": "assistant", "content": "A"}]
    own = Conversation((Turn("user", "x"), Turn("assistant", "y")), style="chat")

    data = federated_data_from(
        {
            "a": [("2 + 2 = ", "4"), ("2 + 3 = ", "5")],
            "b": ["a text", own, {"instruction": "do", "output": "done"}, {"messages": [*asked, *answered]}],
            "c": [(asked, answered)],
        },
        {"sums": [("1 + 1 = ", "2")]},
        kind="causal_lm",
        validation=0.0,
    )

    assert data.labels == ()
    assert [len(client.training) for client in data.clients.values()] == [2, 4, 1]
    assert conversations(data.clients["a"].training)[0] == ("plain", [("user", "2 + 2 = "), ("assistant", "4")])
    assert conversations(data.clients["b"].training) == [
        ("plain", [("assistant", "a text")]),
        ("chat", [("user", "x"), ("assistant", "y")]),
        ("instruction", [("user", "do"), ("assistant", "done")]),
        ("chat", [("user", "Q"), ("assistant", "A")]),
    ]
    assert conversations(data.clients["c"].training) == [("chat", [("user", "Q"), ("assistant", "A")])]
    assert data.test.groups.tolist() == ["sums"]
    assert set(data.clients["a"].training.labels.tolist()) == {0}


def test_the_columns_of_rows_for_a_language_model_are_those_of_the_runs_section() -> None:
    columns = DataSection(prompt="question", completion="reply")
    data = federated_data_from({"a": [{"question": "Q", "reply": "A"}]}, kind="causal_lm", data=columns, validation=0.0)
    assert conversations(data.clients["a"].training) == [("plain", [("user", "Q"), ("assistant", "A")])]


def test_a_task_of_ones_own_takes_rows_as_they_are_or_labelled_pairs() -> None:
    rows = [{"age": age, "dose": age / 2} for age in range(10)]
    data = federated_data_from({"a": rows}, rows[:2], kind="own", validation=0.2)
    held = data.clients["a"]
    assert data.labels == ()
    assert sorted(given["age"] for given in (*held.training.inputs, *held.validation.inputs)) == list(range(10))
    assert data.test.inputs == rows[:2]
    assert federated_data_from({"a": TEXTS}, kind="own").labels == ("0", "1", "2")


@pytest.mark.parametrize(
    ("kind", "data_set", "message"),
    [
        (
            "causal_lm",
            [("Q", "A"), 5],
            "client 'a', example 1: a int; expected a pair .prompt, answer., a text, a Conv",
        ),
        ("causal_lm", [("Q", " ")], "client 'a', example 0: the answer is empty"),
        ("causal_lm", [("Q", 5)], "client 'a', example 0: the answer is 5; expected text"),
        ("causal_lm", [{"age": 5}], "client 'a', example 0: cannot tell the format by the columns 'age'"),
        ("own", [{"age": 5}, 5], "client 'a', example 1: a int; expected a mapping, as the first example"),
    ],
)
def test_what_a_kind_of_task_does_not_take_is_refused(kind: Any, data_set: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        federated_data_from({"a": data_set}, kind=kind)
