"""What is not a plain pair of a linear layer: missing layers, embeddings, biases, DoRA, adapters on disk."""

from dataclasses import replace

import pytest
import torch

from fedlora.adapters import Adapter, load_adapter, open_adapter, save_adapter
from fedlora.aggregation import FedExLora, FedIT, Flora, LoraFair, aggregate
from fedlora.common.errors import AdapterError

WEIGHTS = {"a": 1.0, "b": 2.0, "c": 5.0}


@pytest.fixture
def three(make_updates):
    """Return the layers of three clients, by the clients' names."""
    return {
        name: update.layers["q_proj"] for name, update in zip("abc", make_updates(num_clients=3).values(), strict=True)
    }


def adapters(layers):
    return {name: Adapter({"q_proj": layer}) for name, layer in layers.items()}


def test_a_layer_that_only_some_clients_have_is_theirs_alone(three, any_method):
    updates = {
        "a": Adapter({"q_proj": three["a"]}),
        "b": Adapter({"q_proj": three["b"], "v_proj": three["b"]}),
        "c": Adapter({"v_proj": three["c"]}),
    }
    result = aggregate(updates, weights=WEIGHTS, method=any_method)
    assert set(result.adapter.layers) == set(result.report.layers) == {"q_proj", "v_proj"}
    for path, owners in (("q_proj", "ab"), ("v_proj", "bc")):
        alone = aggregate(
            {client: Adapter({path: three[client]}) for client in owners},
            weights={client: WEIGHTS[client] for client in owners},
            method=any_method,
        )
        torch.testing.assert_close(result.adapter.layers[path].A, alone.adapter.layers[path].A, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(result.adapter.layers[path].B, alone.adapter.layers[path].B, rtol=1e-9, atol=1e-9)


def test_a_layer_of_the_reference_that_no_client_has_stays_as_it_was(three, any_method):
    reference = Adapter({"q_proj": three["a"], "v_proj": three["b"]})
    result = aggregate({"c": Adapter({"q_proj": three["c"]})}, method=any_method, reference=reference)
    assert result.adapter.layers["v_proj"] is three["b"]
    assert list(result.adapter.layers) == ["q_proj", "v_proj"]
    assert set(result.report.layers) == {"q_proj"}


def test_embeddings_are_combined_as_pairs_and_stay_embeddings(three, any_method):
    linear = aggregate(adapters(three), weights=WEIGHTS, method=any_method)
    embeddings = {name: replace(layer, is_embedding=True) for name, layer in three.items()}
    found = aggregate(adapters(embeddings), weights=WEIGHTS, method=any_method)
    for pairs, expected in (
        (found.adapter.layers, linear.adapter.layers),
        (found.adapter.base_change, linear.adapter.base_change),
    ):
        assert set(pairs) == set(expected)
        for path, pair in pairs.items():
            assert pair.is_embedding
            assert torch.equal(pair.A, expected[path].A)
            assert torch.equal(pair.B, expected[path].B)
    assert found.report == linear.report


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_biases_are_averaged_as_they_act(three, any_method, dtype):
    scalings = {"a": 2.0, "b": 0.3, "c": 1.1}
    layers = {
        name: replace(layer, scaling=scalings[name], bias=torch.randn(12, dtype=torch.float64).to(dtype))
        for name, layer in three.items()
    }
    found = aggregate(adapters(layers), weights=WEIGHTS, method=any_method).adapter.layers["q_proj"]
    acting = sum(WEIGHTS[name] / 8 * layer.scaling * layer.bias.double() for name, layer in layers.items())
    torch.testing.assert_close(found.scaling * found.bias.double(), acting, rtol=1e-6, atol=1e-6)


def test_a_bias_that_only_some_clients_train_is_the_mean_of_theirs(three):
    layers = {**three, "a": replace(three["a"], bias=torch.ones(12)), "b": replace(three["b"], bias=torch.zeros(12))}
    found = aggregate(adapters(layers), weights=WEIGHTS).adapter.layers["q_proj"]
    torch.testing.assert_close(found.bias, torch.full((12,), 1 / 3))
    assert aggregate(adapters(three)).adapter.layers["q_proj"].bias is None


def with_magnitudes(three):
    return {
        name: replace(layer, scaling=index + 1.0, magnitude=torch.full((12,), index + 1.0))
        for index, (name, layer) in enumerate(three.items())
    }


def test_doras_magnitudes_are_averaged_unscaled_and_the_report_says_that_it_leaves_them_out(three, any_method):
    if any_method.changes_base:
        pytest.skip("refused, see below")
    result = aggregate(adapters(with_magnitudes(three)), weights=WEIGHTS, method=any_method)
    torch.testing.assert_close(result.adapter.layers["q_proj"].magnitude, torch.full((12,), (1 + 4 + 15) / 8))
    assert result.report.layers["q_proj"].note == "without DoRA's magnitudes"


@pytest.mark.parametrize("method", [Flora(), FedExLora()], ids=lambda method: method.name)
def test_doras_magnitudes_are_refused_where_the_base_weights_would_change(three, method):
    with pytest.raises(AdapterError, match=f"q_proj: a trains DoRA, whose magnitudes {method.name} cannot move"):
        aggregate(adapters(with_magnitudes(three)), method=method)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_on_disk_give_the_same_bits_as_loaded_ones(tmp_path, make_updates, any_method, dtype):
    folders = {}
    for name, update in make_updates(ranks=[3, 1, 2], dtype=dtype).items():
        layer = update.layers["q_proj"]
        rest = replace(layer, scaling=6 / layer.rank, bias=torch.ones(12, dtype=dtype))
        config = {"peft_type": "LORA", "r": layer.rank, "lora_alpha": 6}
        folders[name] = tmp_path / name
        other = replace(rest, A=-layer.A, B=2 * layer.B, bias=None)
        head = torch.full((2,), layer.rank, dtype=dtype)
        save_adapter(Adapter({"q_proj": rest, "v_proj": other}, {"head": head}, config), folders[name])
    weights = dict(zip(folders, (1, 2, 3), strict=True))
    expected = aggregate({name: load_adapter(folders[name]) for name in folders}, weights=weights, method=any_method)
    found = aggregate({name: open_adapter(folders[name]) for name in folders}, weights=weights, method=any_method)
    assert found.report == expected.report
    assert found.adapter.config == expected.adapter.config
    for pairs, others in (
        (found.adapter.layers, expected.adapter.layers),
        (found.adapter.base_change, expected.adapter.base_change),
    ):
        assert set(pairs) == set(others)
        for path, pair in pairs.items():
            assert torch.equal(pair.A, others[path].A)
            assert torch.equal(pair.B, others[path].B)
    assert torch.equal(found.adapter.layers["q_proj"].bias, expected.adapter.layers["q_proj"].bias)
    assert torch.equal(found.adapter.dense["head"], expected.adapter.dense["head"])
    torch.testing.assert_close(found.adapter.dense["head"], torch.full((2,), 11 / 6))


def test_heads_on_disk_are_averaged_too(tmp_path, three):
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 6}
    for index, (name, layer) in enumerate(three.items()):
        save_adapter(Adapter({"q_proj": layer}, {"head": torch.full((2,), float(index))}, config), tmp_path / name)
    result = aggregate({name: open_adapter(tmp_path / name) for name in three}, weights=WEIGHTS, method=LoraFair())
    torch.testing.assert_close(result.adapter.dense["head"], torch.full((2,), (2 + 2 * 5) / 8))


def test_a_value_on_disk_that_is_not_finite_is_refused_with_its_client(tmp_path, three):
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 6}
    spoilt = {**three, "b": replace(three["b"], A=three["b"].A * float("nan"))}
    for name, layer in spoilt.items():
        save_adapter(Adapter({"q_proj": layer}, {}, config), tmp_path / name)
    with pytest.raises(AdapterError, match="q_proj: values that are not finite, from b;"):
        aggregate({name: open_adapter(tmp_path / name) for name in three}, method=FedIT())
