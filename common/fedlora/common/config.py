"""The run file's sections: what all clients of a run must share. Frozen, typed, unknown keys refused.

Every field has a default and a one-line description; `run_file` reads, checks and writes them as TOML.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

EMBEDDED_ENCODER = "package:fedlora.embedded/dinov2-small"
EMBEDDED_DIGITS = "package:fedlora.embedded/digits5.npz"

Fraction = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Section(BaseModel):
    """Base of all sections."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True)


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


class ModelSection(Section):
    name: str = Field(
        EMBEDDED_ENCODER,
        min_length=1,
        description="a folder, a hub id, or package:MODULE/FOLDER of an installed package",
    )
    revision: str | None = Field(None, description="the commit or tag of a hub model")
    head: Literal["linear", "auto"] = Field(
        "linear", description='"linear": on pooled features; "auto": the checkpoint\'s own classification class'
    )
    pooling: Literal["auto", "mean", "cls", "cls_mean"] = Field(
        "auto", description='of features for the linear head: mean, cls, cls_mean; "auto" fits the model'
    )


class ImageClassification(Section):
    kind: Literal["image_classification"] = Field("image_classification", description="or sequence_classification")
    image_size: int = Field(224, ge=8, description="pixels; pictures are resized to a square of it")


class SequenceClassification(Section):
    kind: Literal["sequence_classification"] = Field("sequence_classification", description="or image_classification")
    max_length: int = Field(128, ge=2, description="tokens; longer texts are cut")


TaskSection = Annotated[ImageClassification | SequenceClassification, Field(discriminator="kind")]


class DataSection(Section):
    path: str = Field(
        EMBEDDED_DIGITS,
        min_length=1,
        description="image folder, .npz, .csv, .csv.gz, .jsonl, or package:MODULE/FILE",
    )
    test: Fraction | str = Field(
        0.2, description="share of each group held out for the test; or the path of a test set"
    )
    validation: Fraction = Field(0.1, description="share of each client's examples kept for its own validation")
    text: str = Field("text", description="the text's column (text data)")
    label: str = Field("label", description="the label's column (text data)")
    labels: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        (), description="the vocabulary, which a deployment must name; empty: the labels that the data have"
    )
    group: str | None = Field(None, description="column of the natural group, such as a hospital (text data)")
    split_by: str | None = Field(
        None, description="rows with one value of this column stay on one side of every split (text data)"
    )


class ByGroup(Section):
    by: Literal["group"] = Field("group", description="group, iid, dirichlet or label_shards: who holds which examples")


class Iid(Section):
    by: Literal["iid"] = Field("iid", description="group, iid, dirichlet or label_shards: who holds which examples")
    num_clients: Count = Field(5, description="the examples are dealt out evenly among so many")


class Dirichlet(Section):
    by: Literal["dirichlet"] = Field(
        "dirichlet", description="group, iid, dirichlet or label_shards: who holds which examples"
    )
    num_clients: Count = Field(5, description="clients")
    alpha: Positive = Field(0.3, description="small: each client sees few labels; large: all see the same mixture")


class LabelShards(Section):
    by: Literal["label_shards"] = Field(
        "label_shards", description="group, iid, dirichlet or label_shards: who holds which examples"
    )
    num_clients: Count = Field(5, description="clients")
    shards_per_client: Count = Field(2, description="the examples sorted by label are cut into num_clients x this many")


PartitionSection = Annotated[ByGroup | Iid | Dirichlet | LabelShards, Field(discriminator="by")]


class LoraSection(Section):
    rank: Count = Field(8, description="r of A (r, in) and B (out, r)")
    alpha: Positive = Field(16.0, description="the layer acts as W + alpha / rank * B A")
    dropout: Fraction = Field(0.0, description="on the input of A, in training")
    target_modules: Literal["auto"] | Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = Field(
        "auto", description='"auto": the query and value projections; or a list of module names, as in PEFT'
    )
    use_rslora: bool = Field(False, description="scale by alpha / sqrt(rank) in place of alpha / rank")
    rank_pattern: dict[str, Count] = Field({}, description="other ranks by the end of a layer's path, as in PEFT")
    alpha_pattern: dict[str, Positive] = Field({}, description="other alphas by the end of a layer's path, as in PEFT")
    client_ranks: dict[str, Count] = Field({}, description="smaller ranks by client; they act with the same scaling")

    @model_validator(mode="after")
    def _clients_have_at_most_the_rank(self) -> "LoraSection":
        for client, rank in self.client_ranks.items():
            if rank > self.rank:
                raise ValueError(f"client_ranks: {client} has {rank}, more than rank = {self.rank}; raise the rank")
        return self

    def rank_of(self, client: str) -> int:
        """Return the most rank that a layer of `client` has."""
        return self.client_ranks.get(client, max([self.rank, *self.rank_pattern.values()]))


class TrainSection(Section):
    steps: Count | None = Field(8, description="optimiser steps of a client in a round")
    epochs: Positive | None = Field(None, description="instead of steps: passes over the client's examples in a round")
    batch_size: Count = Field(16, description="examples a step")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="adamw or sgd; its state starts fresh each round")
    learning_rate: Positive = Field(1e-3, description="the peak of the schedule")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="over the whole run; linear and cosine end at zero"
    )
    warmup: Fraction = Field(0.0, description="share of the run in which the learning rate rises from zero")
    weight_decay: NonNegative = Field(0.0, description="of the optimiser")
    momentum: Fraction = Field(0.9, description="of sgd; adamw has its own")
    max_grad_norm: NonNegative = Field(1.0, description="gradients are clipped to this norm; 0 leaves them as they are")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description='"auto": bfloat16 autocast where the device has it (CUDA), else float32'
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="auto takes cuda, else mps, else cpu")

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> "TrainSection":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("needs either steps or epochs, and not both")
        return self


class FederationSection(Section):
    rounds: Count = Field(10, description="rounds of local training and aggregation")
    fraction: Share = Field(1.0, description="share of the clients sampled in each round (at least one)")
    weighting: Literal["examples", "uniform"] = Field(
        "examples", description="a client's weight: its number of training examples, or the same for all"
    )
    quorum: Share = Field(0.5, description="share of the round's clients whose update must be accepted")
    sites: Count = Field(2, description="of a deployment: the first round waits until so many sites are ready")
    cohort: Count | None = Field(None, description="clients of a round by number, in place of fraction")
    oversample: float = Field(
        1.0, ge=1, le=10, description="so many times the cohort are asked, and its number of first updates counts"
    )
    deadline: Positive | Literal["adaptive"] | None = Field(
        None, description='seconds that a round waits for updates; "adaptive": by what the cohort has needed so far'
    )
    deadline_deviations: Positive = Field(
        3.0, description="of the adaptive deadline: the median and so many times the median absolute deviation"
    )
    patience: Positive = Field(
        120.0, description="seconds for which a round with a quorum waits for a site that has lost its connection"
    )
    late: Literal["discard", "next_round"] = Field(
        "discard", description="next_round: a late update counts in a later round, its weight halved per round of age"
    )
    norm_limit: Positive = Field(
        100.0, description="an update this many times larger than its round's median is refused"
    )
    start_from: str | None = Field(None, description="an adapter folder to start from instead of a fresh adapter")


_METHODS = "lora_fair, lora_fair_cosine, lora_fair_two_sided, fedit, ffa_lora, rolora, flora, fedex_lora, flex_lora"


class LoraFairMethod(Section):
    method: Literal["lora_fair"] = Field("lora_fair", description=_METHODS)
    ridge: NonNegative = Field(
        0.03, description="lambda relative to the mean eigenvalue of A A^T; a large one approaches fedit"
    )
    corrects: Literal["A", "B"] = Field("B", description="the factor that is corrected; B as in the paper")


class LoraFairCosineMethod(Section):
    method: Literal["lora_fair_cosine"] = Field("lora_fair_cosine", description=_METHODS)
    penalty: NonNegative = Field(0.01, description="the paper's lambda; at 1 the result is practically the plain mean")
    repairs_scale: bool = Field(
        False, description="whether the result is scaled to the update, to which cosines are blind"
    )
    solver: Literal["exact", "sgd"] = Field(
        "exact", description="sgd: as published, for comparison; forms full matrices"
    )
    steps: Count = Field(1000, description="of sgd")
    learning_rate: Positive = Field(0.01, description="of sgd")
    start: NonNegative = Field(0.0, description="of sgd: standard deviation of the random start; 0 starts at the mean")
    axis: Literal["all", "rows", "columns"] = Field("all", description="of sgd: the cosine of all, or along an axis")


class LoraFairTwoSidedMethod(Section):
    method: Literal["lora_fair_two_sided"] = Field("lora_fair_two_sided", description=_METHODS)
    ridge: NonNegative = Field(0.03, description="as for lora_fair, for both factors")
    sweeps: Count = Field(2, description="how many times B and then A are corrected")


class PlainMethod(Section):
    method: Literal["fedit", "ffa_lora", "flora", "flex_lora", "fedex_lora", "rolora"] = Field(
        "fedit", description=_METHODS
    )


AggregationSection = Annotated[
    LoraFairMethod | LoraFairCosineMethod | LoraFairTwoSidedMethod | PlainMethod, Field(discriminator="method")
]


class RobustSection(Section):
    regauge: bool = Field(False, description="turn each update's A, B towards the round's start; its product stays")
    clip: Positive | None = Field(None, description="updates are pulled back to so many times the median change")
    select: Literal["all", "multi_krum"] = Field("all", description="multi_krum: leave out the updates far from others")
    attackers: int = Field(0, ge=0, description="of multi_krum: so many updates are left out")
    weighting: Literal["given", "geometric_median"] = Field(
        "given", description="geometric_median: updates far from the middle weigh less"
    )

    @model_validator(mode="after")
    def _krum_knows_how_many(self) -> "RobustSection":
        if (self.select == "multi_krum") != (self.attackers > 0):
            raise ValueError('select = "multi_krum" and attackers go together: set both, attackers to 1 or more')
        return self


class EvaluationSection(Section):
    round_examples: int = Field(
        256,
        ge=0,
        description="held-out examples judged after a round; the whole set before the first and after the last",
    )
    client_examples: int = Field(
        64, ge=0, description="own validation examples that a client judges before and after training"
    )
    batch_size: Count = Field(32, description="examples a forward pass")


class ExchangeSection(Section):
    precision: Literal["bfloat16", "float32", "int8"] = Field(
        "bfloat16", description="of the adapters on the wire, as differences; a simulation is always float32"
    )
    max_start_megabytes: Count = Field(8_000, description="the most that the run's first adapter may take")
    published: Count = Field(5, description="finished adapters that are kept for who serves them")


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

    @model_validator(mode="after")
    def _fits_together(self) -> "RunConfig":
        if self.task.kind == "sequence_classification" and self.model.name == EMBEDDED_ENCODER:
            raise ValueError(
                "task.kind = sequence_classification needs a text encoder in model.name; the embedded one is for images"
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
        if self.task.kind == "sequence_classification" and self.partition.by == "group" and self.data.group is None:
            raise ValueError('partition.by = "group" needs data.group, the column that names each row\'s group')
        return self
