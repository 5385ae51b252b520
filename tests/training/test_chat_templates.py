"""Answers told apart by how chat templates render them: without thoughts, in other white space, with no end."""

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))

import chat_templates
from chat_templates import (
    DEEPSEEK_LIKE,
    GEMMA_LIKE,
    LLAMA_LIKE,
    MISTRAL_LIKE,
    NUMBERED,
    OTHER_SPACE,
    QWEN_LIKE,
    SWITCHED,
    UNENDED,
)
from tokenizers_made import tokenizer_of

from fedlora.common.config import CausalLm as CausalLmSection
from fedlora.common.errors import DataError, ModelError
from fedlora.training.data.examples import Conversation, Turn
from fedlora.training.tasks.encoding import encode, encode_all
from fedlora.training.tasks.end_of_turn import end_of_chats
from fedlora.training.tasks.rendering import Rendered, render, render_all, render_prompt
from fedlora.training.tasks.rendering_notes import rendering_notes

PLAIN = ("ab", "cd", "e ", " f ")
THINKING = ("q", "<think>\nhm\n</think>\n\none", "r", "<think>\nso\n</think>\n\ntwo")
TEMPLATES = sorted(name for name in vars(chat_templates) if name.isupper())


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tokenizer_of("byte-level")


def chat(*texts: str, system: str = "") -> Conversation:
    turns = [Turn("user" if place % 2 == 0 else "assistant", text) for place, text in enumerate(texts)]
    return Conversation((*([Turn("system", system)] if system else []), *turns))


def learned(rendered: Rendered, tokenizer: Any) -> list[str]:
    """Return the stretches of tokens that are learned, as the tokenizer decodes them."""
    encoded = encode(rendered, tokenizer)
    stretches: list[list[int]] = [[]]
    for token, is_answer in zip(encoded.token_ids, encoded.is_answer, strict=True):
        stretches[-1:] = [[*stretches[-1], token]] if is_answer else [stretches[-1], []] if stretches[-1] else [[]]
    return [tokenizer.decode(stretch) for stretch in stretches if stretch]


@pytest.mark.parametrize(
    ("template", "texts", "expected"),
    [
        (LLAMA_LIKE, PLAIN, ["cd<|end|>", "f<|end|>"]),
        (GEMMA_LIKE, PLAIN, ["cd<|end|>", "f<|end|>"]),
        (MISTRAL_LIKE, PLAIN, [" cd</s>", " f</s>"]),
        (NUMBERED, PLAIN, ["cd<|end|>", " f <|end|>"]),
        (OTHER_SPACE, PLAIN, [" cd<|end|>", " f<|end|>"]),
        (QWEN_LIKE, PLAIN, ["cd<|end|>", "<think>\n\n</think>\n\n f <|end|>"]),
        (QWEN_LIKE, THINKING, ["one<|end|>", "<think>\nso\n</think>\n\ntwo<|end|>"]),
        (DEEPSEEK_LIKE, PLAIN, ["cd</s>", " f </s>"]),
        (DEEPSEEK_LIKE, THINKING, ["\n\none</s>", "\n\ntwo</s>"]),
        (SWITCHED, PLAIN, ["</think>cd</s>", "</think> f </s>"]),
        (UNENDED, PLAIN, ["cd", " f</s>"]),
    ],
)
def test_answers_are_learned_as_the_template_renders_them(
    tokenizer: Any, template: str, texts: tuple[str, ...], expected: list[str]
) -> None:
    assert learned(render(chat(*texts), tokenizer, template), tokenizer) == expected


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompt_is_the_text_up_to_the_last_answer(tokenizer: Any, name: str) -> None:
    template = getattr(chat_templates, name)
    rendered = render(chat(*PLAIN), tokenizer, template)
    prompt = render_prompt(chat(*PLAIN), tokenizer, template)
    assert prompt.text == rendered.text[: rendered.answers[-1][0]]
    asked = encode(prompt, tokenizer).token_ids
    assert encode(rendered, tokenizer).token_ids[: len(asked)] == asked


def test_what_a_template_leaves_out_is_masked_and_said(tokenizer: Any) -> None:
    rendered = render(chat(*THINKING), tokenizer, QWEN_LIKE)
    assert "hm" not in rendered.text
    assert rendered.left_out == (2,)
    rendered = render(chat(*THINKING), tokenizer, DEEPSEEK_LIKE)
    assert (rendered.left_out, rendered.unanswered) == ((2, 4), "<think>\n")
    (left_out, opened) = rendering_notes([rendered], [encode(rendered, tokenizer)], tokenizer, CausalLmSection())
    assert left_out == (
        "the chat template leaves out words of turn 2, 4 in 1 of 1 examples; they are neither read nor learned"
    )
    assert opened.startswith("the chat template asks for an answer with '<think>\\n', and does not have it before each")


def test_a_last_answer_that_is_all_left_out_is_refused(tokenizer: Any) -> None:
    template = "{% for message in messages %}{% if not loop.last %}{{ message.content }}<|end|>{% endif %}{% endfor %}"
    with pytest.raises(ModelError, match=r"leaves out all words of turn 4, the last answer; set task\.chat_template"):
        render(chat(*PLAIN), tokenizer, template)


@pytest.mark.parametrize(
    ("asks", "answers"), [("<|bot|>", "<|user|>"), ("<|head|>bot\n", "<|head|>model\n"), ("A:", "B:")]
)
def test_a_template_that_asks_for_another_than_answers_is_refused(tokenizer: Any, asks: str, answers: str) -> None:
    template = (
        "{% for message in messages %}{% if message.role == 'assistant' %}" + answers + "{% else %}<|head|>user\n"
        "{% endif %}{{ message.content }}<|end|>{% endfor %}{% if add_generation_prompt %}" + asks + "{% endif %}"
    )
    with pytest.raises(ModelError, match=r"turn 2 otherwise than it asks for it: it asks with .* task\.chat_template"):
        render(chat(*PLAIN), tokenizer, template)


def test_words_that_look_like_what_a_template_looks_for_are_learned_whole(tokenizer: Any) -> None:
    for answer in ("</think>", "a </think> b", "<think>", "user", "assistant: x", "{{ 1 }}", "\U000f0000x"):
        for template in (LLAMA_LIKE, GEMMA_LIKE, NUMBERED):
            assert learned(render(chat("q", answer), tokenizer, template), tokenizer) == [f"{answer}<|end|>"]


def test_an_answer_before_any_question_is_learned_without_what_announces_it(tokenizer: Any) -> None:
    greeting = Conversation((Turn("assistant", "hello"), Turn("user", "a"), Turn("assistant", "b")))
    assert learned(render(greeting, tokenizer, LLAMA_LIKE), tokenizer) == ["hello<|end|>", "b<|end|>"]


def test_a_template_that_counts_characters_is_looked_into_by_words(tokenizer: Any) -> None:
    template = LLAMA_LIKE.replace("{% for", "{{ messages[0]['content'] | length }}{% for", 1)
    assert learned(render(chat(*PLAIN), tokenizer, template), tokenizer) == ["cd<|end|>", "f<|end|>"]
    typed = encode(render(chat("a<|head|>", "c"), tokenizer, template), tokenizer)
    assert typed.token_ids.count(tokenizer.convert_tokens_to_ids("<|head|>")) == 2
    with pytest.raises(ModelError, match=r"turn 1 has special tokens in it, and .* leave the conversation out"):
        render(chat("<|head|>", "c"), tokenizer, template)


@pytest.mark.parametrize("name", sorted(set(TEMPLATES) - {"NUMBERED"}))
def test_what_is_rendered_grows_with_the_text(tokenizer: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    rendered: list[int] = []
    apply = tokenizer.apply_chat_template

    def counting(*given: Any, **settings: Any) -> str:
        text: str = apply(*given, **settings)
        rendered.append(len(text))
        return text

    monkeypatch.setattr(tokenizer, "apply_chat_template", counting)
    texts = [f"words of turn {place} " * 5 for place in range(40)]
    (found,) = render_all([chat(*texts)], tokenizer, getattr(chat_templates, name))
    assert len(found.answers) == 20
    assert sum(rendered) < 3.5 * len(found.text)


def test_where_a_template_ends_no_answer_the_end_token_is_put_behind_the_last(tokenizer: Any) -> None:
    rendered = render(chat(*PLAIN), tokenizer, UNENDED)
    encoded = encode(rendered, tokenizer)
    assert (encoded.token_ids[-1], encoded.is_answer[-1]) == (tokenizer.eos_token_id, True)
    assert encoded.token_ids.count(tokenizer.eos_token_id) == 1
    (note,) = rendering_notes([rendered], [encoded], tokenizer, CausalLmSection())
    assert note.startswith("the chat template ends an answer with no token: the end token </s> is put behind the last")


def test_a_mark_that_is_no_token_ends_no_answer(tokenizer: Any) -> None:
    template = UNENDED.replace("{{ message['content'] }}", "{{ message['content'] }}##")
    rendered = render(chat(*PLAIN), tokenizer, template)
    assert learned(rendered, tokenizer)[-1] == " f ##</s>"
    end = end_of_chats(tokenizer, template)
    assert (end.token_ids, end.text) == ((tokenizer.eos_token_id,), "##")


def test_without_an_end_token_such_a_template_is_refused() -> None:
    endless = tokenizer_of("byte-level")
    endless.eos_token = None
    with pytest.raises(
        ModelError, match=r"no token behind an answer, and the tokenizer has no end token .* set task\.chat"
    ):
        encode(render(chat(*PLAIN), endless, UNENDED), endless)
    assert encode(render(chat(*PLAIN), endless, LLAMA_LIKE), endless).is_answer[-1]


@pytest.mark.parametrize(
    ("template", "expected"),
    [(LLAMA_LIKE, ("<|end|>", "</s>")), (MISTRAL_LIKE, ("</s>",)), (UNENDED, ("</s>",)), ("{{ 1 }}", ("</s>",))],
)
def test_the_end_of_an_answer_is_what_the_template_has_behind_it(
    tokenizer: Any, template: str, expected: tuple[str, ...]
) -> None:
    assert tuple(tokenizer.convert_ids_to_tokens(end_of_chats(tokenizer, template).token_ids)) == expected


def test_a_system_turn_that_the_template_refuses_can_be_merged(tokenizer: Any) -> None:
    told = chat(*PLAIN, system="S")
    with pytest.raises(DataError, match=r'no system turns here\); set task\.system = "merge" to put'):
        render(told, tokenizer, GEMMA_LIKE)
    rendered = render(told, tokenizer, GEMMA_LIKE, system="merge")
    assert rendered.text == render(chat("S\n\nab", *PLAIN[1:]), tokenizer, GEMMA_LIKE).text
    assert learned(rendered, tokenizer) == ["cd<|end|>", "f<|end|>"]
    nobody = Conversation((Turn("system", "S"), Turn("assistant", "a")))
    with pytest.raises(DataError, match=r"before the next user turn; a conversation has none"):
        render(nobody, tokenizer, GEMMA_LIKE, system="merge")


def test_a_system_turn_that_the_template_drops_is_said(tokenizer: Any) -> None:
    template = LLAMA_LIKE.replace("in messages %}", "in messages if message['role'] != 'system' %}")
    assert render(chat(*PLAIN, system="S"), tokenizer, template).left_out == (1,)


def test_what_is_no_jinja_is_said_with_its_line(tokenizer: Any) -> None:
    with pytest.raises(ModelError, match=r"no valid Jinja: line 2: .* set task\.chat_template"):
        render(chat(*PLAIN), tokenizer, "a\n{% for %}")


def test_many_chats_are_rendered_as_each_alone(tokenizer: Any) -> None:
    chats = [chat(*PLAIN), chat(*THINKING, system="S"), chat("q", "a")]
    assert render_all(chats, tokenizer, QWEN_LIKE) == [render(one, tokenizer, QWEN_LIKE) for one in chats]
    assert len(encode_all(render_all(chats, tokenizer, QWEN_LIKE), tokenizer)) == 3


def test_a_last_answer_that_is_all_a_mark_of_thoughts_leaves_the_others_their_end(tokenizer: Any) -> None:
    answers = learned(render(chat("ab", "cd", "e", "</think>"), tokenizer, QWEN_LIKE), tokenizer)
    assert answers[0] == "cd<|end|>"
