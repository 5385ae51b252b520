"""The mean of the clients' moments: against numpy, over clients of different ranks, and what stays as it was."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fedlora.aggregation.shared_moments import mean_moments, moments_in, with_moments
from fedlora.server.disk.method_state import pack_state, unpack_state

A, B, HEAD = "q.lora_A.weight", "q.lora_B.weight", "head.weight"
# Keys as PEFT saves them: by these the factors are known.
A, B = f"base_model.model.{A}", f"base_model.model.{B}"
LIKE = {A: torch.zeros(3, 5), B: torch.zeros(4, 3), HEAD: torch.zeros(2)}
WHOLE = {"exp_avg": True, "exp_avg_sq": True, "step": False}
SCALAR = {"exp_avg": True, "exp_avg_sq": False, "step": False}


def moments(seed: int, *, rank: int = 3, form: dict[str, bool] = WHOLE) -> dict[str, Tensor]:
    draw = np.random.default_rng(seed)
    shapes = {A: (rank, 5), B: (4, rank), HEAD: (2,)}
    found: dict[str, Tensor] = {}
    for key, shape in shapes.items():
        for name, is_whole in form.items():
            value = draw.uniform(0.1, 1.0, shape if is_whole else ())
            found[f"{key}/{name}"] = torch.tensor(value, dtype=torch.float32)
        found[f"{key}/step"] = torch.tensor(float(draw.integers(1, 9)))
    return found


@pytest.mark.parametrize("form", [WHOLE, SCALAR])
def test_each_is_the_weighted_mean_that_numpy_computes(form: dict[str, bool]) -> None:
    clients = {name: moments(seed, form=form) for seed, name in enumerate("abc")}
    p = {"a": 0.5, "b": 0.2, "c": 0.3}
    found = mean_moments(clients, p=p, former=moments(9, form=form), like=LIKE, form=form)
    assert found.keys() == clients["a"].keys()
    for key, tensor in found.items():
        expected = sum(p[name] * clients[name][key].numpy().astype(np.float64) for name in p)
        np.testing.assert_allclose(tensor.numpy(), np.float32(expected), rtol=2e-7)
        assert tensor.dtype == torch.float32


def test_neither_the_order_of_clients_nor_who_does_not_count_matters() -> None:
    clients = {name: moments(seed) for seed, name in enumerate("abc")}
    p = {"a": 0.25, "c": 0.75}
    first = mean_moments(clients, p=p, former={}, like=LIKE, form=WHOLE)
    backwards = dict(reversed(clients.items()))
    del backwards["b"]
    assert pack_state(with_moments({}, first)) == pack_state(
        with_moments({}, mean_moments(backwards, p=p, former={}, like=LIKE, form=WHOLE))
    )


def test_a_row_is_the_mean_over_the_clients_that_have_it_and_what_nobody_has_stays() -> None:
    clients, former = {"large": moments(0, rank=2), "small": moments(1, rank=1)}, moments(2)
    found = mean_moments(clients, p={"large": 0.25, "small": 0.75}, former=former, like=LIKE, form=WHOLE)
    for key, axis in ((A, 0), (B, 1)):
        for name in ("exp_avg", "exp_avg_sq"):
            rows = [found[f"{key}/{name}"].select(axis, row) for row in range(3)]
            of = {who: clients[who][f"{key}/{name}"] for who in clients}
            both = 0.25 * of["large"].select(axis, 0) + 0.75 * of["small"].select(axis, 0)
            torch.testing.assert_close(rows[0], both)
            torch.testing.assert_close(rows[1], of["large"].select(axis, 1))
            assert torch.equal(rows[2], former[f"{key}/{name}"].select(axis, 2))
    # In a first round nothing was before, and zero is what an optimiser begins with.
    fresh = mean_moments(clients, p={"large": 0.25, "small": 0.75}, former={}, like=LIKE, form=WHOLE)
    assert not fresh[f"{A}/exp_avg_sq"][2].any()


def test_the_moments_of_a_factor_that_was_not_trained_stay() -> None:
    only_A = {"a": {key: value for key, value in moments(0).items() if not key.startswith(B)}}
    former = moments(1)
    found = mean_moments(only_A, p={"a": 1.0}, former=former, like=LIKE, form=WHOLE)
    assert torch.equal(found[f"{B}/exp_avg"], former[f"{B}/exp_avg"])
    assert torch.equal(found[f"{A}/exp_avg"], only_A["a"][f"{A}/exp_avg"])
    assert f"{B}/exp_avg" not in mean_moments(only_A, p={"a": 1.0}, former={}, like=LIKE, form=WHOLE)


def test_they_are_kept_beside_a_methods_state_and_read_back() -> None:
    own = {"q": {"A": torch.ones(2)}, "server_optimizer/q": {"A_first": torch.ones(3)}}
    kept = unpack_state(pack_state(with_moments(with_moments(own, moments(0)), moments(1))))
    assert {key: dict(tensors) for key, tensors in kept.items() if "shared" not in key}.keys() == own.keys()
    found = moments_in(kept)
    assert found.keys() == moments(1).keys()
    assert all(torch.equal(found[key], moments(1)[key]) for key in found)
    assert moments_in(own) == {}
