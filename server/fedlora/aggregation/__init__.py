"""Clients' LoRA updates in, one global adapter and a report out. Pure: tensors and numbers only. Public.

    from fedlora.aggregation import LoraFair, aggregate

    result = aggregate(
        {"hospital-a": adapter_a, "hospital-b": adapter_b},
        weights={"hospital-a": 1200, "hospital-b": 400},     # examples, say; uniform if left out
        method=LoraFair(ridge=0.03),
    )
    result.adapter                    # an Adapter: where every client starts the next round
    result.report.error_before        # how far the plain mean is from the ideal update, relative to it
    result.report.error_after         # how far the method's result is

A further method is one file with a frozen dataclass that satisfies `Method`, and one line in `METHODS`.
"""

from fedlora.aggregation.aggregation import Aggregate, aggregate
from fedlora.aggregation.fedex_lora import FedExLora
from fedlora.aggregation.fedit import FedIT
from fedlora.aggregation.ffa_lora import FfaLora
from fedlora.aggregation.flex_lora import FlexLora
from fedlora.aggregation.flora import Flora
from fedlora.aggregation.lora_fair import LoraFair
from fedlora.aggregation.lora_fair_cosine import LoraFairCosine
from fedlora.aggregation.lora_fair_two_sided import LoraFairTwoSided
from fedlora.aggregation.method import Combined, Method, RoundPlan
from fedlora.aggregation.methods import METHODS
from fedlora.aggregation.robust import Robust
from fedlora.aggregation.rolora import RoLora
from fedlora.aggregation.updates import CentredUpdate
from fedlora.common.aggregation_report import AggregationReport, LayerReport

__all__ = [
    "METHODS",
    "Aggregate",
    "AggregationReport",
    "CentredUpdate",
    "Combined",
    "FedExLora",
    "FedIT",
    "FfaLora",
    "FlexLora",
    "Flora",
    "LayerReport",
    "LoraFair",
    "LoraFairCosine",
    "LoraFairTwoSided",
    "Method",
    "RoLora",
    "Robust",
    "RoundPlan",
    "aggregate",
]
