"""The methods by their name in a run file. A further method joins with one line here."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from fedlora.aggregation.fedit import FedIT
from fedlora.aggregation.lora_fair import LoraFair
from fedlora.aggregation.method import Method

METHODS: Mapping[str, Callable[..., Method]] = MappingProxyType(
    {
        FedIT.name: FedIT,
        LoraFair.name: LoraFair,
    }
)
