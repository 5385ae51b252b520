"""What a worker keeps where clients bring trainers of their own: one for each, over the run's LoRA layers.

It answers what the workbench answers. The data are the trainers', and so is the loop; see `training.own_trainer`.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np

from fedlora.adapters import Adapter, pack, unpack
from fedlora.client.worker import interruption
from fedlora.client.worker.client_moments import ClientMoments
from fedlora.client.worker.own_site import OwnSite
from fedlora.common.config import BASE_CHANGING_INITS, RunConfig
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
from fedlora.common.packed_file import packed_bytes
from fedlora.common.random_streams import stream_seed
from fedlora.common.same_fields import same_fields
from fedlora.training.data import equal_parts
from fedlora.training.optimizer_state import MomentsFolder
from fedlora.training.own_trainer.content import content_digest
from fedlora.training.own_trainer.judging import judged, taken
from fedlora.training.own_trainer.made import MakeTrainer, OwnTrainer, made_trainer
from fedlora.training.own_trainer.reference import load_reference
from fedlora.training.own_trainer.rounds import Round, steps_of_own, train_round
from fedlora.training.shared_moments import SharedMoments
from fedlora.training.trainer import TrainingResult


class TrainerBench:
    """The clients' trainers, made at their first use, and the answers to requests."""

    def __init__(
        self,
        config: RunConfig,
        make_trainer: MakeTrainer,
        client_names: Sequence[str],
        *,
        site: OwnSite | None = None,
        moments: MomentsFolder | None = None,
    ) -> None:
        """Read the run's base model, to compare the trainers' models with.

        Args:
            site: whose own trainer this is; None in a simulation.
            moments: where clients keep those of their optimisers, if the run asks for that.

        Raises:
            ConfigError: the run makes examples private.
        """
        if config.privacy.unit == "example":
            raise ConfigError(
                'privacy.unit = "example" needs the gradient of each example, and a trainer of one\'s own computes its '
                "own steps: what it sends would have no noise; take part with data that the site file names"
            )
        self.client_names = tuple(sorted(client_names))
        self._config = config
        self._make_trainer = make_trainer
        self._max_steps = None if site is None else site.max_steps
        self._max_seconds = None if site is None else site.max_seconds
        self._most_loss = None if site is None else site.most_loss
        self._moments = ClientMoments(config, moments, is_site=site is not None)
        self._reference = load_reference(config)
        self._own: dict[str, OwnTrainer] = {}

    def describe(self, client: str) -> SiteDescription:
        """Return who `client` is and what it holds."""
        own, config, reference = self._trainer(client), self._config, self._reference
        told = {"validation": config.evaluation.client_examples, "test": config.evaluation.round_examples or None}
        chosen = {part: taken(own.held[part], _sample(own, part, told[part])) for part in told if part in own.held}
        return SiteDescription(
            client=client,
            num_examples=own.num_examples("training"),
            num_validation=own.num_examples("validation"),
            num_held_out=own.num_examples("test"),
            metric_name=reference.metric_name,
            labels=config.data.labels,
            base_model=config.model.name,
            base_model_fingerprint=reference.fingerprint,
            data_fingerprint=content_digest([[part, *_each(examples)] for part, examples in chosen.items()]),
            version=version("fedlora"),
            lora_rank=config.lora.rank_of(client),
            has_own_held_out=True,
            fingerprints=reference.fingerprints,
            adapter_bytes=len(reference.initial),
            adapted_bytes=reference.adapted_bytes,
            step_examples=own.examples_a_step,
        )

    def rehearse(self, client: str) -> None:
        """Do one real step of training and judge a few examples, which leaves no trace in a later round.

        Raises:
            ModelError: the step's loss is not finite.
        """
        own = self._trainer(client)
        own.resident.load(unpack(self._reference.initial))
        result = train_round(
            own,
            Round(1, self._config.federation.rounds, 1, batch_seed=0, dropout_seed=0, moments={}, is_rehearsal=True),
            self._config.train,
            max_seconds=None,
        )
        if not result.is_finite:
            raise ModelError(f"{self._config.model.name}: the loss of the first step is {result.loss}")
        for part in ("validation", "test"):
            self._judge(own, part, own.trainer.args.eval_batch_size)

    def initialise(self, request: InitialiseRequest) -> InitialiseReceipt:
        """Return the run's first adapter."""
        if request.seed != self._config.run.seed:
            raise ConfigError(f"the run's seed is {request.seed}; this worker was built with {self._config.run.seed}")
        if (init := self._config.lora.init) not in BASE_CHANGING_INITS:
            return InitialiseReceipt(self._reference.initial)
        resident, initial = self._trainer(self.client_names[0]).resident, unpack(self._reference.initial)
        resident.load(initial)
        return InitialiseReceipt(pack(replace(resident.taken_out_of_base(init), config=initial.config)))

    def train(self, client: str, request: TrainRequest) -> TrainReceipt:
        """Return the client's update after one round of training from the global adapter."""
        own = self._trainer(client)
        given = unpack(packed_bytes(request.adapter))
        own.resident.load(given, trains=request.trains)
        shared = self._moments.shared(own.resident, given, request)
        before, seconds_before = self._judge(own, "validation", request.validation_examples)
        moments = self._moments.before(own.resident, client, request, shared)
        num_steps = steps_of_own(own, self._config.train)
        result = train_round(
            own,
            Round(
                request.round,
                request.num_rounds,
                num_steps if self._max_steps is None else min(num_steps, self._max_steps),
                batch_seed=stream_seed(request.seed, round=request.round, client=client, purpose="batches"),
                dropout_seed=stream_seed(request.seed, round=request.round, client=client, purpose="dropout"),
                moments=moments,
            ),
            self._config.train,
            max_seconds=self._max_seconds,
            is_unwanted=interruption.is_unwanted,
        )
        if result.is_finite:
            self._moments.keep(own.resident, client, request, before=moments, after=result.moments)
        after, seconds_after = (
            self._judge(own, "validation", request.validation_examples) if result.is_finite else (None, 0.0)
        )
        measured = same_fields(result, TrainReceipt)
        measured["seconds"] = {**result.seconds, "validation": seconds_before + seconds_after}
        return TrainReceipt(
            run=request.run,
            round=request.round,
            attempt=request.attempt,
            client=client,
            status=OK if result.is_finite else LOSS_NOT_FINITE,
            num_examples=own.num_examples("training"),
            before=before,
            after=after,
            adapter=_update(own, given, request, shared, result) if result.is_finite else b"",
            **measured,
        )

    def evaluate(self, client: str, request: EvaluateRequest) -> EvaluateReceipt:
        """Return the adapter's score on the client's own held-out or validation examples."""
        own = self._trainer(client)
        own.resident.load(unpack(packed_bytes(request.adapter)))
        part = "validation" if request.of_validation else "test"
        score, _ = self._judge(own, part, request.num_examples)
        return EvaluateReceipt(request.run, request.round, request.shard, {} if score is None else {client: score})

    def _trainer(self, client: str) -> OwnTrainer:
        """Return a client's trainer, made at its first use."""
        if client not in self._own:
            self._own[client] = made_trainer(self._make_trainer, client, self._config, self._reference)
        return self._own[client]

    def _judge(self, own: OwnTrainer, part: str, num_examples: int | None) -> tuple[Score | None, float]:
        """Return the score on at most so many examples of a part, None without any, and the seconds that it took."""
        indices, began = _sample(own, part, num_examples), time.perf_counter()
        if not len(indices):
            return None, 0.0
        score = judged(
            own,
            part,
            indices,
            task=self._config.task,
            metric_name=self._reference.metric_name,
            most_loss=self._most_loss,
        )
        return score, time.perf_counter() - began


def _update(
    own: OwnTrainer, given: Adapter, request: TrainRequest, shared: SharedMoments | None, result: TrainingResult
) -> bytes:
    """Return the trained adapter, packed, under the run's own configuration and not the script's."""
    condensed = None if shared is None else shared.condensed(result.moments)
    trained = replace(own.resident.read(), config=given.config)
    return pack(trained, without=request.frozen_factor, moments=condensed)


def _sample(own: OwnTrainer, part: str, num_examples: int | None) -> np.ndarray:
    """Return a fixed sample of a data set, the same in every round; None for all of it."""
    size = own.num_examples(part)
    return np.arange(size) if num_examples is None else equal_parts(np.zeros(size, dtype=np.int64), num_examples)


def _each(examples: Any) -> list[object]:
    return [examples[place] for place in range(len(examples))]
