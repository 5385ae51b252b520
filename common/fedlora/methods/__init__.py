"""The aggregation methods, one file each, and what a method is (`method`). Light: torch is imported to compute. Public.

A further method is one file with a subclass of `Method`, and one entry point in the group "fedlora.methods".
"""

from fedlora.common.method_names import DEFAULT
from fedlora.methods.method import ClientPair, Combined, Factor, Layer, Method, MethodState, Phases, Product, RoundPlan
from fedlora.methods.registry import METHODS, default_method, loadable_methods, names_of, title_of, why_no_sums

__all__ = [
    "DEFAULT",
    "METHODS",
    "ClientPair",
    "Combined",
    "Factor",
    "Layer",
    "Method",
    "MethodState",
    "Phases",
    "Product",
    "RoundPlan",
    "default_method",
    "loadable_methods",
    "names_of",
    "title_of",
    "why_no_sums",
]
