"""Time the methods on one matrix: python timed_one_matrix.py SIZE RANK NUM_CLIENTS NUM_REPEATS ANSWER.json

One thread, all pairs in memory and, where they fit, in the processor's cache: right before each
timing the same call is made once untimed, and short calls are timed several at a time. The methods
take turns, in an order that rotates. The two that take tens of seconds at full size, a dense singular
value decomposition and SGD, run once. That the forms of one method do the same work is checked.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from aggregation_clients import Pair, drawn_pairs, relative_difference, updates_of
from progress import progress
from torch import Tensor

from fedlora.aggregation import (
    FedExLora,
    FedIT,
    FlexLora,
    Flora,
    LoraFair,
    LoraFairCosine,
    LoraFairTwoSided,
    Method,
)
from fedlora.aggregation.driver import combine
from fedlora.aggregation.report import measure_layer
from fedlora.aggregation.updates import centre

_METHODS: dict[str, Method] = {
    "fedit": FedIT(),
    "lora_fair": LoraFair(),
    "lora_fair, corrects A": LoraFair(corrects="A"),
    "lora_fair_two_sided, 2 sweeps": LoraFairTwoSided(sweeps=2),
    "lora_fair_cosine": LoraFairCosine(),
    "flex_lora": FlexLora(),
    "flex_lora, 2 iterations": FlexLora(power_iterations=2),
    "fedex_lora": FedExLora(),
    "flora": Flora(),
}
_RIDGE = LoraFair().ridge
_SHORTEST_SECONDS = 0.01
_SGD_STEPS = 20
_SGD_STEPS_OF_THE_PAPER = 1000


def main(size: int, rank: int, num_clients: int, num_repeats: int, answer: Path) -> None:
    """Write the seconds of one call, by method and repeat."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    pairs = drawn_pairs(num_clients, out_features=size, in_features=size, rank=rank, generator=generator)
    updates = updates_of(pairs)

    def call_of(method: Method) -> Callable[[], object]:
        return lambda: combine(method, centre(updates), {})

    corrected = combine(LoraFair(), centre(updates), {})
    _check("the factored form without centring", uncentred_form(pairs)[1], corrected.B)
    _check("the dense closed form", dense_form(pairs)[1], corrected.B)
    update = centre(updates)
    seconds = timed_in_turn(
        {
            **{name: call_of(method) for name, method in _METHODS.items()},
            "diagnostics": lambda: measure_layer(update, corrected, scaling=1.0),
            "uncentred": lambda: uncentred_form(pairs),
            "dense": lambda: dense_form(pairs),
        },
        num_repeats=num_repeats,
    )
    progress(f"SGD, {_SGD_STEPS} steps")
    # The first step loads what training needs, and does not count.
    _, without_steps, with_steps = (
        _seconds(call_of(LoraFairCosine(solver="sgd", steps=steps)), 1) for steps in (1, 0, _SGD_STEPS)
    )
    step = (with_steps - without_steps) / _SGD_STEPS
    progress("dense singular value decomposition")
    began = time.perf_counter()
    A, B = dense_decomposition(pairs)
    seconds |= {
        "sgd": [without_steps + step * _SGD_STEPS_OF_THE_PAPER],
        "dense decomposition": [time.perf_counter() - began],
    }
    best = combine(FlexLora(), centre(updates), {})
    _check("the dense singular value decomposition", B @ A, best.B @ best.A)
    answer.write_text(json.dumps(seconds))


def timed_in_turn(calls: dict[str, Callable[[], object]], *, num_repeats: int) -> dict[str, list[float]]:
    """Return the seconds of one call, by name and repeat."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    num_calls = {
        name: math.ceil(_SHORTEST_SECONDS / min(_seconds(call, 1), _seconds(call, 1))) for name, call in calls.items()
    }
    names = list(calls)
    for repeat in range(num_repeats):
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            calls[name]()
            seconds[name].append(_seconds(calls[name], num_calls[name]))
    return seconds


def uncentred_form(pairs: Sequence[Pair]) -> Pair:
    """Return lora_fair's A and B by a first factored form: stacked means, and the error as a difference."""
    num_clients = len(pairs)
    mean_A = torch.stack([A for A, _ in pairs]).mean(0)
    mean_B = torch.stack([B for _, B in pairs]).mean(0)
    G = mean_A @ mean_A.T
    error = sum((B @ (A @ mean_A.T) for A, B in pairs), torch.zeros_like(mean_B)) / num_clients - mean_B @ G
    return mean_A, mean_B + torch.linalg.solve(_with_ridge(G), error.T).T


def dense_form(pairs: Sequence[Pair]) -> Pair:
    """Return lora_fair's A and B by way of the full matrix of the ideal update."""
    mean_A = torch.stack([A for A, _ in pairs]).mean(0)
    mean_B = torch.stack([B for _, B in pairs]).mean(0)
    error = _ideal_update(pairs).addmm_(mean_B, mean_A, alpha=-1)
    return mean_A, mean_B + torch.linalg.solve(_with_ridge(mean_A @ mean_A.T), (error @ mean_A.T).T).T


def dense_decomposition(pairs: Sequence[Pair]) -> Pair:
    """Return flex_lora's A and B, but for a rotation, by way of the full matrix's singular values."""
    rank = pairs[0][0].shape[0]
    U, S, Vh = torch.linalg.svd(_ideal_update(pairs), full_matrices=False)
    return Vh[:rank], U[:, :rank] * S[:rank]


def _ideal_update(pairs: Sequence[Pair]) -> Tensor:
    M = pairs[0][1].new_zeros(pairs[0][1].shape[0], pairs[0][0].shape[1])
    for A, B in pairs:
        M.addmm_(B, A, alpha=1 / len(pairs))
    return M


def _with_ridge(G: Tensor) -> Tensor:
    rank = len(G)
    return G + _RIDGE * G.trace() / rank * torch.eye(rank)


def _seconds(call: Callable[[], object], num_calls: int) -> float:
    began = time.perf_counter()
    for _ in range(num_calls):
        call()
    return (time.perf_counter() - began) / num_calls


def _check(what: str, found: Tensor, expected: Tensor) -> None:
    if (difference := relative_difference(found, expected)) > 1e-3:
        raise RuntimeError(f"{what} differs from ours by {difference:.1e}: they did not do the same work")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
