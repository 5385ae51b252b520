"""What `aggregate` promises whatever the method: weights, order, dense tensors, precision, refusals."""

import dataclasses
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlora.adapters import Adapter, LoraLayer
from fedlora.aggregation import METHODS, FedIT, LoraFair, aggregate
from fedlora.common.errors import AdapterError

few = settings(derandomize=True, database=None, deadline=None, max_examples=20)
methods = pytest.mark.parametrize("method", [FedIT(), LoraFair(), LoraFair(ridge=0)])


def with_layer(adapter, **changes):
    return replace(adapter, layers={"q_proj": replace(adapter.layers["q_proj"], **changes)})


def tensors_of(result):
    layer = result.adapter.layers["q_proj"]
    return [layer.A, layer.B, *result.adapter.dense.values()]


@few
@given(st.integers(0, 1000), st.permutations(range(5)), st.sampled_from([torch.float32, torch.bfloat16]))
def test_the_order_of_clients_changes_no_bit(make_updates, seed, order, dtype):
    updates = make_updates(seed, num_clients=5, dtype=dtype)
    updates = {name: replace(update, dense={"head": update.layers["q_proj"].A}) for name, update in updates.items()}
    weights = {client: index + 0.3 for index, client in enumerate(updates)}
    shuffled = {client: updates[client] for client in (list(updates)[index] for index in order)}
    for method in (FedIT(), LoraFair()):
        expected = aggregate(updates, weights=weights, method=method)
        found = aggregate(shuffled, weights=dict(reversed(weights.items())), method=method)
        assert all(map(torch.equal, tensors_of(found), tensors_of(expected)))
        assert found.report == expected.report


@few
@given(st.integers(0, 1000), st.sampled_from([1e-300, 1e-3, 3, 7e5, 1.9e307]))
def test_weights_on_another_scale_change_nothing(make_updates, seed, factor):
    updates = make_updates(seed, num_clients=3)
    weights = dict(zip(updates, (2, 5, 9), strict=True))
    expected = aggregate(updates, weights=weights)
    found = aggregate(updates, weights={client: factor * weight for client, weight in weights.items()})
    for one, other in zip(tensors_of(found), tensors_of(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_fedit_is_the_weighted_mean_of_each_factor(make_updates, dense_mean):
    updates = make_updates(num_clients=3)
    p = dict(zip(updates, (0.5, 0.3, 0.2), strict=True))
    _, mean_A, mean_B = dense_mean(updates, p)
    A, B = tensors_of(aggregate(updates, weights={client: 10 * weight for client, weight in p.items()}, method=FedIT()))
    torch.testing.assert_close(A, mean_A, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(B, mean_B, rtol=1e-14, atol=1e-14)


def test_no_weights_are_equal_weights(make_updates):
    updates = make_updates()
    expected = aggregate(updates, weights=dict.fromkeys(updates, 1))
    assert all(map(torch.equal, tensors_of(aggregate(updates)), tensors_of(expected)))


@methods
def test_dense_tensors_are_averaged_over_the_clients_that_have_them(make_updates, method):
    a, b, c = make_updates(num_clients=3).values()
    updates = {
        "a": replace(a, dense={"head": torch.tensor([1.0, 2.0]), "norm": torch.tensor([8.0])}),
        "b": replace(b, dense={"head": torch.tensor([5.0, 4.0])}),
        "c": replace(c, dense={"head": torch.tensor([2.0, 2.0]), "norm": torch.tensor([4.0]), "bias": torch.ones(())}),
    }
    dense = aggregate(updates, weights={"a": 1, "b": 1, "c": 2}, method=method).adapter.dense
    assert {path: tensor.dtype for path, tensor in dense.items()} == dict.fromkeys(
        ("head", "norm", "bias"), torch.float32
    )
    torch.testing.assert_close(dense["head"], torch.tensor([2.5, 2.5]))
    torch.testing.assert_close(dense["norm"], torch.tensor([16 / 3]))
    assert torch.equal(dense["bias"], torch.ones(()))


@methods
def test_an_adapter_without_layers_is_its_dense_mean(method):
    updates = {name: Adapter({}, {"head": torch.full((2,), value)}) for name, value in (("a", 1.0), ("b", 3.0))}
    result = aggregate(updates, method=method)
    assert torch.equal(result.adapter.dense["head"], torch.full((2,), 2.0))
    assert result.report.error_before == result.report.error_after == result.report.correction == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@methods
def test_half_precision_updates_are_averaged_in_at_least_float32(make_updates, dense_mean, dtype, method):
    updates = make_updates(num_clients=100, spread=0.1, dtype=dtype)
    updates = {name: replace(update, dense={"head": update.layers["q_proj"].B}) for name, update in updates.items()}
    _, mean_A, mean_B = dense_mean(updates)
    result = aggregate(updates, method=method)
    found = [result.adapter.layers["q_proj"].A, result.adapter.dense["head"]]
    assert {tensor.dtype for tensor in tensors_of(result)} == {torch.float32}
    for one, other in zip(found, (mean_A, mean_B), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_result_of_one_dtype_is_that_of_the_same_values_in_float64(make_updates, dtype):
    updates = make_updates(dtype=dtype)
    wide = {
        name: with_layer(update, A=update.layers["q_proj"].A.double(), B=update.layers["q_proj"].B.double())
        for name, update in updates.items()
    }
    for one, other in zip(tensors_of(aggregate(updates)), tensors_of(aggregate(wide)), strict=True):
        assert (one.dtype, other.dtype) == (torch.float32, torch.float64)
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)


@methods
def test_the_result_takes_configuration_and_scaling_from_the_first_client_and_shares_no_memory(make_updates, method):
    updates = {name: replace(update, config={"of": name}) for name, update in make_updates(num_clients=1).items()}
    (update,) = updates.values()
    before = update.layers["q_proj"].A.clone()
    result = aggregate({"z": replace(update, config={"of": "z"}), **updates}, method=method)
    assert result.adapter.config == {"of": "client-00"}
    assert result.adapter.layers["q_proj"].scaling == 2.0
    for tensor in tensors_of(aggregate(updates, method=method)):
        tensor.zero_()
    assert torch.equal(update.layers["q_proj"].A, before)


def test_tensors_that_ask_for_gradients_give_results_that_do_not(make_updates):
    (update,) = make_updates(num_clients=1).values()
    layer = update.layers["q_proj"]
    trained = with_layer(update, A=torch.nn.Parameter(layer.A), B=torch.nn.Parameter(layer.B))
    assert not any(tensor.requires_grad for tensor in tensors_of(aggregate({"a": trained, "b": update})))


def test_methods_are_found_by_the_name_they_report(make_updates):
    for name, method in METHODS.items():
        assert aggregate(make_updates(), method=method()).report.method == name
    assert METHODS["lora_fair"](ridge=0.5) == LoraFair(ridge=0.5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        LoraFair().ridge = 1.0


def test_differing_ranks_are_refused_with_the_layer_both_shapes_and_both_clients():
    updates = {
        name: Adapter({"q_proj": LoraLayer(torch.zeros(rank, 768), torch.zeros(768, rank), 1.0)})
        for name, rank in (("north", 8), ("south", 4))
    }
    with pytest.raises(AdapterError) as caught:
        aggregate(updates)
    assert str(caught.value).startswith(
        "q_proj: A (8, 768), B (768, 8) against A (4, 768), B (768, 4) (north against south)"
    )


def test_a_differing_scaling_is_refused(make_updates):
    a, b = make_updates(num_clients=2).values()
    with pytest.raises(AdapterError, match=r"q_proj: scaling 2\.0 against 1\.0 \(a against b\)"):
        aggregate({"a": a, "b": with_layer(b, scaling=1.0)})


def test_differing_layers_are_refused(make_updates):
    a, b = make_updates(num_clients=2).values()
    more = replace(b, layers={**b.layers, "v_proj": b.layers["q_proj"]})
    with pytest.raises(AdapterError, match="v_proj: a layer of b that a does not have"):
        aggregate({"a": a, "b": more})
    with pytest.raises(AdapterError, match="v_proj: a layer of a that b does not have"):
        aggregate({"a": more, "b": a})


def test_differing_dense_shapes_are_refused(make_updates):
    a, b = make_updates(num_clients=2).values()
    updates = {"a": replace(a, dense={"head": torch.zeros(3, 2)}), "b": replace(b, dense={"head": torch.zeros(2)})}
    with pytest.raises(AdapterError, match=r"head: \(3, 2\) against \(2,\) \(a against b\)"):
        aggregate(updates)


@methods
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused_with_their_client(make_updates, method, value):
    a, b = make_updates(num_clients=2).values()
    for changes in ({"A": b.layers["q_proj"].A * value}, {"B": b.layers["q_proj"].B * value}):
        with pytest.raises(AdapterError, match="q_proj: values that are not finite, from b;"):
            aggregate({"a": a, "b": with_layer(b, **changes)}, method=method)
    with pytest.raises(AdapterError, match="head: values that are not finite, from b;"):
        aggregate({"a": a, "b": replace(b, dense={"head": torch.tensor([value])})}, method=method)


@methods
def test_values_whose_products_overflow_are_refused(make_updates, method):
    a, b = make_updates(num_clients=2, dtype=torch.float32).values()
    layer = b.layers["q_proj"]
    with pytest.raises(AdapterError, match=r"q_proj: values so large that their products overflow torch\.float32"):
        aggregate({"a": a, "b": with_layer(b, A=layer.A * 1e30, B=layer.B * 1e30)}, method=method)


def test_no_update_is_a_programmers_error():
    with pytest.raises(ValueError, match="no updates"):
        aggregate({})


@pytest.mark.parametrize("weight", [0, -1.0, math.nan, math.inf])
def test_a_weight_that_is_not_finite_and_positive_is_a_programmers_error(make_updates, weight):
    updates = make_updates(num_clients=2)
    with pytest.raises(ValueError, match="the weight of client-01 is"):
        aggregate(updates, weights={"client-00": 1.0, "client-01": weight})


@pytest.mark.parametrize("weights", [{}, {"client-00": 1.0}, {"client-00": 1.0, "client-01": 1.0, "else": 1.0}])
def test_weights_of_other_clients_are_a_programmers_error(make_updates, weights):
    with pytest.raises(ValueError, match="expected one for each of"):
        aggregate(make_updates(num_clients=2), weights=weights)
