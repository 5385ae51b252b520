"""What holds under every method: one client, equal clients, order, exactness, singular and close updates."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlora.adapters import Adapter, LoraLayer
from fedlora.aggregation import METHODS, FedExLora, FedIT, FfaLora, FlexLora, Flora, RoLora, aggregate

few = settings(derandomize=True, database=None, deadline=None, max_examples=15)
AVERAGES = [FedIT(), FfaLora(), RoLora()]


def tensors_of(result):
    layer = result.adapter.layers["q_proj"]
    changes = [tensor for change in result.adapter.base_change.values() for tensor in (change.A, change.B)]
    return [layer.A, layer.B, *changes, *result.adapter.dense.values()]


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


@few
@given(st.integers(0, 1000), st.permutations(range(5)), st.sampled_from([torch.float32, torch.bfloat16]))
def test_the_order_of_clients_changes_no_bit(make_updates, seed, order, dtype):
    for ranks in ([3] * 5, [1, 3, 2, 3, 2]):
        updates = make_updates(seed, ranks=ranks, dtype=dtype)
        updates = {name: replace(update, dense={"head": torch.rand(3)}) for name, update in updates.items()}
        weights = {client: index + 0.3 for index, client in enumerate(updates)}
        shuffled = {client: updates[client] for client in (list(updates)[index] for index in order)}
        for make in METHODS.values():
            expected = aggregate(updates, weights=weights, method=make())
            found = aggregate(shuffled, weights=dict(reversed(weights.items())), method=make())
            assert all(map(torch.equal, tensors_of(found), tensors_of(expected)))
            assert found.report == expected.report


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_one_client_gives_that_client(make_updates, any_method, whole_change, dtype):
    updates = make_updates(num_clients=1, dtype=dtype)
    result = aggregate(updates, weights={"client-00": 7.0}, method=any_method)
    (layer,) = (adapter.layers["q_proj"] for adapter in updates.values())
    found = result.adapter.layers["q_proj"]
    if isinstance(any_method, FlexLora | Flora):
        precision = 1e-14 if dtype == torch.float64 else 1e-6
        assert relative(whole_change(result), layer.scaling * layer.B.double() @ layer.A.double()) < precision
    else:
        precision = 1e-15 if "cosine" in any_method.name else 0.0
        torch.testing.assert_close(found.A, layer.A.to(found.A.dtype), rtol=0, atol=0)
        torch.testing.assert_close(found.B, layer.B.to(found.B.dtype), rtol=precision, atol=precision)
        assert whole_change(result).equal(found.scaling * found.B.double() @ found.A.double())
        assert result.report.moved_A == 0
        assert result.report.moved_B <= precision
    assert result.report.error_before == 0
    assert result.report.error_after < 1e-6


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("num_clients", [2, 3, 7, 10])
def test_equal_clients_need_no_correction(make_updates, any_method, whole_change, num_clients, dtype):
    (common,) = make_updates(num_clients=1, dtype=dtype).values()
    result = aggregate({f"client-{index}": common for index in range(num_clients)}, method=any_method)
    found, expected = result.adapter.layers["q_proj"], common.layers["q_proj"]
    precision = 1e-14 if dtype == torch.float64 else 1e-6
    assert relative(whole_change(result), whole_change(common)) < precision
    assert result.report.error_before == 0
    if not isinstance(any_method, FlexLora | Flora):
        assert result.report.error_after < precision
        assert torch.equal(found.A, expected.A)
        torch.testing.assert_close(found.B, expected.B, rtol=1e-15, atol=1e-15)
        assert result.report.moved_A == 0
        assert result.report.moved_B < 1e-15


@pytest.mark.parametrize("method", AVERAGES, ids=lambda method: method.name)
def test_methods_that_average_return_the_weighted_means(make_updates, dense_mean, uneven_p, method):
    updates = make_updates()
    _, mean_A, mean_B = dense_mean(updates, uneven_p(updates))
    layer = aggregate(updates, weights=uneven_p(updates), method=method).adapter.layers["q_proj"]
    assert relative(layer.A, mean_A) < 1e-14
    assert relative(layer.B, mean_B) < 1e-14


def test_clients_that_share_a_factor_are_averaged_without_error(make_updates, any_method, whole_change):
    updates = make_updates()
    for shared in ("A", "B"):
        part = getattr(updates["client-00"].layers["q_proj"], shared)
        sharing = {
            name: Adapter({"q_proj": replace(update.layers["q_proj"], **{shared: part})})
            for name, update in updates.items()
        }
        report = aggregate(sharing, method=any_method).report
        assert report.error_before == 0
        # The cosine moves B along A, where nothing is to be gained, by as much as rounding tells it to.
        assert report.error_after < 1e-7
        mean = sum(whole_change(update) for update in sharing.values()) / len(sharing)
        assert relative(whole_change(aggregate(sharing, method=any_method)), mean) < 1e-7


def test_no_method_but_those_that_change_the_base_weights_does_so(make_updates, any_method):
    result = aggregate(make_updates(), method=any_method)
    assert bool(result.adapter.base_change) == any_method.changes_base == isinstance(any_method, Flora | FedExLora)


def repeat_first_row(A):
    return A[:1].expand_as(A).clone()


def zero_last_row(A):
    return torch.cat([A[:-1], torch.zeros_like(A[-1:])])


@pytest.mark.parametrize("factors", ["A", "B", "AB"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("change", [repeat_first_row, zero_last_row, torch.zeros_like])
def test_singular_means_give_a_finite_result_no_worse_than_theirs(make_updates, any_method, change, dtype, factors):
    updates = {}
    for name, update in make_updates(rank=4, dtype=dtype).items():
        layer = update.layers["q_proj"]
        A, B = change(layer.A) if "A" in factors else layer.A, change(layer.B.T).T if "B" in factors else layer.B
        updates[name] = Adapter({"q_proj": LoraLayer(A, B, 2.0)})
    result = aggregate(updates, method=any_method)
    assert all(tensor.isfinite().all() for tensor in tensors_of(result))
    assert all(tensor.norm() < 100 for tensor in tensors_of(result))
    # The unscaled cosine may lose: its objective does not see the size of the product.
    if any_method != METHODS["lora_fair_cosine"]():
        assert result.report.error_after <= result.report.error_before * (1 + 1e-6)


@pytest.mark.parametrize("ranks", [[8] * 10, [8, 4] * 5], ids=["one rank", "mixed ranks"])
@pytest.mark.parametrize("spread", [1e-2, 1e-3, 1e-4])
def test_float32_measures_close_clients_as_float64_does(make_updates, any_method, ranks, spread):
    updates = make_updates(ranks=ranks, out_features=96, in_features=128, spread=spread, dtype=torch.float32)
    wide = {
        name: Adapter({path: LoraLayer(pair.A.double(), pair.B.double(), 2.0) for path, pair in update.layers.items()})
        for name, update in updates.items()
    }
    found, expected = aggregate(updates, method=any_method).report, aggregate(wide, method=any_method).report
    assert found.error_before == pytest.approx(expected.error_before, rel=1e-5)
    # A method cannot do better than float32 holds its B and A; one that turns both leaves rounding in all of B A.
    rounding = 3e-6 if isinstance(any_method, FlexLora | Flora) else 6e-8
    assert found.error_after == pytest.approx(expected.error_after, rel=1e-5, abs=rounding)
