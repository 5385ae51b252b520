"""What a step of training and a pass of evaluation take: gone through with tensors that have no numbers."""

import contextlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from fedlora.common.config import CausalLm, RunConfig, TrainSection
from fedlora.models.checkpoint import UNREADABLE
from fedlora.models.reach import logits_of
from fedlora.training.footprint.fake import move_to
from fedlora.training.footprint.grouped import GroupedProducts
from fedlora.training.footprint.like_cuda import CUBLAS_BYTES, CUDA_BLOCK_BYTES, CudaAutocast
from fedlora.training.footprint.live_bytes import LiveBytes
from fedlora.training.footprint.outline import RunOutline, example_inputs, unplannable
from fedlora.training.tasks import Batch
from fedlora.training.tasks.classification import Classification

WEIGHTS, UNTOUCHED, ADAPTER = "weights", "untouched weights", "adapter"
GRADIENTS, OPTIMIZER, WORKSPACE = "gradients", "optimizer", "workspace"


@dataclass(frozen=True)
class StepCost:
    """What a client's step takes.

    Attributes:
        training: bytes by part, at the moment of a step when their sum is the largest.
        evaluation: the same while held-out or validation examples are judged.
        flops: floating-point operations of the products of matrices in a whole step.
    """

    training: Mapping[str, int]
    evaluation: Mapping[str, int]
    flops: int


@dataclass(frozen=True, eq=False)
class _Work:
    """One forward pass: the model's inputs, and what becomes of its logits."""

    inputs: Mapping[str, Tensor]
    loss: Callable[[Tensor], Tensor]
    judge: Callable[[Tensor], object]


def step_cost(outline: RunOutline, config: RunConfig, *, is_cuda: bool, changes_base: bool = False) -> StepCost:
    """Return what a step takes in the worst case: texts of the full length, of which every token is learned.

    It is gone through on the CPU; what CUDA's autocast and allocator do otherwise is imitated.

    Args:
        outline: of the run's model, which the step leaves as it is but for its tensors.
        config: the run.
        is_cuda: whether to imitate CUDA.
        changes_base: whether the base weights change from round to round, so that the first ones are kept too.

    Raises:
        ModelError: the model does not take the run's inputs, or what it does depends on numbers.
    """
    try:
        return _step_cost(outline, config, is_cuda=is_cuda, changes_base=changes_base)
    except UNREADABLE as error:
        raise unplannable(config, error) from error


def _step_cost(outline: RunOutline, config: RunConfig, *, is_cuda: bool, changes_base: bool) -> StepCost:
    settings, model = config.train, outline.model
    with FakeTensorMode(allow_non_fake_inputs=True), contextlib.ExitStack() as stack:
        stack.enter_context(GroupedProducts())
        if is_cuda:
            stack.enter_context(CudaAutocast())
        live = LiveBytes(block_bytes=CUDA_BLOCK_BYTES if is_cuda else 1)
        move_to(model, "cpu")
        trained = _count_model(model, live)
        untouched = _base_weights(outline) if changes_base else []
        live.count(untouched, UNTOUCHED)
        num_copies = (settings.proximal_mu > 0) + (settings.client_momentum > 0)
        copies = [parameter.detach().clone() for parameter in trained for _ in range(num_copies)]
        live.count(copies, OPTIMIZER)
        if is_cuda:
            _workspace = torch.empty(CUBLAS_BYTES, dtype=torch.uint8)
            live.count([_workspace], WORKSPACE)
        optimizer = _stepped_optimizer(trained, settings)
        states = [state for group in optimizer.state.values() for state in group.values()]
        live.count((state for state in states if isinstance(state, Tensor)), OPTIMIZER)
        model.train()
        live.restart()
        precision = _autocast(config, is_cuda=is_cuda)
        micro_batch_size = settings.micro_batch_size or settings.batch_size
        num_passes = -(-settings.batch_size // micro_batch_size)
        if num_passes > 1:
            # The last pass has the gradients of the others beside it.
            for parameter in trained:
                parameter.grad = torch.zeros_like(parameter)
                live.count([parameter.grad], GRADIENTS)
        with live:
            # The trainer puts together the batches of all passes first.
            others = [_work(config, outline, micro_batch_size).inputs for _ in range(num_passes - 1)]
            work = _work(config, outline, micro_batch_size)
            with precision():
                loss = work.loss(logits_of(model(**work.inputs)))
            loss.backward()  # type: ignore[no-untyped-call]
            if settings.max_grad_norm > 0:
                torch.nn.utils.clip_grad_norm_(trained, settings.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        training, flops = live.peak, live.flops * num_passes
        del work, loss, others
        if settings.optimizer_state == "reset":
            del optimizer, states
        live.restart()
        model.eval()
        with live, torch.no_grad():
            work = _work(config, outline, config.evaluation_batch_size)
            with precision():
                logits = logits_of(model(**work.inputs))
            work.judge(logits)
    return StepCost(training, live.peak, flops)


def autocast_dtype(config: RunConfig, *, is_cuda: bool) -> torch.dtype | None:
    """Return the type that products are computed in, as the trainer chooses it; None for that of the weights."""
    dtype: torch.dtype
    if config.train.precision != "auto":
        dtype = getattr(torch, config.train.precision)
    elif config.model.quantization == "none" and config.model.dtype != "float32":
        dtype = getattr(torch, config.model.dtype)
    else:
        dtype = torch.bfloat16 if is_cuda or config.model.quantization != "none" else torch.float32
    return None if dtype == torch.float32 else dtype


def _autocast(config: RunConfig, *, is_cuda: bool) -> Callable[[], contextlib.AbstractContextManager[object]]:
    dtype = autocast_dtype(config, is_cuda=is_cuda)
    return contextlib.nullcontext if dtype is None else lambda: torch.autocast("cpu", dtype=dtype)


def _count_model(model: nn.Module, live: LiveBytes) -> list[nn.Parameter]:
    """Count the model's tensors, and its gradients as they come; return what is trained."""
    live.count((tensor for tensor in (*model.parameters(), *model.buffers())), WEIGHTS)
    live.count((parameter for name, parameter in model.named_parameters() if _is_adapters(name)), ADAPTER)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def count_gradient(parameter: Tensor) -> None:
        if parameter.grad is not None:
            live.count([parameter.grad], GRADIENTS)

    for parameter in trained:
        parameter.register_post_accumulate_grad_hook(count_gradient)  # type: ignore[no-untyped-call]
    return trained


def _base_weights(outline: RunOutline) -> list[Tensor]:
    """Return copies of the weights below the pairs, as they are kept where an adapter changes them."""
    base: Any = outline.model.get_base_model()  # type: ignore[operator]
    return [base.get_submodule(path).get_base_layer().weight.clone() for path in outline.adapter.layers]


def _is_adapters(name: str) -> bool:
    return re.search(r"\.lora_|\.modules_to_save\.", name) is not None


def _stepped_optimizer(trained: list[nn.Parameter], settings: TrainSection) -> torch.optim.Optimizer:
    """Return the trainer's optimiser as it is after its first step."""
    optimizer: torch.optim.Optimizer
    if settings.optimizer == "sgd":
        optimizer = torch.optim.SGD(trained, lr=1e-3, momentum=settings.momentum)
    else:
        optimizer = torch.optim.AdamW(trained, fused=True)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return optimizer


def _work(config: RunConfig, outline: RunOutline, num_examples: int) -> _Work:
    inputs = example_inputs(config, num_examples=num_examples)
    if not isinstance(config.task, CausalLm):
        batch = Batch(inputs, torch.zeros(num_examples, dtype=torch.int64))
        task = Classification()
        return _Work(inputs, lambda logits: task.loss(logits, batch), lambda logits: task.judge(logits, batch))
    num_learned = config.task.max_length - 1
    positions = torch.arange(num_learned)
    if outline.picks_positions:
        inputs["logits_to_keep"] = positions
    # As many as all of them; which ones a real batch learns is only known from its numbers.
    rows = torch.arange(num_examples).repeat_interleave(num_learned, output_size=num_examples * num_learned)
    places = positions.repeat(num_examples)

    def learned(logits: Tensor) -> tuple[Tensor, Tensor]:
        logits = logits if outline.picks_positions else logits[:, positions]
        return logits[rows, places], torch.zeros_like(places)

    def loss(logits: Tensor) -> Tensor:
        found, targets = learned(logits)
        return functional.cross_entropy(found.float(), targets)

    def judge(logits: Tensor) -> object:
        found, targets = learned(logits)
        return functional.cross_entropy(found.float(), targets, reduction="none"), found.argmax(-1) == targets

    return _Work(inputs, loss, judge)
