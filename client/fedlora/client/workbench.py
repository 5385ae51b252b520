"""What a worker keeps for its lifetime: the base model with its LoRA layers, the data, the trainer.

In a simulation one workbench serves all virtual clients; at a site there is one client. It answers
the requests of `fedlora.common.messages` and knows nothing of Flower.
"""

import time
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from fedlora.adapters import pack, unpack
from fedlora.client import interruption
from fedlora.common.config import RunConfig
from fedlora.common.errors import ConfigError, ModelError
from fedlora.common.messages import (
    LOSS_NOT_FINITE,
    OK,
    EvaluateReceipt,
    EvaluateRequest,
    InitialiseReceipt,
    InitialiseRequest,
    Score,
    SiteDescription,
    TrainReceipt,
    TrainRequest,
)
from fedlora.common.random_streams import stream_seed
from fedlora.training.base_model import BaseModel, load_base_model
from fedlora.training.data import FederatedData, equal_parts
from fedlora.training.peft_bridge import add_lora
from fedlora.training.tasks import Prepared
from fedlora.training.trainer import Evaluation, LocalTrainer, choose_device


class Workbench:
    """The resident model and data, and the answers to requests."""

    def __init__(
        self,
        config: RunConfig,
        data: FederatedData,
        base_model: BaseModel | None = None,
        *,
        has_own_held_out: bool = False,
        max_steps: int | None = None,
    ) -> None:
        """`has_own_held_out`: whether the data's test set is this site's alone; `max_steps`: what a site allows."""
        self._config = config
        self._has_own_held_out = has_own_held_out
        self._data = data
        self.client_names = tuple(sorted(data.clients))
        # Every worker draws the same fresh weights, so that any of them can give the run's first adapter.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(config.run.seed, purpose="initialise"))
            self._base = base_model or load_base_model(config, data.labels)
            resident = add_lora(
                self._base.module,
                config.lora,
                heads=self._base.heads,
                task_type=self._base.peft_task_type,
                name=config.model.name,
            )
        self._initial = pack(resident.read())
        device = choose_device(config.train.device)
        resident.peft_model.to(device)
        self._trainer: LocalTrainer[Any] = LocalTrainer(
            resident, self._base.task, config.train, device=device, max_steps=max_steps
        )
        self._prepared: dict[tuple[str, str], Prepared] = {}

    def describe(self, client: str) -> SiteDescription:
        """Return who `client` is and what it holds."""
        held = self._data.clients[client]
        return SiteDescription(
            client=client,
            num_examples=len(held.training),
            num_validation=len(held.validation),
            num_held_out=len(self._data.test),
            metric_name=self._base.task.metric_name,
            labels=self._data.labels,
            base_model=self._config.model.name,
            base_model_fingerprint=self._base.fingerprint,
            data_fingerprint=self._data.fingerprint,
            version=version("fedlora"),
            lora_rank=self._config.lora.rank_of(client),
            has_own_held_out=self._has_own_held_out,
        )

    def rehearse(self, client: str) -> None:
        """Do one real step of training, which leaves no trace: every request brings its own adapter.

        Raises:
            ModelError: its loss is not finite.
        """
        self._trainer.model.load(unpack(self._initial))
        result = self._trainer.train(
            self._prepare("training", client), progress=(0.0, 1.0), batch_seed=0, dropout_seed=0, max_steps=1
        )
        if not result.is_finite:
            raise ModelError(f"{self._config.model.name}: the loss of the first step is {result.loss}")

    def initialise(self, request: InitialiseRequest) -> InitialiseReceipt:
        """Return the run's first adapter."""
        if request.seed != self._config.run.seed:
            raise ConfigError(f"the run's seed is {request.seed}; this worker was built with {self._config.run.seed}")
        return InitialiseReceipt(self._initial)

    def train(self, client: str, request: TrainRequest) -> TrainReceipt:
        """Return the client's update after one round of training from the global adapter."""
        trainer, training = self._trainer, self._prepare("training", client)
        trainer.model.load(unpack(request.adapter), trains=request.trains)
        indices = self._validation_indices(client, request)
        before, seconds_before = self._judge(client, indices)
        result = trainer.train(
            training,
            progress=((request.round - 1) / request.num_rounds, request.round / request.num_rounds),
            batch_seed=stream_seed(request.seed, round=request.round, client=client, purpose="batches"),
            dropout_seed=stream_seed(request.seed, round=request.round, client=client, purpose="dropout"),
            is_unwanted=interruption.is_unwanted,
        )
        after, seconds_after = self._judge(client, indices) if result.is_finite else (None, 0.0)
        return TrainReceipt(
            run=request.run,
            round=request.round,
            attempt=request.attempt,
            client=client,
            status=OK if result.is_finite else LOSS_NOT_FINITE,
            num_examples=len(training),
            num_steps=result.num_steps,
            loss=result.loss,
            before=before,
            after=after,
            seconds={**result.seconds, "validation": seconds_before + seconds_after},
            adapter=pack(trainer.model.read(), without=request.frozen_factor) if result.is_finite else b"",
        )

    def evaluate(self, request: EvaluateRequest) -> EvaluateReceipt:
        """Return the adapter's scores on one shard of the held-out set."""
        groups = np.asarray(self._data.test.groups)
        every = np.arange(len(groups)) if request.num_examples is None else equal_parts(groups, request.num_examples)
        shard = every[request.shard :: request.num_shards]
        self._trainer.model.load(unpack(request.adapter))
        judged = self._trainer.evaluate(self._prepare("test", ""), shard, batch_size=self._config.evaluation.batch_size)
        predictions = dict(zip(shard.tolist(), judged.predictions.tolist(), strict=True))
        return EvaluateReceipt(
            request.run,
            request.round,
            request.shard,
            {str(group): _score(judged, groups[shard] == group) for group in np.unique(groups[shard])},
            predictions if request.with_predictions else {},
        )

    def _judge(self, client: str, indices: np.ndarray) -> tuple[Score | None, float]:
        """Return the score of the model's adapter on validation examples of `client`, and the seconds it took."""
        if len(indices) == 0:
            return None, 0.0
        began = time.perf_counter()
        prepared = self._prepare("validation", client)
        judged = self._trainer.evaluate(prepared, indices, batch_size=self._config.evaluation.batch_size)
        return _score(judged, np.ones(len(indices), dtype=bool)), time.perf_counter() - began

    def _validation_indices(self, client: str, request: TrainRequest) -> np.ndarray:
        """Return a fixed sample of the client's validation examples, the same in every round."""
        return equal_parts(self._data.clients[client].validation.groups, request.validation_examples)

    def _prepare(self, part: str, client: str) -> Prepared:
        """Return a data set in the task's form, prepared at its first use."""
        if (part, client) not in self._prepared:
            examples = self._data.test if part == "test" else getattr(self._data.clients[client], part)
            self._prepared[part, client] = self._base.task.prepare(examples)
        return self._prepared[part, client]


def _score(judged: Evaluation, chosen: np.ndarray) -> Score:
    return Score(int(chosen.sum()), float(judged.losses[chosen].mean()), float(judged.metrics[chosen].mean()))
