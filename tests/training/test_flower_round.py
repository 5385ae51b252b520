"""What a round sends, put into PEFT models of other people."""

import copy
from collections.abc import Callable, Mapping

import pytest
import torch
from flwr.app import ArrayRecord
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import Tensor, nn

from fedlora.common.errors import AdapterError, ModelError
from fedlora.training.flower_round import load_round


class Words(nn.Module):
    """An embedding, two linear layers and a head with running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(9, 6)
        self.first = nn.Linear(6, 5)
        self.second = nn.Linear(5, 4)
        self.head = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2))

    def forward(self, words: Tensor) -> Tensor:
        output: Tensor = self.head(self.second(self.first(self.words(words)).tanh()))
        return output


def make(seed: int = 0, **settings: object) -> PeftModel:
    config = LoraConfig(
        **{"r": 2, "target_modules": ["words", "first"], "modules_to_save": ["head"], **settings}  # type: ignore[arg-type]
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        base = Words()
        torch.manual_seed(seed)
        model = get_peft_model(base, config)  # type: ignore[arg-type]
        assert isinstance(model, PeftModel)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=0.3)
            assert name
    return model


def tensors(model: PeftModel) -> dict[str, Tensor]:
    found = get_peft_model_state_dict(model, state_dict=model.state_dict(), save_embedding_layers=False)
    return {key: tensor.clone() for key, tensor in found.items()}


def change_of(seed: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    shapes = {"first.A": (3, 6), "first.B": (5, 3), "words.embedding_A": (2, 9), "words.embedding_B": (6, 2)}
    return {f"base_change.{part}": torch.randn(shape, generator=random) for part, shape in shapes.items()}


def weights(model: PeftModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if "base_layer" in name}


def outputs(model: PeftModel) -> Tensor:
    return model.eval()(torch.arange(9)).detach()


def trained(model: PeftModel) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("settings", [{}, {"use_dora": True, "target_modules": ["first"]}, {"lora_bias": True,
    "target_modules": ["first", "second"]}, {"bias": "lora_only"}, {"use_rslora": True}])  # fmt: skip
def test_a_model_is_what_was_sent_whatever_peft_trains(settings: Mapping[str, object]) -> None:
    sent, model = make(1, **settings), make(2, **settings)
    assert not torch.equal(outputs(model), outputs(sent))
    load_round(model, ArrayRecord(tensors(sent)))
    assert torch.equal(outputs(model), outputs(sent))
    assert trained(model) == trained(sent)


@pytest.mark.parametrize("trains", ["A", "B", "A,B"])
def test_only_the_factors_of_the_round_and_the_heads_are_trained(trains: str) -> None:
    model = make()
    for before in ("A", "B", "A,B"):
        load_round(model, tensors(model), trains=before)
        load_round(model, tensors(model), trains=trains)
        found = {name.split("default")[0] for name in trained(model) if "lora_" in name}
        factors = trains.split(",")
        assert found == {
            name
            for factor in factors
            for name in (
                f"base_model.model.first.lora_{factor}.",
                f"base_model.model.words.lora_embedding_{factor}.",
            )
        }
        assert any("head" in name for name in trained(model))


def test_an_unknown_factor_is_a_programmers_mistake() -> None:
    with pytest.raises(ValueError, match="trains is 'C'"):
        load_round(make(), tensors(make()), trains="C")


def test_a_change_of_the_base_weights_is_added_as_dense_formulas_say() -> None:
    model, change = make(), change_of(0)
    before = weights(model)
    load_round(model, {**tensors(model), **change})
    first, words = "base_model.model.first.base_layer.weight", "base_model.model.words.base_layer.weight"
    torch.testing.assert_close(
        weights(model)[first] - before[first], change["base_change.first.B"] @ change["base_change.first.A"]
    )
    embedding = change["base_change.words.embedding_B"] @ change["base_change.words.embedding_A"]
    torch.testing.assert_close(weights(model)[words] - before[words], embedding.T)


def test_a_client_that_sat_out_rounds_has_the_same_base_weights_bit_for_bit() -> None:
    always, seldom = make(), make()
    sent = tensors(make(3))
    for seed in range(3):
        load_round(always, {**sent, **change_of(seed)})
    load_round(seldom, {**sent, **change_of(0)})
    copied = copy.deepcopy(seldom)
    for model in (seldom, copied):
        load_round(model, {**sent, **change_of(2)})
        assert all(torch.equal(weights(model)[name], tensor) for name, tensor in weights(always).items())
    load_round(always, sent)
    assert all(torch.equal(weights(make())[name], tensor) for name, tensor in weights(always).items())


def test_quantised_base_weights_are_refused_and_nothing_changes() -> None:
    model = make(target_modules=["first"])
    layer = model.get_base_model().first.base_layer
    layer.weight = nn.Parameter((layer.weight * 100).to(torch.int8), requires_grad=False)
    before = tensors(model)
    change = {key: tensor for key, tensor in change_of(0).items() if "first" in key}
    with pytest.raises(ModelError, match=r"base weight of first is quantised .* leaves the base weights alone"):
        load_round(model, {**tensors(make(4, target_modules=["first"])), **change})
    assert all(torch.equal(tensors(model)[key], tensor) for key, tensor in before.items())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda sent: sent.pop("base_model.model.head.1.bias"),
            "the round's arrays have no base_model.model.head.1.bias",
        ),
        (lambda sent: sent.update({"more": torch.ones(2)}), r"the model has no more \(1 keys differ\)"),
        (
            lambda sent: sent.update({"base_model.model.head.1.bias": torch.ones(1)}),
            r"head.1.bias has shape \(1,\); the model has \(2,\)",
        ),
        (lambda sent: sent.update({"base_change.second.A": torch.ones(2, 5)}), "second has no lora_B"),
        (
            lambda sent: sent.update(
                {"base_change.third.A": torch.ones(2, 5), "base_change.third.B": torch.ones(4, 2)}
            ),
            "third, which is no layer with LoRA",
        ),
    ],
)
def test_what_does_not_fit_the_model_is_refused_and_nothing_changes(
    spoil: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    model = make()
    before, base = tensors(model), weights(model)
    sent = tensors(make(1))
    spoil(sent)
    with pytest.raises(AdapterError, match=message):
        load_round(model, sent)
    assert all(torch.equal(tensors(model)[key], tensor) for key, tensor in before.items())
    assert all(torch.equal(weights(model)[key], tensor) for key, tensor in base.items())
