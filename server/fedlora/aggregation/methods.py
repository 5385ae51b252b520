"""The methods by their name in a run file. A further method joins with one line here."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from fedlora.aggregation.fedex_lora import FedExLora
from fedlora.aggregation.fedit import FedIT
from fedlora.aggregation.ffa_lora import FfaLora
from fedlora.aggregation.flex_lora import FlexLora
from fedlora.aggregation.flora import Flora
from fedlora.aggregation.lora_fair import LoraFair
from fedlora.aggregation.lora_fair_cosine import LoraFairCosine
from fedlora.aggregation.lora_fair_two_sided import LoraFairTwoSided
from fedlora.aggregation.method import Method
from fedlora.aggregation.rolora import RoLora

METHODS: Mapping[str, Callable[..., Method]] = MappingProxyType(
    {
        FedIT.name: FedIT,
        FfaLora.name: FfaLora,
        Flora.name: Flora,
        FlexLora.name: FlexLora,
        FedExLora.name: FedExLora,
        RoLora.name: RoLora,
        LoraFair.name: LoraFair,
        LoraFairCosine.name: LoraFairCosine,
        LoraFairTwoSided.name: LoraFairTwoSided,
    }
)
