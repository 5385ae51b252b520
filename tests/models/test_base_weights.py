"""A change of the base weights: what it does to the model, for whom, and how it is taken away again."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedlora.adapters import Adapter, LoraLayer, with_base_change_inside
from fedlora.common.errors import AdapterError, ModelError
from fedlora.models.base_weights import BaseWeights
from fedlora.training.peft_bridge import ResidentModel

INPUTS = torch.tensor([[0, 3, 5], [2, 1, 4]])


class Small(nn.Module):
    """An embedding, a linear layer and one of GPT-2's kind, whose weight lies on its side."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 6)
        self.query = nn.Linear(6, 5)
        self.mixed = Conv1D(4, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        mixed: Tensor = self.mixed(torch.tanh(self.query(self.words(tokens))))
        return mixed


@pytest.fixture
def model() -> PeftModel:
    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_alpha=6, target_modules=["words", "query"])
    return get_peft_model(Small(), config)  # type: ignore[arg-type, return-value]


def change(out_features: int, in_features: int, *, seed: int, is_embedding: bool = False) -> LoraLayer:
    generator = torch.Generator().manual_seed(seed)
    A, B = torch.randn(3, in_features, generator=generator), torch.randn(out_features, 3, generator=generator)
    return LoraLayer(A, B, 1.0, is_embedding=is_embedding)


def weights(model: PeftModel) -> dict[str, Tensor]:
    base = model.get_base_model()
    return {path: base.get_submodule(path).base_layer.weight.detach().clone() for path in ("words", "query")}


def test_a_change_is_added_to_linear_layers_and_transposed_to_embeddings(model: PeftModel) -> None:
    before = weights(model)
    changes = {"query": change(5, 6, seed=1), "words": change(6, 7, seed=2, is_embedding=True)}
    BaseWeights(model).change(changes)
    after = weights(model)
    torch.testing.assert_close(after["query"], before["query"] + changes["query"].B @ changes["query"].A)
    torch.testing.assert_close(after["words"], before["words"] + (changes["words"].B @ changes["words"].A).T)


def test_a_client_that_sat_out_rounds_has_the_same_weights_as_one_that_did_not(model: PeftModel) -> None:
    before = weights(model)
    base_weights = BaseWeights(model)
    last = {"query": change(5, 6, seed=3)}
    base_weights.change(last)
    of_the_returned = weights(model)

    base_weights.change({})
    assert all(torch.equal(weights(model)[path], before[path]) for path in before)
    for seed in range(20):
        base_weights.change({"query": change(5, 6, seed=seed), "words": change(6, 7, seed=seed, is_embedding=True)})
    base_weights.change(last)
    assert all(torch.equal(weights(model)[path], of_the_returned[path]) for path in before)


def test_transposed_linear_layers_are_changed_along_their_own_axes() -> None:
    torch.manual_seed(0)
    small = Small()
    before = small.mixed.weight.detach().clone()
    model = get_peft_model(small, LoraConfig(r=2, target_modules=["mixed"], fan_in_fan_out=True))  # type: ignore[arg-type]
    added = change(4, 5, seed=1)
    BaseWeights(model).change({"mixed": added})  # type: ignore[arg-type]
    torch.testing.assert_close(small.mixed.base_layer.weight.detach(), before + (added.B @ added.A).T)


@pytest.mark.parametrize(
    ("path", "shape", "expected"),
    [
        ("mixed", (4, 5), "no layer with LoRA"),
        ("elsewhere", (4, 5), "no layer with LoRA"),
        ("query", (6, 5), r"\(6, 5\)"),
    ],
)
def test_a_change_that_does_not_fit_leaves_every_weight_as_it_was(
    model: PeftModel, path: str, shape: tuple[int, int], expected: str
) -> None:
    before = weights(model)
    with pytest.raises(AdapterError, match=expected):
        BaseWeights(model).change({"words": change(6, 7, seed=2, is_embedding=True), path: change(*shape, seed=1)})
    assert all(torch.equal(weights(model)[name], before[name]) for name in before)


def test_quantised_weights_cannot_be_changed_and_the_reason_is_said(model: PeftModel) -> None:
    layer = model.get_base_model().query.base_layer
    layer.weight = nn.Parameter(torch.zeros(5, 6, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ModelError, match=r"quantised \(torch.int8\).*choose a method that leaves the base weights"):
        BaseWeights(model).change({"query": change(5, 6, seed=1)})


def test_a_loaded_change_acts_as_the_same_change_written_as_further_rank(model: PeftModel) -> None:
    resident = ResidentModel(model, base_model_name="small")
    plain = resident.read()
    generator = torch.Generator().manual_seed(5)
    layers = {
        path: replace(layer, A=torch.randn(layer.A.shape, generator=generator), B=torch.ones_like(layer.B))
        for path, layer in plain.layers.items()
    }
    changes = {"query": change(5, 6, seed=1), "words": change(6, 7, seed=2, is_embedding=True)}
    whole = Adapter(layers, {}, plain.config, changes)
    resident.load(whole)
    with torch.no_grad():
        found = resident.peft_model(INPUTS)

    torch.manual_seed(0)
    concatenated = with_base_change_inside(whole)
    assert {layer.rank for layer in concatenated.layers.values()} == {5}
    config = LoraConfig(r=5, lora_alpha=15, target_modules=["words", "query"])
    other = ResidentModel(get_peft_model(Small(), config), base_model_name="small")  # type: ignore[arg-type]
    other.load(concatenated)
    with torch.no_grad():
        torch.testing.assert_close(other.peft_model(INPUTS), found, rtol=1e-5, atol=1e-5)
    assert not resident.read().base_change


@pytest.fixture
def load_and_train(model: PeftModel) -> Callable[[tuple[str, ...]], set[str]]:
    def run(trains: tuple[str, ...]) -> set[str]:
        resident = ResidentModel(model, base_model_name="small")
        resident.load(resident.read(), trains=trains)
        return {name for name, parameter in model.named_parameters() if parameter.requires_grad}

    return run


@pytest.mark.parametrize(("trains", "letters"), [(("B",), "B"), (("A",), "A"), (("A", "B"), "AB")])
def test_only_the_factors_of_the_round_have_gradients(
    load_and_train: Callable[[tuple[str, ...]], set[str]], trains: tuple[str, ...], letters: str
) -> None:
    with_gradient = load_and_train(trains)
    assert with_gradient == {
        f"base_model.model.{name}"
        for letter in letters
        for name in (f"query.lora_{letter}.default.weight", f"words.lora_embedding_{letter}.default")
    }
