"""Scripts with trainers of their own, as users have them: small texts that each client has in letters of its own."""

import os
import random
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from fedlora.common.config import RunConfig

LETTERS = {"north": "abc", "south": "bcd"}


def examples(tokenizer: Any, client: str, num: int) -> list[dict[str, list[int]]]:
    """Return texts that repeat two letters each, which can be foretold from the third letter on."""
    draw = random.Random(f"{client} {num}")
    texts = ["".join(draw.sample(LETTERS[client], 2)) * draw.randint(3, 6) for _ in range(num)]
    return [{"input_ids": tokenizer(text)["input_ids"]} for text in texts]


def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Return a batch, whose labels are the texts."""
    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.tensor([row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in rows])
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": ids.masked_fill(ids == 0, -100)}


def arguments(**changes: Any) -> TrainingArguments:
    """Return the scripts' arguments, with changes."""
    given = {
        "output_dir": os.environ.get("TRAINER_OUTPUT", "trainer-output"),
        "per_device_train_batch_size": 4,
        "learning_rate": 0.02,
        "lr_scheduler_type": "cosine",
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_strategy": "no",
        "dataloader_pin_memory": False,
    }
    return TrainingArguments(**{**given, **changes})


def make_trainer(client: str, run: RunConfig, *, trainer: Any = Trainer, model: Any = None, **changes: Any) -> Any:
    """Return a trainer over the run's model, which has no LoRA layers yet; keywords change a part of it."""
    tokenizer = AutoTokenizer.from_pretrained(run.model.name)
    settings = {key: changes.pop(key) for key in list(changes) if key in TrainingArguments.__dataclass_fields__}
    given = {
        "train_dataset": examples(tokenizer, client, 40),
        "eval_dataset": examples(tokenizer, client, 25),
        "data_collator": collate,
    }
    return trainer(
        model=model or AutoModelForCausalLM.from_pretrained(run.model.name),
        args=arguments(**settings),
        **{**given, **changes},
    )


def make_trainer_with_lora(client: str, run: RunConfig) -> Any:
    """Return a trainer whose model has LoRA layers of the script's own, which are the run's."""
    return make_trainer(client, run, model=with_lora(run))


def with_lora(run: RunConfig, **changes: Any) -> Any:
    """Return the run's model with LoRA layers of the script's own, which are the run's but for the changes."""
    given = {
        "r": run.lora.rank,
        "lora_alpha": run.lora.alpha,
        "lora_dropout": run.lora.dropout,
        "target_modules": ["q_proj", "v_proj"],
    }
    model = AutoModelForCausalLM.from_pretrained(run.model.name)
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **{**given, **changes}))


def checkpoints() -> list[Path]:
    """Return the checkpoints that the scripts have saved here."""
    return sorted(Path(os.environ["TRAINER_OUTPUT"]).glob("checkpoint-*"))


def validation_of(client: str, run: RunConfig) -> list[dict[str, list[int]]]:
    """Return a client's examples for validation."""
    return examples(AutoTokenizer.from_pretrained(run.model.name), client, 25)
