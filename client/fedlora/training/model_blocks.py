"""A model's row of blocks: where it is, what of it is trained, and what enters one of them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


def blocks_of(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the longest row of blocks in `model` and its path; no blocks where there is no row."""
    rows = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    return max(rows, key=lambda row: len(row[1]), default=("", nn.ModuleList()))


def trained_parts(module: nn.Module) -> dict[str, nn.Module]:
    """Return by path what has parameters of its own that are trained."""
    return {
        path: part
        for path, part in module.named_modules()
        if any(parameter.requires_grad for parameter in part.parameters(recurse=False))
    }


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Have `model` in evaluation mode meanwhile, and each part in its own mode again after that."""
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextmanager
def entered(block: nn.Module, replaced: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Have `block` be given something else than the hidden states that come to it."""

    def enter(_block: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if arguments:
            return (replaced(arguments[0]), *arguments[1:]), named
        return arguments, {**named, "hidden_states": replaced(named["hidden_states"])}

    hook = block.register_forward_pre_hook(enter, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
