"""Whether PEFT reloads the adapter in a folder."""

from pathlib import Path

from peft import LoraConfig, PeftConfig, PeftModel, set_peft_model_state_dict
from peft.utils import load_peft_weights
from torch import Tensor, nn

from fedlora.adapters import Adapter, LoraLayer, open_adapter
from fedlora.common.errors import one_line


def peft_refusal(folder: Path) -> str:
    """Return why PEFT does not reload the adapter in `folder`, nothing where it does.

    Of the base model only the shapes count, and those follow from A and B: PEFT puts its layers into linear and
    embedding layers of these shapes that have no memory, by the folder's configuration, and must then find each
    tensor of the folder a place, and for each place a tensor.
    """
    try:
        adapter = open_adapter(folder)
        config = PeftConfig.from_pretrained(str(folder))
        weights: dict[str, Tensor] = load_peft_weights(str(folder), device="cpu")
        if not isinstance(config, LoraConfig):
            return f"the configuration is a {type(config).__name__}; expected LoRA's"
        model = PeftModel(_base_of_shapes(adapter), config, low_cpu_mem_usage=True)
        found = set_peft_model_state_dict(model, weights, low_cpu_mem_usage=True)
    # Whatever PEFT raises is its refusal.
    except Exception as error:
        return f"{type(error).__name__}: {one_line(error)}"
    missing: list[str] = found.missing_keys  # type: ignore[attr-defined]
    unexpected: list[str] = found.unexpected_keys  # type: ignore[attr-defined]
    empty = sorted(name for name in missing if ".base_layer." not in name and _is_trained(name))
    if empty or unexpected:
        what, name = ("no tensor for", empty[0]) if empty else ("no place for", sorted(unexpected)[0])
        return f"there is {what} {name}; the tensors and adapter_config.json do not agree"
    return ""


def _is_trained(name: str) -> bool:
    return ".lora_" in name or ".modules_to_save." in name


def _base_of_shapes(adapter: Adapter) -> nn.Module:
    """Return a model that has the adapter's layers and nothing else, on the meta device."""
    base = nn.Module()
    for path, layer in adapter.outline.items():
        parent, _, name = path.rpartition(".")
        _module_at(base, parent).add_module(name, _layer_of_shape(layer, has_bias=f"{path}.bias" in adapter.dense))
    for path, tensor in adapter.dense_outline.items():
        parent, _, name = path.rpartition(".")
        if parent not in adapter.layers:
            _module_at(base, parent).register_parameter(name, nn.Parameter(tensor, requires_grad=False))
    return base


def _layer_of_shape(layer: LoraLayer, *, has_bias: bool) -> nn.Module:
    num_in, num_out = layer.A.shape[1], layer.B.shape[0]
    if layer.is_embedding:
        return nn.Embedding(num_in, num_out, device="meta")
    return nn.Linear(num_in, num_out, bias=has_bias, device="meta")


def _module_at(base: nn.Module, path: str) -> nn.Module:
    """Return the module at a path, which is made with its parents where it is not there."""
    module = base
    for name in path.split(".") if path else ():
        if name not in dict(module.named_children()):
            module.add_module(name, nn.Module())
        module = module.get_submodule(name)
    return module
