"""The language model task: losses against transformers' own, packing, generated answers, and what is left out."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedlora.training.data.examples import Conversation, Examples, Turn
from fedlora.training.tasks import CausalLm
from fedlora.training.tasks.causal_lm import PreparedConversations, _rows
from fedlora.training.tasks.generation import is_exact_match, rouge_l

ANSWERS = ("a", "bc", "def", "ghijklmnop", "q", "rstu")


@pytest.fixture(scope="module")
def tokenizer(tiny_language_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_language_model)


@pytest.fixture(scope="module")
def model(tiny_language_model: Path) -> Any:
    loaded = AutoModelForCausalLM.from_pretrained(tiny_language_model).eval()
    loaded.config.use_cache = False  # As `load_language_model` does: with a cache, transformers looks for no packing.
    return loaded


def examples(answers: tuple[str, ...] = ANSWERS) -> Examples:
    given = [
        Conversation((Turn("user", f"{number}?"), Turn("assistant", answer))) for number, answer in enumerate(answers)
    ]
    return Examples(given, np.zeros(len(given), dtype=np.int64), np.full(len(given), "", dtype=np.str_))


def prepared_with(task: CausalLm, answers: tuple[str, ...] = ANSWERS) -> PreparedConversations:
    return task.prepare(examples(answers))


def run(task: CausalLm, model: Any, indices: list[int]) -> tuple[torch.Tensor, Any, Any]:
    """Return loss, batch and output of the examples at `indices`."""
    batch = task.collate(prepared_with(task), np.array(indices))
    output = model(**batch.inputs).logits
    return task.loss(output, batch), batch, output


@pytest.mark.parametrize("packs", [False, True])
@pytest.mark.parametrize("picks", [False, True])
def test_the_loss_is_transformers_own(tokenizer: Any, model: Any, packs: bool, picks: bool) -> None:
    task = CausalLm(tokenizer, max_length=64, packs=packs, picks_positions=picks)
    prepared = prepared_with(task)
    losses, counts = [], []
    for ids, is_answer in zip(prepared.token_ids, prepared.is_answer, strict=True):
        labels = torch.where(is_answer, ids, -100)
        losses.append(model(input_ids=ids[None], labels=labels[None]).loss)
        counts.append(int(is_answer.sum()))
    expected = sum(loss * count for loss, count in zip(losses, counts, strict=True)) / sum(counts)

    loss, batch, output = run(task, model, list(range(len(ANSWERS))))
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    assert batch.num_tokens == sum(counts)
    judged, _, _ = task.judge(output, batch)
    torch.testing.assert_close(judged, torch.stack(losses), atol=1e-5, rtol=1e-5)
    assert batch.token_counts.tolist() == counts


def test_packed_examples_do_not_see_each_other(tokenizer: Any, model: Any) -> None:
    plain = CausalLm(tokenizer, max_length=64, picks_positions=True)
    packed = CausalLm(tokenizer, max_length=64, packs=True, picks_positions=True)
    for indices in ([0, 1, 2, 3, 4, 5], [5, 0, 3], [2]):
        one, batch, output = run(plain, model, indices)
        other, packed_batch, packed_output = run(packed, model, indices)
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
        for left, right in zip(plain.judge(output, batch), packed.judge(packed_output, packed_batch), strict=True):
            torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-5)
    assert packed.collate(prepared_with(packed), np.arange(6)).inputs["input_ids"].shape[0] < 6


def test_gradients_of_packed_and_unpacked_examples_are_the_same(tokenizer: Any, model: Any) -> None:
    found = []
    for packs in (False, True):
        task = CausalLm(tokenizer, max_length=64, packs=packs, picks_positions=True)
        loss, _, _ = run(task, model, [0, 1, 2, 3, 4, 5])
        found.append(torch.autograd.grad(loss, [model.model.layers[0].self_attn.q_proj.weight])[0])
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-4)


def test_rows_are_as_long_as_the_longest_example_and_hold_each_once() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        lengths = random.integers(1, 30, size=random.integers(1, 12)).tolist()
        rows = _rows(lengths)
        assert sorted(place for row in rows for place in row) == list(range(len(lengths)))
        assert all(sum(lengths[place] for place in row) <= max(lengths) for row in rows)
        assert len(rows) <= len(lengths)


def test_an_example_that_is_too_long_is_left_out_or_cut(tokenizer: Any) -> None:
    answers = ("a", "b" * 100, "c")
    dropping = prepared_with(CausalLm(tokenizer, max_length=20), answers)
    assert dropping.kept.tolist() == [0, 2]
    cutting = prepared_with(CausalLm(tokenizer, max_length=20, too_long="cut"), answers)
    assert cutting.kept.tolist() == [0, 1, 2]
    assert [len(ids) for ids in cutting.token_ids][1] == 20
    # Cut before its answer, an example has nothing to learn.
    assert prepared_with(CausalLm(tokenizer, max_length=5, too_long="cut"), answers).kept.tolist() == []


def test_answers_are_what_the_model_itself_continues_with(tokenizer: Any, model: Any) -> None:
    task = CausalLm(tokenizer, max_length=64)
    given = examples().inputs
    together = task.answers(model, given, max_new_tokens=6)  # type: ignore[arg-type]
    alone = [task.answers(model, [one], max_new_tokens=6)[0] for one in given]  # type: ignore[list-item]
    assert together == alone
    prompt = torch.tensor(task.prompts(given[:1]))  # type: ignore[arg-type]
    for _ in range(6):
        following = model(input_ids=prompt).logits[:, -1].argmax(-1)
        if int(following) == tokenizer.eos_token_id:
            break
        prompt = torch.cat([prompt, following[None]], 1)
    written = prompt[0, len(task.prompts(given[:1])[0]) :]  # type: ignore[arg-type]
    assert together[0] == tokenizer.decode(written, skip_special_tokens=True).strip()


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("the cat sat", "the cat sat", 1.0),
        ("The cat, sat.", "the cat sat", 1.0),
        ("the dog sat", "the cat sat", 2 / 3),
        ("sat cat the", "the cat sat", 1 / 3),
        ("", "the cat", 0.0),
        ("a b c d", "a c", 2 * 2 / 6),
        ("", "", 1.0),
    ],
)
def test_rouge_l_is_the_f1_of_the_longest_common_subsequence(answer: str, reference: str, score: float) -> None:
    assert rouge_l(answer, reference) == pytest.approx(score)
    assert is_exact_match(answer, reference) == (score == 1.0)
