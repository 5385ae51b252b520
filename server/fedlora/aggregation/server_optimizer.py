"""The server's optimiser: a round's result is a step from the round's start, and this says how far it really goes.

Reddi et al.: "Adaptive Federated Optimization", ICLR 2021, arXiv 2003.00295; its momentum is that of Hsu, Qi, Brown:
"Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification", arXiv 1909.06335.
The method aggregates first. Its change C = result - start points where training goes (the papers' pseudo-gradient is
-C), and the new adapter is start + step, for every element, with a learning rate e:

    momentum    m = b m + C                           step = e m
    adam        m = b1 m + (1 - b1) C                 step = e m' / (sqrt(v') + tau)
                v = b2 v + (1 - b2) C^2               m' = m / (1 - b1^t),  v' = v / (1 - b2^t)
    yogi        m as adam                             step = e m' / (sqrt(v) + tau)
                v = v + (1 - b2) C^2 sign(C^2 - v)    v = C^2 in the first round

Under momentum the newest change counts whole: where rounds agree, the step grows to e / (1 - b) times a round's change,
twice of it with b = 0.5. With e = 1 the first round's result stays to the last bit, and with b = 0 every round's.

Two departures from Reddi et al., who correct no bias and begin with v = tau^2. A federation has few rounds, and the
first ten of them would lose most of their steps: so Adam corrects both moments (Kingma and Ba, 2015), as Flower's
FedAdam does, and Yogi begins with the first square, as its authors advise (Zaheer et al., NeurIPS 2018). t counts the
rounds in which a tensor has changed. One that has not stays, and so does what is known of it: a frozen factor has to be
the same for all, and a layer whose clients sat the round out has learned nothing.

It acts on A and on B (`factors`) or on what they do (`product`, see `product_step`), and element by element on heads,
biases and magnitudes. Whole numbers and the running statistics of a batch norm are counted, not learned: they stay.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from fedlora.adapters import Adapter, LoraLayer
from fedlora.aggregation.product_step import Pair, Step, change_square, product_step
from fedlora.common.aggregation_report import ServerStep
from fedlora.common.errors import AdapterError
from fedlora.methods import Method, MethodState

# A path of a base model has no slash: what is kept here never stands where a method's own state does.
_PREFIX = "server_optimizer/"
_STATISTICS = ("running_mean", "running_var")
# Adam moves a number of A or B by at most about its learning rate in a step, 8e-3 in the 8 steps of a round at 1e-3. An
# element of their product, of which all have one number, moves by a tenth of that: A's are small, and B starts at zero.
_ADAPTIVE = {"factors": (1e-2, 1e-2), "product": (1e-3, 1e-3)}


@dataclass(frozen=True)
class ServerOptimizer:
    """How the server steps from a round's start to what the method makes of the updates.

    Attributes:
        kind: "momentum" (FedAvgM), "adam" (FedAdam) or "yogi" (FedYogi).
        acts_on: "factors": A and B; "product": what they do together, whatever the gauge; the new pair is then the best
            of its rank, in the split nearest to the method's.
        learning_rate: e. None is 1 for momentum; of the others 0.01, and 0.001 for products: the most that a number
            should move in a round, which is about what a client's training moves it.
        momentum: b, of momentum alone.
        beta_1, beta_2: of the others: how much of the first and of the second moment stays.
        tau: of the others: changes much smaller than it are scaled by e / tau, larger ones brought to the size e. None
            is 0.01, and 0.001 for products: where it is e, no step is larger than the mean change. Where it is much
            less, what is little more than noise is brought to the size e too.

    Raises:
        ValueError: a setting is out of its range or not one of the words above.
    """

    kind: Literal["momentum", "adam", "yogi"] = "momentum"
    acts_on: Literal["factors", "product"] = "factors"
    learning_rate: float | None = None
    momentum: float = 0.5
    beta_1: float = 0.9
    beta_2: float = 0.99
    tau: float | None = None

    def __post_init__(self) -> None:
        for word, value, expected in (
            ("kind", self.kind, ("momentum", "adam", "yogi")),
            ("acts_on", self.acts_on, ("factors", "product")),
        ):
            if value not in expected:
                raise ValueError(f"{word} is {value!r}; expected {' or '.join(map(repr, expected))}")
        for name in ("learning_rate", "tau"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} is {value}; expected a finite, positive number, or None")
        for name in ("momentum", "beta_1", "beta_2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number from 0 to less than 1")

    @property
    def num_moments(self) -> int:
        """How many numbers are kept of each element."""
        return 1 if self.kind == "momentum" else 2

    @property
    def kept(self) -> float:
        """How much of the first moment stays."""
        return self.momentum if self.kind == "momentum" else self.beta_1

    @property
    def fresh(self) -> float:
        """How much of a change goes into the first moment."""
        return 1.0 if self.kind == "momentum" else 1 - self.beta_1


def require_step(method: Method) -> None:
    """Check that the method's result is a step from the round's start.

    Raises:
        ValueError: it is not.
    """
    if not method.takes_server_optimizer():
        raise ValueError(
            f"a server optimiser does not go with {method.name}: its rounds move into the base weights or start afresh"
        )


@torch.no_grad()
def stepped(
    result: Adapter, start: Adapter, state: MethodState, optimizer: ServerOptimizer
) -> tuple[Adapter, dict[str, Mapping[str, Tensor]], ServerStep]:
    """Return the adapter that the optimiser steps to, what it keeps for the next round, and how far it went.

    One layer is worked on at a time. What is kept is as large as the adapter under momentum, and twice that under the
    others; of products it is a pair of twice the rank.

    Args:
        result: what the method has made of the round's updates.
        start: where the round started.
        state: what was kept after the round before. What the method keeps may be among it, and stays.

    Raises:
        AdapterError: a change is so large that what is kept of it is not finite.
    """
    kept, squares = dict(state), _Squares()
    layers, dense = dict(result.layers), dict(result.dense)
    for path, layer in result.layers.items():
        if path in start.layers:
            known = kept.pop(_PREFIX + path, {})
            layers[path], found = _stepped_layer(layer, start.layers[path], known, optimizer, squares)
            _keep(kept, path, found, layers[path].tensors())
    for path, tensor in result.dense.items():
        if path in start.dense and _is_learned(path, tensor):
            known = kept.pop(_PREFIX + path, {})
            dense[path], found = _stepped_tensor("whole", tensor, start.dense[path], known, optimizer)
            _keep(kept, path, found, [dense[path]])
    report = ServerStep(optimizer.kind, optimizer.acts_on, squares.ratio())
    return replace(result, layers=layers, dense=dense), kept, report


class _Squares:
    """The squared norms of all pairs' steps, and of the method's changes, each with its layer's scaling."""

    def __init__(self) -> None:
        self.step = self.change = 0.0

    def add(self, new: Pair, result: Pair, start: Pair, *, scaling: float) -> None:
        self.step += scaling**2 * change_square(new, start)
        self.change += scaling**2 * change_square(result, start)

    def ratio(self) -> float:
        """Return |step| / |change|, 0 where nothing has changed."""
        return math.sqrt(self.step / self.change) if self.change > 0 else 0.0


def _keep(kept: dict[str, Mapping[str, Tensor]], path: str, found: Mapping[str, Tensor], new: Iterable[Tensor]) -> None:
    if not all(tensor.isfinite().all() for tensor in (*found.values(), *new)):
        raise AdapterError(
            f"{path}: changes so large that the server's optimiser overflows; leave out the largest updates"
        )
    if found:
        kept[_PREFIX + path] = found


def _is_learned(path: str, tensor: Tensor) -> bool:
    return tensor.is_floating_point() and path.rpartition(".")[2] not in _STATISTICS


def _stepped_layer(
    layer: LoraLayer, start: LoraLayer, known: Mapping[str, Tensor], optimizer: ServerOptimizer, squares: _Squares
) -> tuple[LoraLayer, dict[str, Tensor]]:
    """Return the layer after the step, and what is kept of it."""
    new: dict[str, Tensor] = {}
    found: dict[str, Tensor] = {}
    parts = ["bias", "magnitude"]
    if optimizer.acts_on == "factors":
        parts = ["A", "B", *parts]
    else:
        (new["A"], new["B"]), found = _stepped_product(layer, start, known, optimizer)
    for part in parts:
        tensor, before = getattr(layer, part), getattr(start, part)
        if tensor is not None and before is not None:
            new[part], kept = _stepped_tensor(part, tensor, before, known, optimizer)
            found |= kept
    squares.add((new["A"], new["B"]), (layer.A, layer.B), (start.A, start.B), scaling=layer.scaling)
    bias, magnitude = new.get("bias", layer.bias), new.get("magnitude", layer.magnitude)
    return replace(layer, A=new["A"], B=new["B"], bias=bias, magnitude=magnitude), found


def _stepped_tensor(
    part: str, result: Tensor, start: Tensor, known: Mapping[str, Tensor], optimizer: ServerOptimizer
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return one tensor after the step, and what is kept of it, under names that begin with `part`."""
    change = result - start.to(result)
    if not change.any():
        return result, _of_part(part, known)
    moment = optimizer.fresh * change
    if (last := known.get(f"{part}_first")) is not None:
        moment += optimizer.kept * last.to(change)
    gain, kept = _gain(part, change, known, optimizer, defaults=_ADAPTIVE["factors"])
    # As a correction of the result, so that a step of just the change leaves it as it is.
    return result + (gain * moment - change), {f"{part}_first": moment, **kept}


def _stepped_product(
    layer: LoraLayer, start: LoraLayer, known: Mapping[str, Tensor], optimizer: ServerOptimizer
) -> tuple[Pair, dict[str, Tensor]]:
    """Return the pair after a step of its product, and what is kept of it.

    The second moment is one number for the layer, of the mean square of the elements of s B A: that of each element
    would take the memory of the weight.
    """
    pair, before = (layer.A, layer.B), (start.A, start.B)
    size = layer.scaling * math.sqrt(change_square(pair, before) / (layer.B.shape[0] * layer.A.shape[1]))
    if not size:
        return pair, _of_part("product", known)
    gain, kept = _gain(
        "product", torch.tensor(size, dtype=torch.float64), known, optimizer, defaults=_ADAPTIVE["product"]
    )
    last = (known["product_A"], known["product_B"]) if "product_A" in known else None
    new, moment = product_step(pair, before, last, Step(optimizer.kept, optimizer.fresh, float(gain)))
    return new, {"product_A": moment[0], "product_B": moment[1], **kept}


def _gain(
    part: str, change: Tensor, known: Mapping[str, Tensor], optimizer: ServerOptimizer, *, defaults: tuple[float, float]
) -> tuple[Tensor | float, dict[str, Tensor]]:
    """Return by what the first moment is multiplied to be the step, of the shape of `change`, and what is kept for it.

    Args:
        defaults: the learning rate and tau of adam and yogi.
    """
    if optimizer.kind == "momentum":
        return optimizer.learning_rate or 1.0, {}
    rate, tau = optimizer.learning_rate or defaults[0], optimizer.tau or defaults[1]
    rounds = 1 + int(known.get(f"{part}_rounds", torch.tensor(0)))
    square, share = change.square(), 1 - optimizer.beta_2
    last = known.get(f"{part}_second")
    if optimizer.kind == "adam":
        second = share * square if last is None else optimizer.beta_2 * last.to(square) + share * square
        size = (second / (1 - optimizer.beta_2**rounds)).sqrt()
    else:
        second = square if last is None else last.to(square) + share * square * (square - last.to(square)).sign()
        size = second.sqrt()
    gain = rate / (1 - optimizer.beta_1**rounds) / (size + tau)
    return gain, {f"{part}_second": second, f"{part}_rounds": torch.tensor(rounds)}


def _of_part(part: str, known: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in known.items() if name.startswith(f"{part}_")}
