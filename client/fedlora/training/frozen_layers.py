"""The layers below the first one that is trained, computed once for each example and not again in every step.

Where a model is trained in its upper blocks alone, the lower ones give the same for an example in every step of every
round. What enters the first trained block is kept, by what the example consists of; after that the lower blocks pass
on what they are given, and the kept values enter in their place. Examples are computed without dropout, and always as
many at a time in tensors of the same shapes: what is kept depends on nothing but the example, whichever batch, client,
worker or run asks first. Where a batch lacks fewer than that, examples of the batches to come are computed with them.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedlora.common.errors import ModelError
from fedlora.models.checkpoint import UNREADABLE
from fedlora.models.reach import logits_of
from fedlora.training.example_rows import ABOVE, Row, Shapes, key_of, padded_row, rows_of, shapes_of
from fedlora.training.kept_outputs import KeptOutputs
from fedlora.training.model_blocks import blocks_of, entered, evaluating, trained_parts

_SETTING = "train.frozen_cache_megabytes"
_REMEDY = f"set {_SETTING} to 0"
# So many examples are computed at once at most.
MOST_AT_ONCE = 16
# So many examples to come wait at most until others of their shape are computed, or until they are asked for.
_MOST_WAITING = 128
# Relative to the largest output, between the frozen blocks' own batches and that of a step.
_TOLERANCES = {torch.float32: 1e-3, torch.float64: 1e-9}
_COARSE_TOLERANCE = 0.05


class FrozenLayersKept:
    """A model's forward that takes the outputs of its frozen lower blocks from what is kept.

    Attributes:
        num_blocks: how many blocks are below the first one that is trained.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        kept: KeptOutputs,
        origin: str,
        max_megabytes: int,
        chunk: int = MOST_AT_ONCE,
    ) -> None:
        """Find the blocks of `model`, in which all is marked that may be trained.

        Args:
            origin: equal for equal frozen weights; what is kept for others is kept apart.
            max_megabytes: of all that the process keeps, in 10^6 bytes.
            chunk: how many examples the frozen blocks compute at once, always.

        Raises:
            ModelError: there are no blocks in a row, or the first is trained.
        """
        self._model, self._kept, self._max_bytes = model, kept, max_megabytes * 1_000_000
        path, self._blocks = blocks_of(model)
        if len(self._blocks) < 2:
            raise ModelError(f"{_SETTING}: {type(model).__name__} has no blocks in a row; {_REMEDY}")
        trained = [place for place, block in enumerate(self._blocks) if trained_parts(block)]
        self._trained = trained_parts(model)
        self.num_blocks = trained[0] if trained else len(self._blocks) - 1
        if self.num_blocks == 0:
            raise ModelError(
                f"{_SETTING}: {path}.0, the first of {len(self._blocks)} blocks, is trained, so that nothing below it "
                f"can be kept; leave lower blocks out with lora.exclude_modules, or {_REMEDY}"
            )
        self._chunk = chunk
        self._origin = f"{origin} {path} {self.num_blocks} {chunk}".encode()
        self._gives_tuples = False
        self._is_checked = False
        self._waiting: dict[Shapes, dict[bytes, Row]] = {}
        # Computed before they were asked for, where there is no room to keep them.
        self._spare: dict[bytes, Tensor] = {}
        self.look_ahead(0, lambda _: {})

    def __call__(self, **inputs: Tensor) -> object:
        """Return the model's output for a batch.

        Raises:
            ModelError: the model gives something else in this way than in its own.
        """
        return self.above(inputs, self.hidden_of(inputs))

    def hidden_of(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return what enters the first trained block for a batch (batch_size, tokens, width).

        Raises:
            ModelError: the model gives something else from there on than in its own way.
        """
        self._num_asked += 1
        hidden = self._hidden(inputs)
        if not self._is_checked:
            self._check(inputs, hidden)
            self._is_checked = True
        return hidden

    def look_ahead(self, num_batches: int, inputs_of: Callable[[int], Mapping[str, Tensor]]) -> None:
        """From here on compute with what a batch lacks, as far as there is room, examples of the batches to come.

        Args:
            num_batches: that this is called with from here on.
            inputs_of: the n-th of them, from 0.
        """
        self._num_batches, self._inputs_of = num_batches, inputs_of
        self._num_asked = self._num_seen = 0
        self._waiting.clear()
        self._spare.clear()

    def above(self, inputs: Mapping[str, Tensor], hidden: Tensor) -> object:
        """Return the output for what enters the first trained block: `hidden` (batch_size, tokens, width)."""
        with self._passed_over(), entered(self._blocks[self.num_blocks], lambda _: hidden):
            return self._model(**inputs)

    def _hidden(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return what enters the first trained block (batch_size, tokens, width), zero where there is padding."""
        mask = inputs.get("attention_mask")
        rows = rows_of(inputs)
        keys = [key_of(row, self._origin) for row in rows]
        found = {key: self._at_hand(key) for key in keys}
        missing = {key: row for key, row in zip(keys, rows, strict=True) if found[key] is None}
        for waiting in self._waiting.values():
            for key in waiting.keys() & missing.keys():
                del waiting[key]
        for key, hidden in self._computed(missing):
            is_kept = self._kept.keep(key, hidden, max_bytes=self._max_bytes)
            if key in found:
                found[key] = hidden
            elif not is_kept:
                self._spare[key] = hidden.clone()
        of_rows = [cast(Tensor, found[key]) for key in keys]
        if mask is None:
            return torch.stack(of_rows).to(rows[0][next(iter(rows[0]))].device)
        whole = of_rows[0].new_zeros(*mask.shape, of_rows[0].shape[-1])
        for place, hidden in enumerate(of_rows):
            whole[place, mask[place].bool().cpu()] = hidden
        return whole.to(mask.device)

    def _at_hand(self, key: bytes) -> Tensor | None:
        kept = self._kept.get(key)
        return self._spare.pop(key, None) if kept is None else kept

    def _computed(self, rows: Mapping[bytes, Row]) -> Iterator[tuple[bytes, Tensor]]:
        """Yield what each example gives (tokens, width) on the CPU, and what is computed with it; by key."""
        alike: dict[Shapes, list[bytes]] = {}
        for key, row in rows.items():
            alike.setdefault(shapes_of(padded_row(row)), []).append(key)
        for shapes, keys in alike.items():
            for begin in range(0, len(keys), self._chunk):
                part = {key: rows[key] for key in keys[begin : begin + self._chunk]}
                part |= self._to_come_of(shapes, self._chunk - len(part), besides=rows)
                padded = [padded_row(row) for row in part.values()]
                # Always as many: how a row of a product is computed may depend on how many there are.
                padded += padded[:1] * (self._chunk - len(part))
                batch = {name: torch.cat([row[name] for row in padded]) for name in padded[0]}
                for (key, row), hidden in zip(part.items(), self._below(batch).cpu(), strict=False):
                    yield key, self._without_padding(hidden, row, batch)

    def _to_come_of(self, shapes: Shapes, num_most: int, *, besides: Mapping[bytes, Row]) -> dict[bytes, Row]:
        """Return examples of batches to come that are not kept yet, with such shapes when padded; by their keys."""
        num_most = min(num_most, 2 * self._chunk - len(self._spare))
        waiting = self._waiting.setdefault(shapes, {})
        while len(waiting) < num_most and sum(map(len, self._waiting.values())) < _MOST_WAITING:
            place = max(self._num_seen, self._num_asked)
            if place >= self._num_batches:
                break
            self._num_seen = place + 1
            for row in rows_of(self._inputs_of(place)):
                key = key_of(row, self._origin)
                if key not in besides and key not in self._spare and self._kept.get(key) is None:
                    # Of its own, and no view that holds the whole batch.
                    own = {name: tensor.clone() for name, tensor in row.items()}
                    self._waiting.setdefault(shapes_of(padded_row(row)), {})[key] = own
        found: dict[bytes, Row] = {}
        while waiting and len(found) < num_most:
            key = next(iter(waiting))
            found[key] = waiting.pop(key)
        return found

    def _without_padding(self, hidden: Tensor, row: Row, padded: Row) -> Tensor:
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
            undo.enter_context(evaluating(self._model))
            undo.enter_context(self._noting_tuples())
            undo.enter_context(entered(self._blocks[self.num_blocks], leave))
            undo.enter_context(self._nothing_trained_before())
            try:
                self._model(**inputs)
            except _Reached as reached:
                return reached.hidden
        raise ModelError(f"{_SETTING}: {type(self._model).__name__} does not run through its blocks; {_REMEDY}")

    def _check(self, inputs: Mapping[str, Tensor], hidden: Tensor) -> None:
        """Compute a batch both ways, without dropout."""
        name = type(self._model).__name__
        with evaluating(self._model), torch.no_grad():
            expected = logits_of(self._model(**inputs))
            try:
                found = logits_of(self.above(inputs, hidden))
            except UNREADABLE as error:
                raise ModelError(f"{_SETTING}: {name} does not run without its lower blocks; {_REMEDY}") from error
        tolerance = _TOLERANCES.get(hidden.dtype, _COARSE_TOLERANCE)
        if (mask := inputs.get("attention_mask")) is not None:
            judged = mask[:, inputs[ABOVE]] if ABOVE in inputs else mask
            if expected.shape[:2] == judged.shape:
                expected, found = expected[judged.bool()], found[judged.bool()]
        difference = float((expected - found).abs().max())
        # Weights that were cast without a graph are no weights for the step that comes.
        torch.clear_autocast_cache()
        if not difference <= tolerance * float(expected.abs().max()):
            raise ModelError(
                f"{_SETTING}: {name} gives outputs that differ by up to {difference:.2g} when its {self.num_blocks} "
                f"lower blocks are left out, so that more of them is used than what the next one is given; {_REMEDY}"
            )

    @contextmanager
    def _passed_over(self) -> Iterator[None]:
        """Have the frozen blocks return what they are given, in the form that they return it in."""

        def pass_on(*arguments: Any, **named: Any) -> object:
            hidden = arguments[0] if arguments else named["hidden_states"]
            return (hidden,) if self._gives_tuples else hidden

        # A forward of the block's own, such as accelerate's, which moves tensors between devices, is its again after.
        skipped = [(block, vars(block).get("forward")) for block in self._blocks[: self.num_blocks]]
        for block, _ in skipped:
            block.forward = pass_on
        try:
            yield
        finally:
            for block, own in skipped:
                del block.forward
                if own is not None:
                    block.forward = own

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
