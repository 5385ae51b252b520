"""The run file's sections: what all clients of a run must share. Frozen, typed, unknown keys refused.

Every field has a default and a one-line description; `run_file` reads, checks and writes them as TOML.
"""

from fedlora.common.config.federation import (
    AggregationSection,
    EvaluationSection,
    ExchangeSection,
    FederationSection,
    LoraFairCosineMethod,
    LoraFairMethod,
    LoraFairTwoSidedMethod,
    PlainMethod,
    RobustSection,
)
from fedlora.common.config.idle import Occasion, idle_settings
from fedlora.common.config.run import RunConfig, RunSection
from fedlora.common.config.section import Count, Fraction, Section
from fedlora.common.config.sources import (
    EMBEDDED_DIGITS,
    EMBEDDED_ENCODER,
    ByGroup,
    BySize,
    CausalLm,
    DataSection,
    Dirichlet,
    Iid,
    ImageClassification,
    LabelShards,
    ModelSection,
    OwnTask,
    PartitionSection,
    SequenceClassification,
    TaskSection,
    TextFormat,
)
from fedlora.common.config.training import BASE_CHANGING_INITS, LoraSection, TrainSection

__all__ = [
    "BASE_CHANGING_INITS",
    "EMBEDDED_DIGITS",
    "EMBEDDED_ENCODER",
    "AggregationSection",
    "ByGroup",
    "BySize",
    "CausalLm",
    "Count",
    "DataSection",
    "Dirichlet",
    "EvaluationSection",
    "ExchangeSection",
    "FederationSection",
    "Fraction",
    "Iid",
    "ImageClassification",
    "LabelShards",
    "LoraFairCosineMethod",
    "LoraFairMethod",
    "LoraFairTwoSidedMethod",
    "LoraSection",
    "ModelSection",
    "Occasion",
    "OwnTask",
    "PartitionSection",
    "PlainMethod",
    "RobustSection",
    "RunConfig",
    "RunSection",
    "Section",
    "SequenceClassification",
    "TaskSection",
    "TextFormat",
    "TrainSection",
    "idle_settings",
]
