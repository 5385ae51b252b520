"""Ranks and alphas that the real PEFT takes from a configuration as they were meant, also with a base change inside."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from torch import Tensor, nn

from fedlora.adapters import Adapter, LoraLayer, save_adapter, with_base_change_inside
from fedlora.adapters.settings import fitted_config, plain_config

WIDTH = 6
PATHS = ("1.q", "1.v", "11.q", "2.1.q")


class Named(nn.Module):
    """A chain of linear layers at `PATHS`, whose names end in one another."""

    def __init__(self) -> None:
        super().__init__()
        for path in PATHS:
            owner: nn.Module = self
            for name in path.split(".")[:-1]:
                if not hasattr(owner, name):
                    owner.add_module(name, nn.Module())
                owner = owner.get_submodule(name)
            owner.add_module(path.rpartition(".")[2], nn.Linear(WIDTH, WIDTH, bias=False))

    def forward(self, hidden: Tensor) -> Tensor:
        for path in PATHS:
            hidden = self.get_submodule(path)(hidden)
        return hidden


def base_model() -> nn.Module:
    torch.manual_seed(0)
    return Named().double().eval()


def config(**options: Any) -> dict[str, object]:
    return plain_config(LoraConfig(r=4, lora_alpha=8, target_modules=["q", "v"], **options).to_dict())


def random_layer(rank: int, scaling: float) -> LoraLayer:
    return LoraLayer(torch.randn(rank, WIDTH).double(), torch.randn(WIDTH, rank).double(), scaling)


def loaded(adapter: Adapter, folder: Path) -> PeftModel:
    save_adapter(adapter, folder)
    return PeftModel.from_pretrained(base_model(), str(folder), autocast_adapter_dtype=False).eval()


SHAPES: dict[str, list[tuple[int, float]]] = {
    "all alike": [(4, 2.0)] * 4,
    "one rank, another scaling": [(4, 0.3)] * 4,
    "all different": [(1, 2.0), (2, 0.5), (3, 1 / 3), (4, 7.0)],
    "one in the middle": [(4, 2.0), (4, 2.0), (2, 2.0), (4, 2.0)],
    "names that end in another": [(2, 3.0), (4, 2.0), (4, 2.0), (4, 2.0)],
}


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("patterns", [{}, {"rank_pattern": {"q": 3}, "alpha_pattern": {"1.q": 5, "v": 1}}])
def test_peft_gives_every_layer_the_rank_and_scaling_it_has(
    shapes: list[tuple[int, float]], use_rslora: bool, patterns: dict[str, Any], tmp_path: Path
) -> None:
    layers = {path: random_layer(*shape) for path, shape in zip(PATHS, shapes, strict=True)}
    fitted = fitted_config(config(use_rslora=use_rslora, **patterns), layers)
    model = loaded(Adapter(layers, {}, fitted), tmp_path)
    for path, (rank, scaling) in zip(PATHS, shapes, strict=True):
        module = model.base_model.model.get_submodule(path)
        assert module.r["default"] == rank
        assert module.scaling["default"] == pytest.approx(scaling, rel=1e-9)
    assert fitted["use_rslora"] == use_rslora


def test_a_configuration_that_fits_is_returned_as_it_is() -> None:
    given = config(rank_pattern={"v": 2}, alpha_pattern={"v": 4})
    layers = {path: random_layer(2 if path.endswith("v") else 4, 2.0) for path in PATHS}
    assert fitted_config(given, layers) == given
    assert fitted_config(given, {}) == given


def changed(path: str, rank: int) -> dict[str, LoraLayer]:
    return {path: random_layer(rank, 1.0)}


@pytest.mark.parametrize("is_fresh", [False, True])
def test_a_base_change_inside_acts_as_the_change_of_the_weight_did(is_fresh: bool, tmp_path: Path) -> None:
    layers = {path: random_layer(4, 2.0) for path in PATHS}
    if is_fresh:
        layers["1.q"] = LoraLayer(layers["1.q"].A, torch.zeros_like(layers["1.q"].B), 2.0)
    adapter = Adapter(layers, {}, config(), changed("1.q", 5) | changed("11.q", 3))
    inside = with_base_change_inside(adapter)
    assert not inside.base_change
    assert {path: layer.rank for path, layer in inside.layers.items()} == {
        "1.q": 5 if is_fresh else 9, "1.v": 4, "11.q": 7, "2.1.q": 4,
    }  # fmt: skip
    base = base_model()
    with torch.no_grad():
        for pairs in (adapter.layers, adapter.base_change):
            for path, pair in pairs.items():
                base.get_parameter(f"{path}.weight").add_(pair.scaling * pair.B @ pair.A)
        inputs = torch.randn(3, WIDTH).double()
        torch.testing.assert_close(loaded(adapter, tmp_path)(inputs), base(inputs), rtol=1e-10, atol=1e-10)


def test_a_change_where_there_is_no_pair_becomes_one() -> None:
    adapter = Adapter({"1.q": random_layer(4, 2.0)}, {}, config(), changed("11.q", 3))
    inside = with_base_change_inside(adapter)
    assert inside.layers["11.q"] is adapter.base_change["11.q"]
    assert inside.layers["1.q"] is adapter.layers["1.q"]


def test_without_a_change_the_adapter_is_the_same_one() -> None:
    adapter = Adapter({"1.q": random_layer(4, 2.0)}, {}, config())
    assert with_base_change_inside(adapter) is adapter
