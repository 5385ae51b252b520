"""Time LocalTrainer and a bare loop: python timed_language.py SHAPE NUM_PAIRS NUM_STEPS ANSWER.json

Both train the same PEFT model, a Llama of SHAPE with random weights, LoRA of rank 16 in all linear layers, from the
same adapter on the same batches. LocalTrainer is called as a worker calls it, and collates each batch; the bare loop
finds its batches collated and does what transformers' own loss does. Which of the two goes first changes from pair to
pair. That they do the same work is checked: equal losses. "text" learns every token, "chat" the last tenth of each
example, of which LocalTrainer computes no other logits. Lengths vary from a quarter to the whole of the longest.

Then the same steps with one option each, one after the other.
"""

import gc
import itertools
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from progress import progress
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fedlora.common.config import LoraSection, TrainSection
from fedlora.training.footprint.live_bytes import LiveBytes
from fedlora.training.peft_bridge import ResidentModel, add_lora
from fedlora.training.tasks import CausalLm
from fedlora.training.tasks.causal_lm import PreparedConversations
from fedlora.training.trainer import LocalTrainer, _batch_indices

_SEED = 1
_SHAPES: dict[str, dict[str, int]] = {
    "small": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 4,
              "num_key_value_heads": 4, "vocab_size": 8192},
    "llama-1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
                 "num_key_value_heads": 8, "vocab_size": 128256},
    "llama-8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
                 "num_key_value_heads": 8, "vocab_size": 128256},
}  # fmt: skip
_OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "packing": {"packing": True},
    "checkpointing": {"gradient_checkpointing": True},
    "compile": {"compile": True},
    "packing and compile": {"packing": True, "compile": True},
    "4 bits": {},
}


def main(shape: str, num_pairs: int, num_steps: int, answer: Path) -> None:
    """Write the seconds of each loop in each pair, and tokens per second and peak memory of each option."""
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    length = 128 if device.type == "cpu" else 1024
    prepared = {name: _examples(name, length, _SHAPES[shape]["vocab_size"]) for name in ("text", "chat")}
    pairs = {}
    for name, examples in prepared.items():
        progress(f"{shape}: pairs on {name}")
        pairs[name] = _pairs(_trainer(shape, device, num_steps), examples, num_pairs, num_steps)
    written = {"pairs": pairs, "options": _options(shape, device, prepared["text"], num_pairs, num_steps)}
    answer.write_text(json.dumps(written))


def train_bare(model: nn.Module, batches: Sequence[dict[str, Tensor]], settings: TrainSection) -> float:
    """Return the mean loss of one step on each of `batches`: the model's inputs, labels among them."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    device = parameters[0].device.type
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
    model.train()
    losses = []
    for batch in batches:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
    return float(torch.stack(losses).mean())


def _pairs(
    trainer: LocalTrainer[PreparedConversations], prepared: PreparedConversations, num_pairs: int, num_steps: int
) -> dict[str, Any]:
    chosen = list(itertools.islice(_batches(trainer, prepared), num_steps))
    batches = [_collated(prepared, indices, trainer.device) for indices in chosen]
    initial = trainer.model.read()
    found: dict[str, list[dict[str, float]]] = {"ours": [], "bare": []}
    for pair in range(num_pairs + 1):
        losses = []
        for name in ("ours", "bare")[:: 1 if pair % 2 else -1]:
            trainer.model.load(initial)
            loop = _ours(trainer, prepared) if name == "ours" else _bare(trainer, batches)
            timed, loss = _timed(loop)
            losses.append(loss)
            if pair:  # The first one fills caches, and does not count.
                found[name].append(timed)
        if abs(losses[0] - losses[1]) > 1e-3 * abs(losses[0]):
            raise RuntimeError(f"the two loops did not do the same work: mean losses {losses}")
    tokens = sum(len(prepared.token_ids[index]) for indices in chosen for index in indices)
    return {**found, "tokens": tokens}


def _options(
    shape: str, device: torch.device, prepared: PreparedConversations, num_pairs: int, num_steps: int
) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    repeats = max(2, num_pairs // 3)
    for name, changes in _OPTIONS.items():
        if name == "4 bits" and device.type == "cpu":
            continue  # It works there, and takes so long that it says nothing.
        progress(f"{shape}: {name}")
        trainer = _trainer(shape, device, num_steps, is_quantised=name == "4 bits", **changes)
        loop = _ours(trainer, prepared)
        loop()
        tokens = sum(
            len(prepared.token_ids[index])
            for indices in itertools.islice(_batches(trainer, prepared), num_steps)
            for index in indices
        )
        speeds = [tokens / _timed(loop)[0]["seconds"] for _ in range(repeats)]
        found[name] = {"tokens_per_second": speeds, "peak_bytes": _peak_bytes(trainer, prepared)}
        del trainer, loop
        gc.collect()
    return found


def _peak_bytes(trainer: LocalTrainer[PreparedConversations], prepared: PreparedConversations) -> int:
    """Return the most bytes of tensors during a step: as CUDA counts them, or on a CPU beyond the weights."""
    if trainer.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        _ours(trainer, prepared)()
        return torch.cuda.max_memory_allocated()
    if trainer.settings.compile:
        return 0  # Compiled code does not tell.
    with LiveBytes() as live:
        trainer.train(prepared, progress=(0.0, 0.1), batch_seed=_SEED, dropout_seed=0, max_steps=1)
    return sum(live.peak.values())


def _trainer(
    shape: str, device: torch.device, num_steps: int, *, is_quantised: bool = False, **changes: Any
) -> LocalTrainer[PreparedConversations]:
    torch.manual_seed(0)
    resident = _resident(shape, device, is_quantised=is_quantised)
    batch_size = 8 if device.type == "cpu" else 4
    settings = TrainSection(steps=num_steps, batch_size=batch_size, learning_rate=1e-4, **changes)
    if settings.gradient_checkpointing:
        resident.save_memory()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0}, unk_token="<pad>")), pad_token="<pad>"
    )
    task = CausalLm(tokenizer, max_length=4096, packs=settings.packing, picks_positions=True)
    return LocalTrainer(resident, task, settings, device=device)


def _resident(shape: str, device: torch.device, *, is_quantised: bool) -> ResidentModel:
    config = LlamaConfig(max_position_embeddings=4096, use_cache=False, **_SHAPES[shape])  # type: ignore[arg-type]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with torch.device(device):
        torch.set_default_dtype(dtype)
        model: Any = LlamaForCausalLM(config)
        torch.set_default_dtype(torch.float32)
    if is_quantised:
        model = _quantised(model)
    lora = LoraSection(rank=16, target_modules="all-linear")
    resident = add_lora(model, lora, heads=(), task_type="CAUSAL_LM", name=shape)
    if not is_quantised:
        resident.peft_model.to(device)
    return resident


def _quantised(model: Any) -> Any:
    """Return the model with 4 bits: by way of a folder, as bitsandbytes wants it."""
    import tempfile

    chosen = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        del model
        return LlamaForCausalLM.from_pretrained(folder, quantization_config=chosen, device_map={"": 0})


def _examples(name: str, length: int, vocab_size: int) -> PreparedConversations:
    random = np.random.default_rng(0)
    lengths = random.integers(length // 4, length + 1, size=64)
    token_ids = [torch.from_numpy(random.integers(1, vocab_size, size=size)) for size in lengths]
    learned = [torch.arange(len(ids)) >= (0 if name == "text" else 0.9 * len(ids)) for ids in token_ids]
    return PreparedConversations(token_ids, learned, np.arange(len(token_ids)))


def _batches(trainer: LocalTrainer[PreparedConversations], prepared: PreparedConversations) -> Any:
    return _batch_indices(len(prepared), trainer.settings.batch_size, np.random.default_rng(_SEED))


def _collated(prepared: PreparedConversations, indices: np.ndarray, device: torch.device) -> dict[str, Tensor]:
    """Return a batch as transformers' own collators make it, the labels with -100 where nothing is learned."""
    longest = max(len(prepared.token_ids[index]) for index in indices)
    shape = (len(indices), longest)
    batch = {"input_ids": torch.zeros(shape), "attention_mask": torch.zeros(shape), "labels": torch.full(shape, -100.0)}
    for row, index in enumerate(indices):
        ids, learned = prepared.token_ids[index], prepared.is_answer[index]
        batch["input_ids"][row, : len(ids)] = ids
        batch["attention_mask"][row, : len(ids)] = 1
        batch["labels"][row, : len(ids)] = torch.where(learned, ids, -100)
    return {name: tensor.long().to(device) for name, tensor in batch.items()}


def _ours(trainer: LocalTrainer[PreparedConversations], prepared: PreparedConversations) -> Callable[[], float]:
    return lambda: trainer.train(prepared, progress=(0.0, 0.1), batch_seed=_SEED, dropout_seed=0).loss


def _bare(trainer: LocalTrainer[PreparedConversations], batches: Sequence[dict[str, Tensor]]) -> Callable[[], float]:
    return lambda: train_bare(trainer.model.peft_model, batches, trainer.settings)


def _timed(loop: Callable[[], float]) -> tuple[dict[str, float], float]:
    began = time.perf_counter()
    loss = loop()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return {"seconds": time.perf_counter() - began}, loss


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
