"""Conversations with tools, calls, thoughts and names through a chat template, which must show them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from fedlora.common.errors import DataError
from fedlora.training.data.examples import Conversation, Examples, Turn
from fedlora.training.tasks import CausalLm

CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": "sky"}}}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {}}}
FULL = (
    "{% if tools %}<|system|>{{ tools | tojson }}<|end|>{% endif %}"
    "{% for m in messages %}<|{{ m['role'] }}|>"
    "{% if m.reasoning_content and loop.last %}[{{ m.reasoning_content }}]{% endif %}"
    "{{ m['content'] }}{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
ASKED, CALLED = Turn("user", "Colour?"), Turn("assistant", "", tool_calls=(CALL,))
TOLD, ANSWER = Turn("tool", "blue", name="look"), Turn("assistant", "It is blue.", reasoning="Hm.")
CHAT = Conversation((ASKED, CALLED, TOLD, ANSWER), tools=(TOOL,))


@pytest.fixture(scope="module")
def tokenizer(tiny_language_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_language_model)


def examples(*conversations: Conversation) -> Examples:
    count = len(conversations)
    return Examples(list(conversations), np.zeros(count, dtype=np.int64), np.full(count, "", dtype=np.str_))


def learned(task: CausalLm, conversation: Conversation) -> str:
    prepared = task.prepare(examples(conversation))
    return str(task.tokenizer.decode(prepared.token_ids[0][prepared.is_answer[0]]))


def test_tools_calls_and_thoughts_are_in_the_text_and_the_assistants_are_learned(tokenizer: Any) -> None:
    task = CausalLm(tokenizer, max_length=512, chat_template=FULL)
    found = learned(task, CHAT)
    assert '"name": "look"' in found
    assert "[Hm.]It is blue.<|end|>" in found
    assert "parameters" not in found
    prepared = task.prepare(examples(CHAT))
    assert '"parameters": {}' in tokenizer.decode(prepared.token_ids[0])


def test_what_the_template_does_not_show_is_refused_by_name(tokenizer: Any) -> None:
    task = CausalLm(tokenizer, max_length=512)
    for conversation, name in (
        (Conversation((ASKED, Turn("assistant", "a")), tools=(TOOL,)), "tools"),
        (Conversation((ASKED, CALLED)), "tool_calls"),
        (Conversation((ASKED, ANSWER)), "reasoning"),
        (Conversation((ASKED, ANSWER), style="plain"), "reasoning"),
    ):
        with pytest.raises(DataError, match=f'shows nothing of the {name} in the conversation that begins with "Col'):
            task.prepare(examples(conversation))


def test_thoughts_and_names_that_a_template_may_leave_out_are_counted(tokenizer: Any) -> None:
    task = CausalLm(tokenizer, max_length=512, chat_template=FULL)
    earlier = Conversation((ASKED, Turn("assistant", "Red.", reasoning="Well."), ASKED, ANSWER))
    notes = task.prepare(examples(earlier, CHAT)).notes
    assert notes == (
        "the chat template leaves out the reasoning of 1 earlier turns of the assistant",
        "the chat template does not show the names of who speaks, in 1 conversations",
    )


def test_an_answer_of_weight_zero_is_read_and_another_is_learned(tokenizer: Any) -> None:
    task = CausalLm(tokenizer, max_length=512)
    first, last = Turn("assistant", "Red.", is_learned=False), Turn("assistant", "Blue.")
    conversation = Conversation((ASKED, first, ASKED, last))
    assert learned(task, conversation) == "Blue.<|end|>"
    assert "Red." in tokenizer.decode(task.prepare(examples(conversation)).token_ids[0])
    turned = Conversation((ASKED, last, ASKED, first))
    assert learned(task, turned) == "Blue.<|end|>"
    assert task.references([turned]) == ["Blue."]
    assert tokenizer.decode(task.prompts([turned])[0]) == "<|user|>Colour?<|end|>\n<|assistant|>"


def test_a_call_is_what_a_generated_answer_is_compared_with(tokenizer: Any) -> None:
    task = CausalLm(tokenizer, max_length=512, chat_template=FULL)
    (reference,) = task.references([Conversation((ASKED, CALLED))])
    assert reference.startswith("[{")
    assert "<|end|>" not in reference


def test_history_without_a_template_ends_each_of_its_answers(tiny_language_model: Path) -> None:
    bare = AutoTokenizer.from_pretrained(tiny_language_model)
    bare.chat_template = None
    task = CausalLm(bare, max_length=512)
    turns = (Turn("user", "one"), Turn("assistant", "1"), Turn("user", "two"), Turn("assistant", "2"))
    prepared = task.prepare(examples(Conversation(turns, style="instruction")))
    assert bare.decode(prepared.token_ids[0]) == (
        "### Instruction:\none\n\n### Response:\n1<|end|>\n\n### Instruction:\ntwo\n\n### Response:\n2<|end|>"
    )
    assert learned(task, Conversation(turns, style="instruction")) == "1<|end|>2<|end|>"


def test_what_is_left_out_or_cut_is_counted_by_its_reason(tokenizer: Any) -> None:
    long = Conversation((ASKED, Turn("assistant", "b" * 100)))
    asking = Conversation((Turn("user", "b" * 100), Turn("assistant", "a")))
    short = Conversation((ASKED, Turn("assistant", "a")))
    given = examples(long, short, asking, long)
    assert CausalLm(tokenizer, max_length=40).prepare(given).fates == {"too_long": 3}
    cutting = CausalLm(tokenizer, max_length=40, too_long="cut").prepare(given)
    assert cutting.fates == {"cut": 2, "answer_cut_off": 1}
    assert cutting.kept.tolist() == [0, 1, 3]
