"""What of a model has a part in its outputs: whatever has none would get no gradient."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedlora.models.checkpoint import UNREADABLE

# A router sends each example to some of them, so that one of them without a gradient in one pass says nothing.
_ROUTED = re.compile(r"(^|\.)\w*expert\w*(\.|$)", re.IGNORECASE)


def is_routed(path: str) -> bool:
    """Return whether what lies at a path is one of a mixture's experts, by its name."""
    return _ROUTED.search(path) is not None


def is_linear(layer: nn.Module) -> bool:
    """Return whether `layer` multiplies by one matrix: a linear layer, or GPT-2's kind of it."""
    return isinstance(layer, nn.Linear) or is_transposed(layer)


def is_transposed(layer: nn.Module) -> bool:
    """Return whether `layer` is GPT-2's kind of linear layer, whose weight is (in_features, out_features)."""
    return type(layer).__name__ == "Conv1D"


def logits_of(output: object) -> Tensor:
    """Return the logits of a transformers output, or the output itself where it is a tensor."""
    return cast(Tensor, getattr(output, "logits", output))


def without_gradient(module: nn.Module, example: Mapping[str, Tensor]) -> frozenset[str]:
    """Return the paths of linear layers and the names of parameters from which no way leads to the model's logits.

    Such are those of a vision tower, on texts. A layer counts by what it returns: where its weight is used in its
    place, LoRA in it has no part either. The model is run forward once, as it is for evaluation, and may be one
    without numbers. What belongs to a mixture's experts is never found; nor is anything where the model cannot be run.

    Args:
        module: its forward takes `example`, and returns logits or an output with `logits`.
        example: the model's inputs, of one picture or text.
    """
    taps: dict[str, Tensor] = {}

    def tap(path: str) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def add_nothing(_layer: nn.Module, _inputs: object, output: Tensor) -> Tensor:
            if path not in taps:
                taps[path] = torch.zeros((), dtype=output.dtype, device=output.device, requires_grad=True)
            return output + taps[path]

        return add_nothing

    layers = {path: layer for path, layer in module.named_modules() if is_linear(layer)}
    hooks = [layer.register_forward_hook(tap(path)) for path, layer in layers.items()]
    was_training = module.training
    module.eval()
    try:
        # A model may draw numbers also in evaluation; what is drawn after this stays the same.
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            output = module(**example)
        reached = {id(leaf) for leaf in _leaves(logits_of(output))}
    except UNREADABLE:
        return frozenset()
    finally:
        module.train(was_training)
        for hook in hooks:
            hook.remove()
    unreached = {path for path in layers if path not in taps or id(taps[path]) not in reached}
    unreached |= {
        name
        for name, parameter in module.named_parameters()
        if parameter.requires_grad and id(parameter) not in reached
    }
    return frozenset(name for name in unreached if not is_routed(name))


def _leaves(output: Tensor) -> Iterator[Tensor]:
    """Yield the tensors without a history of their own that `output` was computed from, as autograd knows it."""
    pending: list[Any] = [output.grad_fn]
    seen = set(pending)
    while pending:
        node = pending.pop()
        if node is None:
            continue
        if (variable := getattr(node, "variable", None)) is not None:
            yield variable
        for following, _ in node.next_functions:
            if following not in seen:
                seen.add(following)
                pending.append(following)
