"""A round of adapters as sums: what a site adds to each from its own adapter, and what the totals make of the next one.

Site and server drive the same method with the same totals, so that both know what the next sum is of. The first sum is
of each tensor's difference to the round's start, with the site's weight, and of the weights; those that follow are the
method's phases. What a site adds is weighted with its number of examples over what is allowed at most, so
that a sum fits the numbers it is written in. That hides no site's number of examples, which its receipt tells.

A site that is in the first sum and not in one that follows counts in the means, and is taken in the rest for a site
that agrees with them. To begin again without it would be a second sum of the same tensors, and the difference of the
two would be its own.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from fedlora.adapters import Adapter, LoraLayer
from fedlora.common.errors import AdapterError, ConfigError
from fedlora.methods import ClientPair, Combined, Layer, Method, Phases, Product, why_no_sums
from fedlora.methods.method import Contribution, Factor


@dataclass
class _LayerAtWork:
    """A layer between two sums: the method's generator, and what it wants summed up next."""

    means: Layer
    phases: Phases
    wanted: Contribution


class AdapterSums:
    """The sums of one round, one after another: `term` for each site, `take` the total, until `is_over`."""

    def __init__(self, method: Method, start: Adapter, *, only: Collection[str] | None = None) -> None:
        """Begin a round.

        Args:
            only: the tensors that the first sum is of, by path as `trained_paths` has them; the others stay as they
                are at the start. All of them if None.

        Raises:
            ConfigError: the method is not made of sums, or changes the base weights.
        """
        unfit = why_no_sums(method)
        if unfit is not None:
            why, able = unfit
            raise ConfigError(f"{method.name} {why}, which secure sums do not show; choose one of {able}")
        self._method = method
        self._start = start
        self._only = only
        self._at_work: dict[str, _LayerAtWork] = {}
        self._pairs: dict[str, tuple[Tensor, Tensor]] = {}
        self._beside: dict[str, Tensor] = {}
        self._weight = 0.0
        self._num_taken = 0

    @property
    def is_over(self) -> bool:
        """Whether no further sum is wanted."""
        return self._num_taken > 0 and not self._at_work

    @property
    def weight(self) -> float:
        """The sum of the weights of who is in the first sum; 0 before that is known."""
        return self._weight

    def sizes(self) -> list[int]:
        """Return how many numbers each part of the next sum has: in the first, one for each tensor and the weight."""
        return [prod(shape) for shape in self._shapes()]

    def term(self, update: Adapter) -> Tensor:
        """Return what a site adds to the next sum, before its weight is put to it: float32, of one dimension.

        Args:
            update: the site's adapter, of the start's layers, ranks and scalings.

        Raises:
            AdapterError: the update has other tensors than the start.
        """
        own, start = _tensors(update), _tensors(self._start)
        if {path: tensor.shape for path, tensor in own.items()} != {path: each.shape for path, each in start.items()}:
            raise AdapterError("the update has other tensors than the round's start; expected the same, of one rank")
        if not self._num_taken:
            parts = [(own[path].double() - start[path].double()).float().reshape(-1) for path in self._summed()]
            return torch.cat([*parts, torch.ones(1)])
        parts = [_whole(part).float().reshape(-1) for part in self._parts(update)]
        return torch.cat(parts)

    def take(self, total: Tensor) -> None:
        """Take the sum over the sites of their terms times their weights, and go on to the next.

        Args:
            total: float32, of as many numbers as `sizes` says.

        Raises:
            ValueError: it has another number of them.
        """
        shapes = self._shapes()
        sizes = [prod(shape) for shape in shapes]
        if total.numel() != sum(sizes):
            raise ValueError(f"a total of {total.numel()} numbers; expected {sum(sizes)}")
        flat = torch.split(total.double(), sizes)
        parts = [part.reshape(shape) for part, shape in zip(flat, shapes, strict=True)]
        if not self._num_taken:
            self._begin(parts)
        else:
            self._go_on(parts)
        self._num_taken += 1

    def result(self) -> Adapter:
        """Return the round's global adapter, when it is over."""
        if not self.is_over:
            raise ValueError("there are sums to come")
        layers = {}
        for path, like in self._start.layers.items():
            A, B = self._pairs[path]
            bias, magnitude = (self._beside.get(f"{path}.{name}") for name in ("bias", "magnitude"))
            layers[path] = replace(like, A=A.float(), B=B.float(), bias=bias, magnitude=magnitude)
        dense = {path: self._beside[path] for path in self._start.dense}
        return Adapter(layers, dense, self._start.config, self._start.base_change)

    def _begin(self, parts: Sequence[Tensor]) -> None:
        start = _tensors(self._start)
        *changes, weight = parts
        self._weight = float(weight)
        if not self._weight > 0:
            raise AdapterError("the sites' weights have no sum")
        means = dict(start)
        for path, change in zip(self._summed(), changes, strict=True):
            tensor = start[path]
            mean = tensor.double() + change / self._weight
            means[path] = mean.float() if tensor.is_floating_point() else mean.round().to(tensor.dtype)
        for path, like in self._start.layers.items():
            mean_A, mean_B = means.pop(f"{path}.A"), means.pop(f"{path}.B")
            layer = Layer(mean_A, mean_B, mean_B, like.A, like.B, (like.B[:, :0], like.A[:0]))
            phases = self._method.combine(layer)
            if isinstance(phases, Combined):
                self._pairs[path] = phases.A, phases.B
            else:
                self._at_work[path] = _LayerAtWork(layer, phases, next(phases))
        self._beside = means

    def _go_on(self, parts: Sequence[Tensor]) -> None:
        for (path, layer), total in zip(list(self._at_work.items()), parts, strict=True):
            try:
                layer.wanted = layer.phases.send((total / self._weight).float())
            except StopIteration as ended:
                combined: Combined = ended.value
                self._pairs[path] = combined.A, combined.B
                del self._at_work[path]

    def _shapes(self) -> list[tuple[int, ...]]:
        """Return the shapes of the parts of the next sum; they are the same for every adapter."""
        if not self._num_taken:
            start = _tensors(self._start)
            return [*(tuple(start[path].shape) for path in self._summed()), ()]
        return [_shape(part) for part in self._parts(self._start)]

    def _summed(self) -> list[str]:
        """Return the paths of the tensors that the first sum is of, in their order."""
        return [path for path in _tensors(self._start) if self._only is None or path in self._only]

    def _parts(self, update: Adapter) -> list[Tensor | Product]:
        """Return what an adapter's layers at work add to the next sum."""
        parts = []
        for path, layer in self._at_work.items():
            own, means = update.layers[path], layer.means
            pair = ClientPair(own.A.to(means.mean_A), own.B.to(means.mean_B), means.mean_A, means.owned_B)
            parts.append(layer.wanted(pair))
        return parts


def num_sums(method: Method, start: Adapter) -> int:
    """Return how many sums a round takes: two for LoRA-FAIR."""
    path, layer = min(start.layers.items(), key=lambda item: item[1].A.numel() + item[1].B.numel())
    sums, count = AdapterSums(method, Adapter({path: layer}, {}, start.config)), 0
    while not sums.is_over:
        # A single site, whose update is the start.
        sums.take(sums.term(Adapter({path: layer})))
        count += 1
    return count


def trained_paths(start: Adapter, trains: Collection[Factor]) -> list[str]:
    """Return the paths of the tensors of a round's start that its clients train: no counter, nor the other factor."""
    left_out = {f"{path}.{factor}" for path in start.layers for factor in ("A", "B") if factor not in trains}
    return [path for path, tensor in _tensors(start).items() if tensor.is_floating_point() and path not in left_out]


def _tensors(adapter: Adapter) -> Mapping[str, Tensor]:
    """Return an adapter's tensors by path, in the order of the paths."""
    found: dict[str, Tensor] = dict(adapter.dense)
    for path, layer in adapter.layers.items():
        found |= {f"{path}.{name}": tensor for name, tensor in _of_layer(layer)}
    return dict(sorted(found.items()))


def _of_layer(layer: LoraLayer) -> list[tuple[str, Tensor]]:
    parts = (("A", layer.A), ("B", layer.B), ("bias", layer.bias), ("magnitude", layer.magnitude))
    return [(name, tensor) for name, tensor in parts if tensor is not None]


def _whole(part: Tensor | Product) -> Tensor:
    return part.left @ part.right if isinstance(part, Product) else part


def _shape(part: Tensor | Product) -> tuple[int, ...]:
    return (part.left.shape[0], part.right.shape[1]) if isinstance(part, Product) else tuple(part.shape)
