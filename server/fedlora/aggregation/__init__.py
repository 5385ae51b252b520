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
from fedlora.aggregation.fedit import FedIT
from fedlora.aggregation.lora_fair import LoraFair
from fedlora.aggregation.method import CentredUpdate, Method
from fedlora.aggregation.methods import METHODS
from fedlora.common.aggregation_report import AggregationReport, LayerReport

__all__ = [
    "METHODS",
    "Aggregate",
    "AggregationReport",
    "CentredUpdate",
    "FedIT",
    "LayerReport",
    "LoraFair",
    "Method",
    "aggregate",
]
