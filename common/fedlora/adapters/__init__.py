"""LoRA adapters as values, and PEFT's folders that hold them. Public.

adapter = load_adapter("runs/digits/adapter")        # or load_adapter(state_dict, lora_config)
adapter = open_adapter("runs/digits/adapter")        # the same, its tensors read from disk at each use
save_adapter(adapter, "elsewhere")
"""

from fedlora.adapters.adapter import Adapter, LoraLayer
from fedlora.adapters.concatenation import with_base_change_inside
from fedlora.adapters.packed import pack, unpack
from fedlora.adapters.peft_format import load_adapter, open_adapter, save_adapter

__all__ = [
    "Adapter",
    "LoraLayer",
    "load_adapter",
    "open_adapter",
    "pack",
    "save_adapter",
    "unpack",
    "with_base_change_inside",
]
