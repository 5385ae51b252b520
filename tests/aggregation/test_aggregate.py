"""What `aggregate` promises of weights, precision, configuration, dense tensors and refusals."""

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


def with_layer(adapter, **changes):
    return replace(adapter, layers={"q_proj": replace(adapter.layers["q_proj"], **changes)})


def tensors_of(result):
    layer = result.adapter.layers["q_proj"]
    changes = [tensor for change in result.adapter.base_change.values() for tensor in (change.A, change.B)]
    return [layer.A, layer.B, *changes, *result.adapter.dense.values()]


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


def test_a_client_of_next_to_no_weight_spoils_nothing(make_updates, any_method, whole_change):
    a, b = make_updates(num_clients=2, dtype=torch.float32).values()
    result = aggregate({"a": a, "b": b}, weights={"a": 1.0, "b": 1e-300}, method=any_method)
    torch.testing.assert_close(whole_change(result), whole_change(a), rtol=1e-4, atol=1e-4)


def test_dense_tensors_are_averaged_over_the_clients_that_have_them(make_updates, any_method):
    a, b, c = make_updates(num_clients=3).values()
    updates = {
        "a": replace(a, dense={"head": torch.tensor([1.0, 2.0]), "norm": torch.tensor([8.0])}),
        "b": replace(b, dense={"head": torch.tensor([5.0, 4.0])}),
        "c": replace(c, dense={"head": torch.tensor([2.0, 2.0]), "norm": torch.tensor([4.0]), "bias": torch.ones(())}),
    }
    dense = aggregate(updates, weights={"a": 1, "b": 1, "c": 2}, method=any_method).adapter.dense
    assert {path: tensor.dtype for path, tensor in dense.items()} == dict.fromkeys(
        ("head", "norm", "bias"), torch.float32
    )
    torch.testing.assert_close(dense["head"], torch.tensor([2.5, 2.5]))
    torch.testing.assert_close(dense["norm"], torch.tensor([16 / 3]))
    assert torch.equal(dense["bias"], torch.ones(()))


def test_a_dense_tensor_that_no_client_has_stays_as_it_was(make_updates):
    a, b = make_updates(num_clients=2).values()
    reference = replace(a, dense={"head": torch.tensor([7.0])})
    assert torch.equal(aggregate({"a": a, "b": b}, reference=reference).adapter.dense["head"], torch.tensor([7.0]))


def test_an_adapter_without_layers_is_its_dense_mean(any_method):
    updates = {name: Adapter({}, {"head": torch.full((2,), value)}) for name, value in (("a", 1.0), ("b", 3.0))}
    result = aggregate(updates, method=any_method)
    assert torch.equal(result.adapter.dense["head"], torch.full((2,), 2.0))
    assert result.report.error_before == result.report.error_after == result.report.moved_B == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_updates_are_averaged_in_at_least_float32(make_updates, dense_mean, dtype):
    updates = make_updates(num_clients=100, spread=0.1, dtype=dtype)
    updates = {name: replace(update, dense={"head": update.layers["q_proj"].B}) for name, update in updates.items()}
    _, mean_A, mean_B = dense_mean(updates)
    result = aggregate(updates, method=FedIT())
    found = [result.adapter.layers["q_proj"].A, result.adapter.layers["q_proj"].B, result.adapter.dense["head"]]
    for one, other in zip(found, (mean_A, mean_B, mean_B), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_result_of_one_dtype_is_that_of_the_same_values_in_float64(make_updates, any_method, whole_change, dtype):
    updates = make_updates(dtype=dtype)
    wide = {
        name: with_layer(update, A=update.layers["q_proj"].A.double(), B=update.layers["q_proj"].B.double())
        for name, update in updates.items()
    }
    found, expected = aggregate(updates, method=any_method), aggregate(wide, method=any_method)
    assert {tensor.dtype for tensor in tensors_of(found)} == {torch.float32}
    assert {tensor.dtype for tensor in tensors_of(expected)} == {torch.float64}
    torch.testing.assert_close(whole_change(found), whole_change(expected), rtol=1e-5, atol=1e-4)


def test_configuration_and_scaling_are_the_first_clients_and_no_memory_is_shared(make_updates, any_method):
    updates = {name: replace(update, config={"of": name}) for name, update in make_updates(num_clients=1).items()}
    (update,) = updates.values()
    before = [update.layers["q_proj"].A.clone(), update.layers["q_proj"].B.clone()]
    result = aggregate({"z": replace(update, config={"of": "z"}), **updates}, method=any_method)
    assert result.adapter.config["of"] == "client-00"
    assert result.adapter.layers["q_proj"].scaling == 2.0
    for tensor in tensors_of(aggregate(updates, method=any_method)):
        tensor.zero_()
    assert torch.equal(update.layers["q_proj"].A, before[0])
    assert torch.equal(update.layers["q_proj"].B, before[1])


def test_tensors_that_ask_for_gradients_give_results_that_do_not(make_updates, any_method):
    (update,) = make_updates(num_clients=1).values()
    layer = update.layers["q_proj"]
    trained = with_layer(update, A=torch.nn.Parameter(layer.A), B=torch.nn.Parameter(layer.B))
    result = aggregate({"a": trained, "b": update}, method=any_method)
    assert not any(tensor.requires_grad for tensor in tensors_of(result))


def test_methods_are_found_by_the_name_they_report(make_updates):
    for name, method in METHODS.items():
        assert aggregate(make_updates(), method=method()).report.method == name
    assert METHODS["lora_fair"](ridge=0.5) == LoraFair(ridge=0.5)
    with pytest.raises(ValueError, match="frozen"):
        LoraFair().ridge = 1.0


def test_layers_of_different_base_models_are_refused_with_both_shapes_and_the_client():
    updates = {
        name: Adapter({"q_proj": LoraLayer(torch.zeros(8, width), torch.zeros(768, 8), 1.0)})
        for name, width in (("north", 768), ("south", 512))
    }
    with pytest.raises(AdapterError) as caught:
        aggregate(updates)
    assert str(caught.value).startswith("q_proj: A (8, 512), B (768, 8) of south against A (8, 768), B (768, 8)")


def test_an_embedding_among_linear_layers_is_refused(make_updates):
    a, b = make_updates(num_clients=2).values()
    with pytest.raises(AdapterError, match=r"q_proj: .* of b against .* one base model"):
        aggregate({"a": a, "b": with_layer(b, is_embedding=True)})


def test_an_update_of_a_larger_rank_than_the_rounds_start_is_refused(make_updates):
    (start,) = make_updates(num_clients=1, rank=2).values()
    with pytest.raises(AdapterError, match=r"q_proj: A \(3, 9\).* of client-00 .* at most the rank of the round's"):
        aggregate(make_updates(num_clients=1), reference=start)


def test_differing_dense_shapes_are_refused(make_updates):
    a, b = make_updates(num_clients=2).values()
    updates = {"a": replace(a, dense={"head": torch.zeros(3, 2)}), "b": replace(b, dense={"head": torch.zeros(2)})}
    with pytest.raises(AdapterError, match=r"head: \(3, 2\) against \(2,\) \(a against b\)"):
        aggregate(updates)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused_with_their_client(make_updates, any_method, value):
    a, b = make_updates(num_clients=2).values()
    for changes in ({"A": b.layers["q_proj"].A * value}, {"B": b.layers["q_proj"].B * value}):
        with pytest.raises(AdapterError, match="q_proj: values that are not finite, from b;"):
            aggregate({"a": a, "b": with_layer(b, **changes)}, method=any_method)
    with pytest.raises(AdapterError, match="head: values that are not finite, from b;"):
        aggregate({"a": a, "b": replace(b, dense={"head": torch.tensor([value])})}, method=any_method)


@pytest.mark.parametrize("size", [1e30, 1e200])
def test_huge_values_give_a_finite_result_or_a_refusal_that_says_so(make_updates, any_method, size):
    a, b = make_updates(num_clients=2, dtype=torch.float32 if size < 1e38 else torch.float64).values()
    layer = b.layers["q_proj"]
    updates = {"a": a, "b": with_layer(b, A=layer.A * size, B=layer.B * size)}
    try:
        result = aggregate(updates, method=any_method)
    except AdapterError as error:
        assert str(error).startswith("q_proj: values so large that their products overflow")  # noqa: PT017
    else:
        assert all(tensor.isfinite().all() for tensor in tensors_of(result))
        assert math.isfinite(result.report.error_before)


def test_products_that_overflow_are_refused(make_updates):
    a, b = make_updates(num_clients=2).values()
    layer = b.layers["q_proj"]
    updates = {"a": a, "b": with_layer(b, A=layer.A * 1e200, B=layer.B * 1e200)}
    with pytest.raises(AdapterError, match=r"q_proj: values so large that their products overflow torch\.float64"):
        aggregate(updates)


def test_finite_values_whose_mean_overflows_are_refused_as_too_large():
    ends = {
        name: Adapter({"q_proj": LoraLayer(torch.full((1, 2), value), torch.ones(2, 1), 1.0)}, {"head": torch.ones(1)})
        for name, value in (("a", 3e38), ("b", -3e38))
    }
    with pytest.raises(AdapterError, match="q_proj: values so large"):
        aggregate(ends)
    heads = {name: Adapter({}, {"head": end.layers["q_proj"].A}) for name, end in ends.items()}
    with pytest.raises(AdapterError, match="head: values so large"):
        aggregate(heads)


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
