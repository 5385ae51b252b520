"""The whole run file, and what does not go together in it."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from fedlora.common.config.aggregation import AggregationSection, OwnMethod
from fedlora.common.config.federation import EvaluationSection, ExchangeSection, FederationSection, RobustSection
from fedlora.common.config.privacy import PrivacySection
from fedlora.common.config.private_examples import objections
from fedlora.common.config.private_fit import require_private_method, require_private_settings
from fedlora.common.config.secure_fit import require_sums_fit
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
from fedlora.common.section import Section
from fedlora.methods import Method, default_method, names_of


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
        if name == "*":
            raise ValueError("is '*', which stands for every run where sites are invited; expected another name")
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
    aggregation: AggregationSection = Field(default_factory=default_method)
    robust: RobustSection = RobustSection()
    privacy: PrivacySection = PrivacySection()
    evaluation: EvaluationSection = EvaluationSection()
    exchange: ExchangeSection = ExchangeSection()

    @property
    def data_seed(self) -> int:
        """What the draws of data come from: which examples are held out, and who holds which."""
        return self.run.seed if self.partition.seed is None else self.partition.seed

    @property
    def method_name(self) -> str:
        """The name of the aggregation method, of one's own too."""
        return self.aggregation.name if isinstance(self.aggregation, Method | OwnMethod) else self.aggregation.method

    @property
    def wire_precision(self) -> Literal["bfloat16", "float32", "int8"]:
        """The precision of adapters on the wire; sums start from the very numbers that the server has."""
        return "float32" if self.privacy.secure_sums else self.exchange.precision

    @property
    def evaluation_batch_size(self) -> int:
        """How many examples a forward pass of an evaluation takes."""
        return self.evaluation.batch_size or self.train.micro_batch_size or self.train.batch_size

    @model_validator(mode="after")
    def _fits_together(self) -> "RunConfig":
        is_text = self.task.kind in ("sequence_classification", "causal_lm")
        is_lm, is_classification = self.task.kind == "causal_lm", self.task.kind.endswith("_classification")
        if is_text and self.model.name == EMBEDDED_ENCODER:
            needed = "causal language model" if is_lm else "text encoder"
            raise ValueError(
                f"task.kind = {self.task.kind} needs a {needed} in model.name; the embedded model is for images"
            )
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
        if self.lora.init in BASE_CHANGING_INITS and self.lora.client_ranks:
            raise ValueError(
                f"lora.init = {self.lora.init!r} takes the whole first pair out of the base weights, and clients of a "
                "smaller rank would lack the rest of it; remove lora.client_ranks, or take default"
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
        if self.privacy.unit == "client":
            require_private_settings(
                self.federation, self.robust, self.lora, self.train, self.evaluation, self.exchange
            )
        found = objections(
            self.privacy,
            model=self.model,
            train=self.train,
            federation=self.federation,
            evaluation=self.evaluation,
            exchange=self.exchange,
        )
        if objection := next(found, ""):
            raise ValueError(objection)
        if isinstance(self.aggregation, Method):
            self.require_fit(self.aggregation)
        return self

    def require_fit(self, method: Method) -> None:
        """Check that the run asks for nothing that the method cannot do.

        Raises:
            ValueError: it does.
        """
        named = f"aggregation.method = {method.name}"
        if self.privacy.secure_sums:
            require_sums_fit(method, lora=self.lora, train=self.train, federation=self.federation, robust=self.robust)
        if not method.allows_client_ranks and self.lora.client_ranks:
            raise ValueError(
                f"{named} needs one rank for all clients; remove lora.client_ranks, or take "
                f"{names_of(lambda kind: kind.allows_client_ranks)}"
            )
        if self.federation.late == "next_round" and not method.allows_late_updates:
            raise ValueError(
                f'federation.late = "next_round" does not go with {named}, whose updates fit their own round only; use '
                '"discard"'
            )
        if self.lora.init != "default" and method.plan(1).starts_fresh:
            raise ValueError(
                f"lora.init = {self.lora.init!r} is lost under {named}, whose pairs start afresh in every round; take "
                "default, or another method"
            )
        if self.privacy.unit == "client":
            require_private_method(method)
        self._require_momentum_fits(method, named)
        self._require_moments_fit(method, named)
        if self.model.quantization != "none" and method.changes_base:
            raise ValueError(
                f"{named} adds to the base weights, which model.quantization = {self.model.quantization!r} freezes as "
                f"whole numbers; take {names_of(lambda kind: not kind.changes_base)}"
            )
        if self.federation.server_optimizer != "none":
            self._require_server_step(method, named)
        largest = max((self.lora.rank, *self.lora.rank_pattern.values()))
        most = method.base_change_rank
        if self.lora.init in BASE_CHANGING_INITS and most is not None and most <= largest:
            raise ValueError(
                f"lora.init = {self.lora.init!r} takes a part of rank {largest} out of the base weights, and {named} "
                f"with a rank of {most} for their change leaves no room beside it; take more than {largest}, or default"
            )

    def _require_server_step(self, method: Method, named: str) -> None:
        key = f'federation.server_optimizer = "{self.federation.server_optimizer}"'
        if not method.takes_server_optimizer():
            raise ValueError(
                f"{key} steps the pair on from the round's start, and {named} moves a round's change into the base "
                f'weights; use "none", or take {names_of(lambda kind: kind().takes_server_optimizer())}'
            )
        if self.federation.server_acts_on == "product" and any(len(method.plan(round).trains) < 2 for round in (1, 2)):
            raise ValueError(
                f'{key} with server_acts_on = "product" moves both factors, and under {named} clients share the one '
                'that they do not train; use "factors"'
            )

    def _require_momentum_fits(self, method: Method, named: str) -> None:
        """Check that what a round trains has a last change to go on with, if the run's steps are to.

        Raises:
            ValueError: it has none.
        """
        if self.train.client_momentum == 0 or method.has_last_change:
            return
        why = (
            "whose pairs start afresh in every round"
            if method.plan(2).starts_fresh
            else "which trains another factor in each round, and the last one left it as it was"
        )
        raise ValueError(
            f"train.client_momentum = {self.train.client_momentum:g} has no last change to go on with under {named}, "
            f"{why}; set it to 0, or take another method"
        )

    def _require_moments_fit(self, method: Method, named: str) -> None:
        """Check that what a round starts from goes on with the pairs that the shared moments are of.

        Raises:
            ValueError: it does not.
        """
        if self.train.optimizer_state != "shared":
            return
        if method.plan(2).starts_fresh:
            raise ValueError(
                f'train.optimizer_state = "shared" has no pairs to go on with under {named}, which start afresh in '
                'every round; use "reset", or take another method'
            )
        if self.robust.regauge:
            raise ValueError(
                'train.optimizer_state = "shared" does not go with robust.regauge, which gives pairs another basis, '
                'and moments are of the old one; use "reset", or switch it off'
            )
