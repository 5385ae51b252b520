"""The layers below the first one that is trained, computed once for each example and not again in every step.

Where a model is trained in its upper blocks alone, the lower ones give the same for an example in every step of every
round. What enters the first trained block is kept, by what the example consists of; after that the lower blocks pass
on what they are given, and the kept values enter in their place. Examples are computed without dropout, and always as
many at a time in tensors of the same shapes: what is kept depends on nothing but the example, whichever batch, client,
worker or run asks first. Where a batch lacks fewer than that, examples of the batches to come are computed with them.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedlora.common.errors import ModelError
from fedlora.models.checkpoint import UNREADABLE
from fedlora.models.reach import logits_of
from fedlora.training.kept_outputs import KeptOutputs

_SETTING = "train.frozen_cache_megabytes"
_REMEDY = f"set {_SETTING} to 0"
# So many examples are computed at once, of so many tokens or a multiple.
_CHUNK, _TOKENS = 16, 16
# In so many batches to come examples are looked for that fill up what is computed at once.
_BATCHES_AHEAD = 8
# The one input that is not by example: the places of which the head is to give logits.
_ABOVE = "logits_to_keep"
# Relative to the largest output, between the frozen blocks' own batches and that of a step.
_TOLERANCES = {torch.float32: 1e-3, torch.float64: 1e-9}
_COARSE_TOLERANCE = 0.05

_Row = dict[str, Tensor]
_Shapes = tuple[tuple[str, tuple[int, ...]], ...]


class FrozenLayersKept:
    """A model's forward that takes the outputs of its frozen lower blocks from what is kept.

    Attributes:
        num_blocks: how many blocks are below the first one that is trained.
    """

    def __init__(self, model: nn.Module, *, kept: KeptOutputs, origin: str, max_megabytes: int) -> None:
        """Find the blocks of `model`, in which all is marked that may be trained.

        Args:
            origin: equal for equal frozen weights; what is kept for others is kept apart.
            max_megabytes: of all that the process keeps, in 10^6 bytes.

        Raises:
            ModelError: there are no blocks in a row, or the first is trained.
        """
        self._model, self._kept, self._max_bytes = model, kept, max_megabytes * 1_000_000
        path, self._blocks = _blocks(model)
        trained = [place for place, block in enumerate(self._blocks) if _trained_parts(block)]
        self._trained = _trained_parts(model)
        self.num_blocks = trained[0] if trained else len(self._blocks) - 1
        if self.num_blocks == 0:
            raise ModelError(
                f"{_SETTING}: {path}.0, the first of {len(self._blocks)} blocks, is trained, so that nothing below it "
                f"can be kept; leave lower blocks out with lora.exclude_modules, or {_REMEDY}"
            )
        self._origin = f"{origin} {path} {self.num_blocks}".encode()
        self._gives_tuples = False
        self._is_checked = False
        self._to_come: Iterator[Mapping[str, Tensor]] = iter(())
        self._waiting: dict[_Shapes, dict[bytes, _Row]] = {}

    def __call__(self, **inputs: Tensor) -> object:
        """Return the model's output for a batch.

        Raises:
            ModelError: the model gives something else in this way than in its own.
        """
        hidden = self._hidden(inputs)
        if not self._is_checked:
            self._check(inputs, hidden)
            self._is_checked = True
        return self._above(inputs, hidden)

    def look_ahead(self, to_come: Iterator[Mapping[str, Tensor]]) -> None:
        """From here on compute with what a batch lacks, as far as there is room, examples of the batches to come.

        Args:
            to_come: their inputs, of which as many are taken as are needed.
        """
        self._to_come = to_come
        self._waiting.clear()

    def _above(self, inputs: Mapping[str, Tensor], hidden: Tensor) -> object:
        """Return the output for what enters the first trained block: `hidden` (batch_size, tokens, width)."""
        with self._passed_over(), _entered(self._blocks[self.num_blocks], lambda _: hidden):
            return self._model(**inputs)

    def _hidden(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return what enters the first trained block (batch_size, tokens, width), zero where there is padding."""
        mask = inputs.get("attention_mask")
        rows = _rows(inputs)
        keys = [self._key(row) for row in rows]
        found = {key: self._kept.get(key) for key in keys}
        missing = {key: row for key, row in zip(keys, rows, strict=True) if found[key] is None}
        for key, hidden in self._computed(missing):
            found[key] = hidden
            self._kept.keep(key, hidden, max_bytes=self._max_bytes)
        of_rows = [cast(Tensor, found[key]) for key in keys]
        if mask is None:
            return torch.stack(of_rows).to(rows[0][next(iter(rows[0]))].device)
        whole = of_rows[0].new_zeros(*mask.shape, of_rows[0].shape[-1])
        for place, hidden in enumerate(of_rows):
            whole[place, mask[place].bool().cpu()] = hidden
        return whole.to(mask.device)

    def _computed(self, rows: Mapping[bytes, _Row]) -> Iterator[tuple[bytes, Tensor]]:
        """Yield what each example gives (tokens, width) on the CPU, and what is computed with it; by key."""
        alike: dict[_Shapes, list[bytes]] = {}
        for key, row in rows.items():
            alike.setdefault(_shapes(_padded(row)), []).append(key)
        for shapes, keys in alike.items():
            for begin in range(0, len(keys), _CHUNK):
                part = {key: rows[key] for key in keys[begin : begin + _CHUNK]}
                part |= self._to_come_of(shapes, _CHUNK - len(part), besides=part)
                padded = [_padded(row) for row in part.values()]
                # Always as many: how a row of a product is computed may depend on how many there are.
                padded += padded[:1] * (_CHUNK - len(part))
                batch = {name: torch.cat([row[name] for row in padded]) for name in padded[0]}
                for (key, row), hidden in zip(part.items(), self._below(batch).cpu(), strict=False):
                    yield key, self._without_padding(hidden, row, batch)

    def _to_come_of(self, shapes: _Shapes, num_most: int, *, besides: Mapping[bytes, _Row]) -> dict[bytes, _Row]:
        """Return examples of batches to come that are not kept yet, with such shapes when padded; by their keys."""
        if num_most == 0 or self._kept.is_full:
            return {}
        waiting = self._waiting.setdefault(shapes, {})
        for inputs in islice(self._to_come, _BATCHES_AHEAD):
            for row in _rows(inputs):
                if self._kept.get(key := self._key(row)) is None:
                    self._waiting.setdefault(_shapes(_padded(row)), {})[key] = row
            if len(waiting) >= num_most + len(besides):
                break
        found: dict[bytes, _Row] = {}
        while waiting and len(found) < num_most:
            key, row = waiting.popitem()
            if key not in besides and self._kept.get(key) is None:
                found[key] = row
        return found

    def _without_padding(self, hidden: Tensor, row: _Row, padded: _Row) -> Tensor:
        if "attention_mask" not in row:
            return hidden
        num_tokens, num_padded = row["attention_mask"].shape[1], padded["attention_mask"].shape[1]
        if len(hidden) != num_padded:
            raise ModelError(
                f"{_SETTING}: {num_padded} tokens of a text are {len(hidden)} in the blocks of "
                f"{type(self._model).__name__}, so that they cannot be told from padding; {_REMEDY}"
            )
        return hidden[:num_tokens]

    @torch.no_grad()
    def _below(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return what enters the first trained block; nothing above it is computed."""

        def leave(hidden: Tensor) -> Tensor:
            raise _Reached(hidden)

        with ExitStack() as undo:
            undo.enter_context(_evaluating(self._model))
            undo.enter_context(self._noting_tuples())
            undo.enter_context(_entered(self._blocks[self.num_blocks], leave))
            undo.enter_context(self._nothing_trained_before())
            try:
                self._model(**inputs)
            except _Reached as reached:
                return reached.hidden
        raise ModelError(f"{_SETTING}: {type(self._model).__name__} does not run through its blocks; {_REMEDY}")

    def _check(self, inputs: Mapping[str, Tensor], hidden: Tensor) -> None:
        """Compute a batch both ways, without dropout."""
        name = type(self._model).__name__
        with _evaluating(self._model), torch.no_grad():
            expected = logits_of(self._model(**inputs))
            try:
                found = logits_of(self._above(inputs, hidden))
            except UNREADABLE as error:
                raise ModelError(f"{_SETTING}: {name} does not run without its lower blocks; {_REMEDY}") from error
        tolerance = _TOLERANCES.get(hidden.dtype, _COARSE_TOLERANCE)
        if (mask := inputs.get("attention_mask")) is not None:
            judged = mask[:, inputs[_ABOVE]] if _ABOVE in inputs else mask
            if expected.shape[:2] == judged.shape:
                expected, found = expected[judged.bool()], found[judged.bool()]
        difference = float((expected - found).abs().max())
        if not difference <= tolerance * float(expected.abs().max()):
            raise ModelError(
                f"{_SETTING}: {name} gives outputs that differ by up to {difference:.2g} when its {self.num_blocks} "
                f"lower blocks are left out, so that more of them is used than what the next one is given; {_REMEDY}"
            )

    def _key(self, inputs: Mapping[str, Tensor]) -> bytes:
        digest = hashlib.blake2b(self._origin, digest_size=16)
        device_type = next(iter(inputs.values())).device.type
        dtype = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else "whole"
        digest.update(f" {device_type} {dtype}".encode())
        for name, tensor in sorted(inputs.items()):
            digest.update(f" {name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
            digest.update(tensor.detach().contiguous().cpu().view(torch.uint8).numpy().tobytes())
        return digest.digest()

    @contextmanager
    def _passed_over(self) -> Iterator[None]:
        """Have the frozen blocks return what they are given, in the form that they return it in."""

        def pass_on(*arguments: Any, **named: Any) -> object:
            hidden = arguments[0] if arguments else named["hidden_states"]
            return (hidden,) if self._gives_tuples else hidden

        skipped = self._blocks[: self.num_blocks]
        for block in skipped:
            block.forward = pass_on
        try:
            yield
        finally:
            for block in skipped:
                del block.forward

    @contextmanager
    def _noting_tuples(self) -> Iterator[None]:
        def note(_block: nn.Module, _inputs: object, output: object) -> None:
            self._gives_tuples = isinstance(output, tuple)

        hook = self._blocks[0].register_forward_hook(note)
        try:
            yield
        finally:
            hook.remove()

    @contextmanager
    def _nothing_trained_before(self) -> Iterator[None]:
        """Raise ModelError where something runs that is trained: it lies below the blocks, such as in the embedding."""

        def refuse(path: str) -> Callable[[nn.Module, object], None]:
            def raise_it(_module: nn.Module, _inputs: object) -> None:
                raise ModelError(f"{_SETTING}: {path} is trained and lies below the frozen blocks; {_REMEDY}")

            return raise_it

        hooks = [module.register_forward_pre_hook(refuse(path)) for path, module in self._trained.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


class _Reached(Exception):  # noqa: N818 (no error: the rest is not wanted)
    """The first trained block has been reached, with what enters it."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


def _blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the longest row of blocks in `model`, two at least, and its path."""
    rows = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    path, longest = max(rows, key=lambda row: len(row[1]), default=("", nn.ModuleList()))
    if len(longest) < 2:
        raise ModelError(f"{_SETTING}: {type(model).__name__} has no blocks in a row; {_REMEDY}")
    return path, longest


def _trained_parts(module: nn.Module) -> dict[str, nn.Module]:
    """Return by path what has parameters of its own that are trained."""
    return {
        path: part
        for path, part in module.named_modules()
        if any(parameter.requires_grad for parameter in part.parameters(recurse=False))
    }


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Have `model` in evaluation mode meanwhile, and each part in its own mode again after that."""
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextmanager
def _entered(block: nn.Module, replaced: Callable[[Tensor], Tensor]) -> Iterator[None]:
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


def _rows(inputs: Mapping[str, Tensor]) -> list[_Row]:
    """Return each example of a batch, as a batch of its own without padding."""
    mask = inputs.get("attention_mask")
    return [_row(inputs, place, mask) for place in range(len(next(iter(inputs.values()))))]


def _row(inputs: Mapping[str, Tensor], place: int, mask: Tensor | None) -> _Row:
    row = {name: tensor[place : place + 1] for name, tensor in inputs.items() if name != _ABOVE}
    if mask is None:
        return row
    is_token = mask[place].bool()
    return {name: part[:, is_token] if inputs[name].shape[:2] == mask.shape else part for name, part in row.items()}


def _shapes(row: _Row) -> _Shapes:
    return tuple((name, tuple(tensor.shape)) for name, tensor in row.items())


def _padded(row: _Row) -> _Row:
    """Return an example's tokens filled up with masked ones to a multiple, so that many have one shape."""
    mask = row.get("attention_mask")
    if mask is None:
        return dict(row)
    missing = -mask.shape[1] % _TOKENS
    return {
        name: functional.pad(tensor, (0, missing)) if tensor.shape == mask.shape else tensor
        for name, tensor in row.items()
    }
