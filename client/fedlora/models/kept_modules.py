"""The base model that was read last, kept as it was read by a process that does many runs on it."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

L = TypeVar("L")


@dataclass(frozen=True, eq=False)
class _Kept:
    """A module that nobody changes, and torch's generator before and after it was read."""

    key: str
    module: nn.Module
    loading: Any
    before: Tensor
    after: Tensor

    @property
    def has_drawn(self) -> bool:
        return not torch.equal(self.before, self.after)

    def is_same(self, key: str, state: Tensor) -> bool:
        """Return whether to read it again, from this state of the generator, would give the same."""
        return self.key == key and (not self.has_drawn or torch.equal(self.before, state))


@dataclass(eq=False)
class _Keeper:
    last: _Kept | None = None


_keeper: ContextVar[_Keeper | None] = ContextVar("_keeper", default=None)


@contextmanager
def modules_kept() -> Iterator[None]:
    """Keep the last module that is read meanwhile, and give copies of it for as long as the same is asked for."""
    token = _keeper.set(_Keeper())
    try:
        yield
    finally:
        _keeper.reset(token)


def kept_or_read(key: str, read: Callable[[], tuple[nn.Module, L]]) -> tuple[nn.Module, L]:
    """Return what `read` gives, or a copy of what it gave before; torch's generator is left as `read` leaves it.

    What a checkpoint lacks is drawn in its reading: a module with such weights is read again where the generator is in
    another state.

    Args:
        key: equal for the same module.
        read: returns the module, which is the caller's to change, and what is known of its reading.
    """
    keeper = _keeper.get()
    if keeper is None:
        return read()
    before = torch.get_rng_state()
    if keeper.last is None or not keeper.last.is_same(key, before):
        keeper.last = None  # Two of them may be more than the memory holds.
        module, loading = read()
        keeper.last = _Kept(key, module, loading, before, torch.get_rng_state())
    elif keeper.last.has_drawn:
        torch.set_rng_state(keeper.last.after)
    return copy.deepcopy(keeper.last.module), keeper.last.loading
