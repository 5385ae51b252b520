"""LoRA adapters as values, and PEFT's folders that hold them. Public.

adapter = load_adapter("runs/digits/adapter")        # or load_adapter(state_dict, lora_config)
save_adapter(adapter, "elsewhere")
"""

from fedlora.adapters.adapter import Adapter, LoraLayer
from fedlora.adapters.peft_format import load_adapter, pack, save_adapter, unpack

__all__ = ["Adapter", "LoraLayer", "load_adapter", "pack", "save_adapter", "unpack"]
