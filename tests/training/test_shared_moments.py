"""A client's side of shared moments: as its optimiser has them, at its own rank, and where there was no gradient."""

import torch
from torch import Tensor, nn

from fedlora.training.shared_moments import SharedMoments

A, HEAD = "base_model.model.q.lora_A.weight", "base_model.model.head.weight"
WHOLE = {"exp_avg": True, "exp_avg_sq": True, "step": False}
SCALAR = {"exp_avg": True, "exp_avg_sq": False, "step": False}
# A client of rank 2 in a model of rank 3.
TRAINED = {A: torch.zeros(2, 4), HEAD: torch.zeros(5)}
PARAMETERS = {A: nn.Parameter(torch.zeros(3, 4)), HEAD: nn.Parameter(torch.zeros(5))}


def given(form: dict[str, bool]) -> dict[str, Tensor]:
    return {
        f"{key}/{name}": torch.full(tensor.shape if is_whole else (), 0.5, dtype=torch.float32)
        for key, tensor in TRAINED.items()
        for name, is_whole in form.items()
    }


def test_an_optimiser_gets_them_in_the_shape_of_its_parameters() -> None:
    found = SharedMoments(TRAINED, WHOLE, given(WHOLE)).expanded(PARAMETERS)
    assert {key: tuple(tensor.shape) for key, tensor in found.items() if key.startswith(A)} == {
        f"{A}/exp_avg": (3, 4), f"{A}/exp_avg_sq": (3, 4), f"{A}/step": (),
    }  # fmt: skip
    assert found[f"{A}/exp_avg"][:2].eq(0.5).all()
    assert not found[f"{A}/exp_avg"][2].any()
    numbers = SharedMoments(TRAINED, SCALAR, given(SCALAR)).expanded(PARAMETERS)
    assert numbers[f"{HEAD}/exp_avg_sq"].shape == (5,)
    assert numbers[f"{HEAD}/exp_avg_sq"].eq(0.5).all()


def test_moments_rounded_on_the_wire_go_on_in_float32() -> None:
    rounded = {key: tensor.bfloat16() if tensor.dim() else tensor for key, tensor in given(WHOLE).items()}
    shared = SharedMoments(TRAINED, WHOLE, rounded)
    for found in (shared.expanded(PARAMETERS), shared.condensed({})):
        assert {tensor.dtype for tensor in found.values()} == {torch.float32}


def test_what_got_no_gradient_has_the_moments_that_were_given_and_zero_at_first() -> None:
    of_A = {f"{A}/{name}": torch.full((3, 4) if is_whole else (), 2.0) for name, is_whole in WHOLE.items()}
    later = SharedMoments(TRAINED, WHOLE, given(WHOLE)).condensed(of_A)
    assert later[f"{A}/exp_avg"].shape == (2, 4)
    assert later[f"{A}/step"] == 2.0
    assert later[f"{HEAD}/exp_avg_sq"].eq(0.5).all()
    first = SharedMoments(TRAINED, SCALAR, {}).condensed(of_A)
    assert first[f"{A}/exp_avg_sq"] == 2.0
    assert [first[f"{HEAD}/{name}"].tolist() for name in SCALAR] == [[0.0] * 5, 0.0, 0.0]


def test_one_number_is_the_mean_over_the_clients_own_rank() -> None:
    second = torch.arange(12.0).view(3, 4)
    moments = {f"{A}/exp_avg": second, f"{A}/exp_avg_sq": second, f"{A}/step": torch.tensor(3.0)}
    found = SharedMoments({A: TRAINED[A]}, SCALAR, {}).condensed(moments)
    assert found[f"{A}/exp_avg_sq"] == second[:2].mean()
