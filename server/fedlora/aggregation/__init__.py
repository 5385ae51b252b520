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

A further method is one file with a subclass of `fedlora.methods.Method`, and one entry point.
"""

from fedlora.aggregation.aggregation import Aggregate, aggregate
from fedlora.aggregation.robust import Robust
from fedlora.aggregation.server_optimizer import ServerOptimizer
from fedlora.common.aggregation_report import AggregationReport, LayerReport
from fedlora.methods import METHODS, Combined, Layer, Method, Phases, Product, RoundPlan
from fedlora.methods.fedex_lora import FedExLora
from fedlora.methods.fedit import FedIT
from fedlora.methods.ffa_lora import FfaLora
from fedlora.methods.flex_lora import FlexLora
from fedlora.methods.flora import Flora
from fedlora.methods.lora_fair import LoraFair
from fedlora.methods.lora_fair_cosine import LoraFairCosine
from fedlora.methods.lora_fair_two_sided import LoraFairTwoSided
from fedlora.methods.rolora import RoLora

__all__ = [
    "METHODS",
    "Aggregate",
    "AggregationReport",
    "Combined",
    "FedExLora",
    "FedIT",
    "FfaLora",
    "FlexLora",
    "Flora",
    "Layer",
    "LayerReport",
    "LoraFair",
    "LoraFairCosine",
    "LoraFairTwoSided",
    "Method",
    "Phases",
    "Product",
    "RoLora",
    "Robust",
    "RoundPlan",
    "ServerOptimizer",
    "aggregate",
]
