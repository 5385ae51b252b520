"""A script with a Trainer of its own, as a site of a federation: each client has the conversations of one language.

    python deploy/runs/own_trainer.py RUN.toml                   # first try it here, with two clients
    python deploy/runs/own_trainer.py HOST:PORT SITE.toml        # then join, as the site of that file

It reads data/chat.jsonl (make_examples.py chat). The first time a site joins, its invitation's token is in the variable
FEDLORA_TOKEN. The site file has no [data].
"""

import json
import logging
import sys
from pathlib import Path

from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

from fedlora.client.own_trainer import join
from fedlora.simulation import simulate


def make_trainer(client, run):
    tokenizer = AutoTokenizer.from_pretrained(run.model.name)
    rows = [json.loads(line) for line in Path("data/chat.jsonl").read_text(encoding="utf-8").splitlines()]
    chats = [row["messages"] for row in rows if row["language"] == client]
    examples = [tokenizer(tokenizer.apply_chat_template(chat, tokenize=False)) for chat in chats]
    num_held = len(examples) // 5
    args = TrainingArguments("trainer", per_device_train_batch_size=8, learning_rate=5e-3, report_to="none")
    model = AutoModelForCausalLM.from_pretrained(run.model.name, dtype=run.model.dtype)
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    return Trainer(model, args, collator, train_dataset=examples[num_held:], eval_dataset=examples[:num_held])


if __name__ == "__main__":  # trainers train in processes of their own, which import this file
    logging.basicConfig(level="INFO")
    if len(sys.argv) == 2:
        simulate(sys.argv[1], make_trainer=make_trainer, clients=["de", "en"])
    else:
        join(sys.argv[1], make_trainer, site=sys.argv[2])
