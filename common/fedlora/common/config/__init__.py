"""The run file's sections: what all clients of a run must share. Frozen, typed, unknown keys refused.

Every field has a default and a one-line description; `run_file` reads, checks and writes them as TOML.
"""

from fedlora.common.config.aggregation import AggregationSection, MethodElsewhere, OwnMethod
from fedlora.common.config.federation import EvaluationSection, ExchangeSection, FederationSection, RobustSection
from fedlora.common.config.idle import Occasion, idle_settings
from fedlora.common.config.privacy import PrivacySection
from fedlora.common.config.run import RunConfig, RunSection
from fedlora.common.config.sources import (
    EMBEDDED_DIGITS,
    EMBEDDED_ENCODER,
    SPLITS,
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
    PixelRange,
    SequenceClassification,
    Splits,
    TaskSection,
    TextFormat,
)
from fedlora.common.config.training import BASE_CHANGING_INITS, LoraSection, TrainSection
from fedlora.common.section import Count, Fraction, Section

__all__ = [
    "BASE_CHANGING_INITS",
    "EMBEDDED_DIGITS",
    "EMBEDDED_ENCODER",
    "SPLITS",
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
    "LoraSection",
    "MethodElsewhere",
    "ModelSection",
    "Occasion",
    "OwnMethod",
    "OwnTask",
    "PartitionSection",
    "PixelRange",
    "PrivacySection",
    "RobustSection",
    "RunConfig",
    "RunSection",
    "Section",
    "SequenceClassification",
    "Splits",
    "TaskSection",
    "TextFormat",
    "TrainSection",
    "idle_settings",
]
