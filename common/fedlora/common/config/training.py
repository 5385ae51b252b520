"""How a client trains: [lora] [train]."""

import math
import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from fedlora.common.errors import AdapterError
from fedlora.common.patterns import require_pattern
from fedlora.common.section import Count, Fraction, NonNegative, Positive, Section
from fedlora.common.spelling import spelled, visible

_Names = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]


# A list of names, or an expression.
_Modules = Annotated[str, Field(min_length=1)] | _Names

Device = Literal["auto", "cpu", "cuda", "cuda_all", "mps"]
DEVICES = "auto takes cuda, else mps, else cpu; cuda_all spreads the layers of one model over all GPUs"

# These take what A and B start from out of the base weights.
BASE_CHANGING_INITS = ("pissa", "olora")
_DATA_INITS = ("eva", "corda", "lora_ga")


class LoraSection(Section):
    rank: Count = Field(8, description="r of A (r, in) and B (out, r)")
    alpha: Positive = Field(16.0, description="the layer acts as W + alpha / rank * B A")
    dropout: Fraction = Field(0.0, description="on the input of A, in training")
    target_modules: _Modules = Field(
        "auto", description='"auto": query and value; "all-linear"; names, or an expression for whole paths, as in PEFT'
    )
    exclude_modules: Annotated[str, Field(min_length=1)] | Annotated[tuple[str, ...], Field(strict=False)] = Field(
        (), description="layers that get no LoRA: names, or an expression for whole paths, as in PEFT"
    )
    modules_to_save: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        (), description="modules beside the head that are trained whole, sent and averaged"
    )
    init: Literal["default", "gaussian", "orthogonal", "pissa", "olora", "eva", "corda", "loftq", "lora_ga"] = Field(
        "default", description="of the first A and B; pissa and olora take their part out of the base weights"
    )
    use_dora: bool = Field(False, description="train each layer's magnitude beside its direction (DoRA)")
    use_rslora: bool = Field(False, description="scale by alpha / sqrt(rank) in place of alpha / rank")
    rank_pattern: dict[str, Count] = Field({}, description="other ranks by the end of a layer's path, as in PEFT")
    alpha_pattern: dict[str, Positive] = Field({}, description="other alphas by the end of a layer's path, as in PEFT")
    client_ranks: dict[str, Count] = Field({}, description="smaller ranks by client; they act with the same scaling")

    @field_validator("client_ranks")
    @classmethod
    def _names_clients_as_they_are_spelled(cls, ranks: dict[str, int]) -> dict[str, int]:
        names = [spelled(client) for client in ranks]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"has {visible(name)} twice, in two spellings; expected it once")
        return dict(zip(names, ranks.values(), strict=True))

    @field_validator("target_modules", "exclude_modules")
    @classmethod
    def _is_an_expression(cls, modules: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if isinstance(modules, str):
            try:
                re.compile(modules)
            except (re.error, RecursionError, OverflowError) as error:
                raise ValueError(f"is {modules!r}, which is no regular expression ({error})") from error
        return modules

    @field_validator("rank_pattern", "alpha_pattern")
    @classmethod
    def _names_layers(cls, pattern: dict[str, float]) -> dict[str, float]:
        for key in pattern:
            try:
                require_pattern(key)
            except AdapterError as error:
                raise ValueError(f"has {key!r}, by which the server cannot find layers: {error}") from error
        return pattern

    @model_validator(mode="after")
    def _has_an_init_for_a_federation(self) -> "LoraSection":
        if self.init in _DATA_INITS:
            raise ValueError(
                f"init = {self.init!r} starts from one client's data or gradients, and would send them to all; "
                "take default, pissa or olora, which need the base weights alone"
            )
        if self.init == "loftq":
            raise ValueError(
                'init = "loftq" makes up for the rounding of one machine\'s quantised weights; take default or pissa'
            )
        if self.init in BASE_CHANGING_INITS and self.use_dora:
            raise ValueError(f"init = {self.init!r} and use_dora both re-write the base weights; choose one")
        return self

    @model_validator(mode="after")
    def _clients_have_at_most_the_rank(self) -> "LoraSection":
        for client, rank in self.client_ranks.items():
            if rank > self.rank:
                raise ValueError(f"client_ranks: {client} has {rank}, more than rank = {self.rank}; raise the rank")
        return self

    def rank_of(self, client: str) -> int:
        """Return the most rank that a layer of `client` has."""
        return self.client_ranks.get(spelled(client), max([self.rank, *self.rank_pattern.values()]))


class TrainSection(Section):
    steps: Count | None = Field(8, description="optimiser steps of a client in a round")
    epochs: Positive | None = Field(None, description="instead of steps: passes over the client's examples in a round")
    batch_size: Count = Field(16, description="examples a step")
    micro_batch_size: Count | None = Field(
        None, description="examples a forward pass, whose gradients add up to the step's; all at once if left out"
    )
    packing: bool = Field(
        False, description="of causal_lm: a forward pass's examples one after another, without padding between them"
    )
    gradient_checkpointing: bool = Field(False, description="compute activations twice instead of keeping them")
    frozen_cache_megabytes: int = Field(
        0,
        ge=0,
        description="memory of a process for what blocks below the first one with LoRA give for an example, which is "
        "then computed once, without dropout; 0 computes it in each step",
    )
    compile: bool = Field(False, description="torch.compile: slow to start, faster after that")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="adamw or sgd")
    optimizer_state: Literal["reset", "keep", "shared"] = Field(
        "keep",
        description="what each round's optimiser goes on with: keep: the client's own moments from its last round; "
        "shared: the mean of all clients'; reset: nothing",
    )
    shared_second_moments: Literal["whole", "scalar"] = Field(
        "whole", description="of shared moments of adamw; scalar: one number a tensor, so that 2 in 3 bytes are sent"
    )
    proximal_mu: NonNegative = Field(
        0.0, description="FedProx: pulls towards the round's start by mu / 2 |w - start|^2; 0 is off"
    )
    client_momentum: Fraction = Field(
        0.0, description="FedCM: share of each step that goes on as the global adapter last moved; 0 is off"
    )
    learning_rate: Positive = Field(1e-3, description="the peak of the schedule")
    b_learning_rate_ratio: Positive = Field(1.0, description="LoRA+: B learns so many times as fast as all else")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="over the whole run; linear and cosine end at zero"
    )
    warmup: Fraction = Field(0.0, description="share of the run in which the learning rate rises from zero")
    weight_decay: NonNegative = Field(0.0, description="of the optimiser")
    momentum: Fraction = Field(0.9, description="of sgd; adamw has its own")
    max_grad_norm: NonNegative = Field(1.0, description="gradients are clipped to this norm; 0 leaves them as they are")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description='of the computation (autocast); "auto": bfloat16 where CUDA has it, else float32',
    )
    device: Device = Field("auto", description=DEVICES)

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> "TrainSection":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("needs either steps or epochs, and not both")
        return self

    @model_validator(mode="after")
    def _keeps_what_it_can(self) -> "TrainSection":
        for other in ("compile", "packing"):
            if self.frozen_cache_megabytes and getattr(self, other):
                raise ValueError(f"frozen_cache_megabytes does not go with {other} = true; choose one of them")
        return self

    @property
    def shared_moments(self) -> Mapping[str, bool]:
        """What clients share of their optimiser's state: by torch's name, whether it is a tensor and not one number."""
        if self.optimizer_state != "shared":
            return {}
        if self.optimizer == "sgd":
            return {"momentum_buffer": True} if self.momentum else {}
        return {"exp_avg": True, "exp_avg_sq": self.shared_second_moments == "whole", "step": False}

    def most_steps(self, num_examples: int) -> int:
        """Return the most optimiser steps of a round for clients with so many examples or fewer."""
        if self.epochs is None:
            return self.steps or 0
        return max(1, math.ceil(self.epochs * max(1.0, num_examples / self.batch_size)))
