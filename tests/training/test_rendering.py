"""Conversations as texts, and which of their tokens are learned, with a real tokenizer."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from fedlora.common.errors import DataError, ModelError
from fedlora.training.data.examples import Conversation, Turn
from fedlora.training.tasks.encoding import encode, encode_all
from fedlora.training.tasks.rendering import render, render_prompt

CHAT = Conversation((Turn("user", "ab"), Turn("assistant", "cd"), Turn("user", "e"), Turn("assistant", " f\u00e9 ")))
PLAIN = Conversation((Turn("user", "2 + 2 ="), Turn("assistant", " 4")), style="plain")

# Thinks before the last answer and takes the thought out of those before, as Qwen3's does.
THINKING = (
    "{% for message in messages %}<|{{ message['role'] }}|>"
    "{% if message['role'] == 'assistant' and loop.last %}<think></think>{% endif %}"
    "{{ message['content'] }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(tiny_language_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_language_model)


def learned(conversation: Conversation, tokenizer: Any, template: str | None = None) -> list[str]:
    """Return the stretches of text that are learned, as the tokenizer decodes their tokens."""
    encoded = encode(render(conversation, tokenizer, template), tokenizer)
    stretches: list[list[int]] = []
    before = False
    for token, is_answer in zip(encoded.token_ids, encoded.is_answer, strict=True):
        if is_answer:
            stretches += [] if before else [[]]
            stretches[-1].append(token)
        before = is_answer
    return [tokenizer.decode(stretch) for stretch in stretches]


def test_every_answer_of_a_chat_is_learned_with_what_ends_its_turn(tokenizer: Any) -> None:
    assert learned(CHAT, tokenizer) == ["cd<|end|>", " f\u00e9 <|end|>"]


def test_a_template_may_render_a_turn_otherwise_once_others_follow(tokenizer: Any) -> None:
    assert learned(CHAT, tokenizer, THINKING) == ["cd<|end|>", "<think></think> f\u00e9 <|end|>"]


def test_a_template_that_does_not_keep_the_words_is_refused(tokenizer: Any) -> None:
    shouting = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] | upper }}\n{% endfor %}"
    with pytest.raises(ModelError, match="turn 2 otherwise than it asks for it"):
        render(CHAT, tokenizer, shouting)


def test_what_a_template_refuses_is_said_in_one_line(tokenizer: Any) -> None:
    strict = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(DataError, match=r"does not take a conversation of user, assistant.*System role not supported"):
        render(CHAT, tokenizer, strict)


def test_plain_texts_are_put_together_as_they_are_and_end(tokenizer: Any) -> None:
    encoded = encode(render(PLAIN, tokenizer), tokenizer)
    assert tokenizer.decode(encoded.token_ids) == "2 + 2 = 4<|end|>"
    assert learned(PLAIN, tokenizer) == [" 4<|end|>"]


def test_a_text_alone_is_learned_whole(tokenizer: Any) -> None:
    assert learned(Conversation((Turn("assistant", "abc"),), style="plain"), tokenizer) == ["abc<|end|>"]


def test_an_instruction_goes_through_the_template_or_becomes_an_alpaca_prompt(tiny_language_model: Path) -> None:
    bare = AutoTokenizer.from_pretrained(tiny_language_model)
    instruction = Conversation((Turn("user", "Add 1 and 1"), Turn("assistant", "2")), style="instruction")
    assert render(instruction, bare).text == "<|user|>Add 1 and 1<|end|>\n<|assistant|>2<|end|>\n"
    bare.chat_template = None
    assert render(instruction, bare).text == "### Instruction:\nAdd 1 and 1\n\n### Response:\n2"
    assert learned(instruction, bare) == ["2<|end|>"]
    with pytest.raises(ModelError, match=r"no chat template.*task\.chat_template"):
        render(CHAT, bare)


def test_a_prompt_is_all_that_stands_before_the_last_answer(tokenizer: Any) -> None:
    assert (
        render_prompt(CHAT, tokenizer).text
        == "<|user|>ab<|end|>\n<|assistant|>cd<|end|>\n<|user|>e<|end|>\n<|assistant|>"
    )
    assert render_prompt(PLAIN, tokenizer).text == "2 + 2 ="


def test_many_texts_are_encoded_as_each_alone_and_in_their_order(tokenizer: Any) -> None:
    texts = [render(conversation, tokenizer) for conversation in (PLAIN, CHAT, PLAIN)]
    assert encode_all(texts, tokenizer) == [encode(text, tokenizer) for text in texts]
