"""The whole run file, and what does not go together in it."""

from pydantic import Field, field_validator, model_validator

from fedlora.common.config.federation import (
    AggregationSection,
    EvaluationSection,
    ExchangeSection,
    FederationSection,
    LoraFairMethod,
    OwnMethod,
    RobustSection,
)
from fedlora.common.config.section import Section
from fedlora.common.config.sources import (
    EMBEDDED_ENCODER,
    ByGroup,
    DataSection,
    ImageClassification,
    ModelSection,
    PartitionSection,
    TaskSection,
)
from fedlora.common.config.training import BASE_CHANGING_INITS, LoraSection, TrainSection


class RunSection(Section):
    name: str = Field(
        "digits", min_length=1, max_length=60, description="the run's name; also the default folder: runs/NAME"
    )
    seed: int = Field(0, ge=0, description="every random draw of the run comes from it")

    @field_validator("name")
    @classmethod
    def _is_the_name_of_a_folder(cls, name: str) -> str:
        if name.startswith(".") or not name.isprintable() or "/" in name or "\\" in name:
            raise ValueError(f"is {name!r}; expected the name of a folder: no slash, no leading dot")
        return name


class RunConfig(Section):
    """One run, whole."""

    run: RunSection = RunSection()
    model: ModelSection = ModelSection()
    task: TaskSection = ImageClassification()
    data: DataSection = DataSection()
    partition: PartitionSection = ByGroup()
    lora: LoraSection = LoraSection()
    train: TrainSection = TrainSection()
    federation: FederationSection = FederationSection()
    aggregation: AggregationSection = LoraFairMethod()
    robust: RobustSection = RobustSection()
    evaluation: EvaluationSection = EvaluationSection()
    exchange: ExchangeSection = ExchangeSection()

    @property
    def method_name(self) -> str:
        """The name of the aggregation method, of one's own too."""
        return self.aggregation.name if isinstance(self.aggregation, OwnMethod) else self.aggregation.method

    @model_validator(mode="after")
    def _fits_together(self) -> "RunConfig":
        is_text = self.task.kind in ("sequence_classification", "causal_lm")
        is_lm, is_classification = self.task.kind == "causal_lm", self.task.kind.endswith("_classification")
        if is_text and self.model.name == EMBEDDED_ENCODER:
            needed = "causal language model" if is_lm else "text encoder"
            raise ValueError(
                f"task.kind = {self.task.kind} needs a {needed} in model.name; the embedded model is for images"
            )
        if self.aggregation.method == "fedex_lora" and self.lora.client_ranks:
            raise ValueError(
                "aggregation.method = fedex_lora needs one rank for all clients; "
                "remove lora.client_ranks, or take flora, flex_lora or lora_fair"
            )
        if self.federation.late == "next_round" and self.aggregation.method in ("rolora", "flora", "fedex_lora"):
            raise ValueError(
                f'federation.late = "next_round" does not go with aggregation.method = {self.aggregation.method}, '
                'whose updates fit their own round only; use "discard"'
            )
        if self.task.kind == "image_classification" and self.data.split_by is not None:
            raise ValueError("data.split_by is for text data; remove it from an image run")
        if is_text and self.partition.by == "group" and self.data.group is None:
            raise ValueError('partition.by = "group" needs data.group, the column that names each row\'s group')
        if not is_lm:
            for is_set, key in (
                (self.train.packing, "train.packing"),
                (self.evaluation.generate, "evaluation.generate"),
                (self.federation.weighting == "tokens", 'federation.weighting = "tokens"'),
                (self.data.format != "auto", "data.format"),
                (self.data.ignore != (), "data.ignore"),
            ):
                if is_set:
                    raise ValueError(f"{key} is for task.kind = causal_lm; this run is {self.task.kind}")
        if not is_classification and self.data.labels:
            raise ValueError(f"data.labels is for a classification; remove it from a run of {self.task.kind}")
        if self.lora.init in BASE_CHANGING_INITS and self.model.quantization != "none":
            raise ValueError(
                f"lora.init = {self.lora.init!r} changes the base weights, which model.quantization = "
                f"{self.model.quantization!r} freezes as whole numbers; take default"
            )
        if self.lora.init != "default" and self.aggregation.method == "flora":
            raise ValueError(
                f"lora.init = {self.lora.init!r} is lost under aggregation.method = flora, whose pairs start afresh in "
                "every round; take default, or another method"
            )
        if self.model.quantization != "none" and self.aggregation.method in ("flora", "fedex_lora"):
            raise ValueError(
                f"aggregation.method = {self.aggregation.method} adds to the base weights, which model.quantization = "
                f"{self.model.quantization!r} freezes as whole numbers; take lora_fair, fedit or flex_lora"
            )
        if self.lora.init in BASE_CHANGING_INITS and self.lora.client_ranks:
            raise ValueError(
                f"lora.init = {self.lora.init!r} takes the whole first pair out of the base weights, and clients of a "
                "smaller rank would lack the rest of it; remove lora.client_ranks, or take default"
            )
        largest = max((self.lora.rank, *self.lora.rank_pattern.values()))
        residual_rank = getattr(self.aggregation, "residual_rank", None)
        if self.lora.init in BASE_CHANGING_INITS and residual_rank is not None and residual_rank <= largest:
            raise ValueError(
                f"lora.init = {self.lora.init!r} takes a part of rank {largest} out of the base weights, and "
                f"aggregation.residual_rank = {residual_rank} leaves no room beside it; take more than {largest}, or "
                "default"
            )
        if self.lora.init == "orthogonal" and any(
            rank % 2 for rank in (self.lora.rank, *self.lora.rank_pattern.values())
        ):
            raise ValueError('lora.init = "orthogonal" needs even ranks; take another rank, or default')
        if self.model.dtype != "float32" and self.train.precision == "float32":
            raise ValueError(
                f"train.precision = float32 does not go with model.dtype = {self.model.dtype}; "
                'take "auto", which computes in the type of the weights'
            )
        if self.train.micro_batch_size is not None and self.train.micro_batch_size > self.train.batch_size:
            raise ValueError(
                f"train.micro_batch_size is {self.train.micro_batch_size}, more than train.batch_size = "
                f"{self.train.batch_size}; expected at most that"
            )
        return self
