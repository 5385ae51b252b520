"""What a worker keeps for its lifetime: the base model with its LoRA layers, the data, the trainer.

In a simulation one workbench serves all virtual clients; at a site there is one client. It answers
the requests of `fedlora.common.messages` and knows nothing of Flower.
"""

import logging
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, cast

import numpy as np
import torch

from fedlora.adapters import pack, unpack
from fedlora.client.worker import interruption
from fedlora.client.worker.client_moments import ClientMoments
from fedlora.client.worker.client_privacy import ClientPrivacy
from fedlora.client.worker.ledger import Ledger
from fedlora.client.worker.own_site import OwnSite
from fedlora.common.config import BASE_CHANGING_INITS, RunConfig
from fedlora.common.config import CausalLm as CausalLmSection
from fedlora.common.errors import ConfigError, DataError, ModelError, RunError
from fedlora.common.fates import checked, reasons
from fedlora.common.messages import (
    LOSS_NOT_FINITE,
    OK,
    EvaluateReceipt,
    EvaluateRequest,
    Generated,
    InitialiseReceipt,
    InitialiseRequest,
    Score,
    SiteDescription,
    TrainReceipt,
    TrainRequest,
    merge_generated,
)
from fedlora.common.packed_file import packed_bytes
from fedlora.common.random_streams import stream_seed
from fedlora.common.same_fields import same_fields
from fedlora.models.base_model import BaseModel, load_base_model
from fedlora.models.devices import ALL_GPUS, choose_device
from fedlora.training.data import Examples, FederatedData, equal_parts
from fedlora.training.data.examples import Conversation
from fedlora.training.optimizer_state import MomentsFolder
from fedlora.training.peft_bridge import add_lora
from fedlora.training.tasks import CausalLm, Prepared
from fedlora.training.tasks.causal_lm import PreparedConversations
from fedlora.training.tasks.generation import is_exact_match, rouge_l
from fedlora.training.trainer import Evaluation, LocalTrainer

logger = logging.getLogger(__name__)


class Workbench:
    """The resident model and data, and the answers to requests."""

    def __init__(
        self,
        config: RunConfig,
        data: FederatedData,
        base_model: BaseModel | None = None,
        *,
        site: OwnSite | None = None,
        moments: MomentsFolder | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        """Load the base model and put LoRA layers into it.

        Args:
            site: whose own data these are, the test set too; None in a simulation.
            moments: where clients keep those of their optimisers, if the run asks for that.
            ledger: of what trainings tell of examples, if the run makes these private.
        """
        self._config = config
        self._is_site = site is not None
        self._most_loss = None if site is None else site.most_loss
        self._data = data
        self._moments = ClientMoments(config, moments, is_site=self._is_site)
        self._privacy = ClientPrivacy(config, ledger, most_epsilon=None if site is None else site.epsilon)
        self.client_names = tuple(sorted(data.clients))
        # Every worker draws the same fresh weights, so that any of them can give the run's first adapter.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(config.run.seed, purpose="initialise"))
            self._base = base_model or load_base_model(config, data.labels)
            self._resident = add_lora(
                self._base.module,
                config.lora,
                heads=self._base.heads,
                task_type=self._base.peft_task_type,
                name=config.model.name,
                unreached=self._base.unreached,
            )
        initial = self._resident.read()
        self._initial = pack(initial)
        self._adapted_bytes = sum(4 * layer.B.shape[0] * layer.A.shape[1] for layer in initial.layers.values())
        if config.train.gradient_checkpointing:
            self._resident.save_memory()
        device = choose_device(config.train.device)
        # What is quantised or spread over GPUs is where it stays, its LoRA layers with it.
        if config.model.quantization == "none" and config.train.device != ALL_GPUS:
            self._resident.peft_model.to(device)
        self._trainer: LocalTrainer[Any] = LocalTrainer(
            self._resident,
            self._base.task,
            config.train,
            device=device,
            max_steps=None if site is None else site.max_steps,
            max_seconds=None if site is None else site.max_seconds,
            origin=f"{self._base.fingerprint} {config.model.model_dump_json()}",
        )
        self._prepared: dict[tuple[str, str], tuple[Examples, Prepared]] = {}
        self._fates: dict[tuple[str, str], dict[str, int]] = {}

    def describe(self, client: str) -> SiteDescription:
        """Return who `client` is and what it holds."""
        parts = {"training": client, "validation": client, "test": ""}
        prepared = {part: self._prepare(part, holder) for part, holder in parts.items()}
        notes = (note for found in prepared.values() for note in getattr(found, "notes", ()))
        return SiteDescription(
            client=client,
            num_examples=len(self._examples("training", client)),
            num_validation=len(self._examples("validation", client)),
            num_held_out=len(self._examples("test", "")),
            metric_name=self._base.task.metric_name,
            labels=self._data.labels,
            base_model=self._config.model.name,
            base_model_fingerprint=self._base.fingerprint,
            data_fingerprint=self._data.fingerprint,
            version=version("fedlora"),
            lora_rank=self._config.lora.rank_of(client),
            has_own_held_out=self._is_site,
            fingerprints=self._base.fingerprints,
            fates={part: fates for part, holder in parts.items() if (fates := self._fates[part, holder])},
            notes=tuple(dict.fromkeys((*(note.text for note in self._data.notes), *notes))),
            adapter_bytes=len(self._initial),
            adapted_bytes=self._adapted_bytes,
        )

    def rehearse(self, client: str) -> None:
        """Do one real step of training, which leaves no trace: every request brings its own adapter.

        Raises:
            ModelError: its loss is not finite.
        """
        self._trainer.model.load(unpack(self._initial))
        training = self._prepare("training", client)
        result = self._trainer.train(
            training,
            progress=(0.0, 1.0),
            batch_seed=0,
            dropout_seed=0,
            max_steps=1,
            privacy=self._privacy.steps(num_examples=len(training), num_steps=self._trainer.num_steps(len(training))),
        )
        if not result.is_finite:
            raise ModelError(f"{self._config.model.name}: the loss of the first step is {result.loss}")

    def initialise(self, request: InitialiseRequest) -> InitialiseReceipt:
        """Return the run's first adapter."""
        if request.seed != self._config.run.seed:
            raise ConfigError(f"the run's seed is {request.seed}; this worker was built with {self._config.run.seed}")
        # Of all workers the one that is asked for the first adapter tells, once for the run.
        for note in self._resident.notes:
            logger.warning("%s", note)
        init = self._config.lora.init
        if init in BASE_CHANGING_INITS:
            # Loaded first: an earlier round may have left its change in the base weights.
            self._trainer.model.load(unpack(self._initial))
            return InitialiseReceipt(pack(self._trainer.model.taken_out_of_base(init)))
        return InitialiseReceipt(self._initial)

    def train(self, client: str, request: TrainRequest) -> TrainReceipt:
        """Return the client's update after one round of training from the global adapter."""
        trainer, training = self._trainer, self._prepare("training", client)
        size, num_steps = len(training), self._trainer.num_steps(len(training))
        self._privacy.require_budget(request.run, client, num_examples=size, num_steps=num_steps)
        # Whole, and before its first step: that one breaks off, and when, tells of examples too.
        self._privacy.enter(request.run, client, num_examples=size, num_asked=num_steps, num_steps=num_steps)
        given = unpack(packed_bytes(request.adapter))
        trainer.model.load(given, trains=request.trains)
        shared = self._moments.shared(trainer.model, given, request)
        # What they score has no noise.
        num_validation = 0 if self._privacy.is_on else request.validation_examples
        indices = self._sample("validation", client, num_validation)
        before, seconds_before = self._judge(client, indices)
        moments = self._moments.before(trainer.model, client, request, shared)
        result = trainer.train(
            training,
            progress=((request.round - 1) / request.num_rounds, request.round / request.num_rounds),
            batch_seed=stream_seed(request.seed, round=request.round, client=client, purpose="batches"),
            dropout_seed=stream_seed(request.seed, round=request.round, client=client, purpose="dropout"),
            is_unwanted=interruption.is_unwanted,
            moments=moments,
            changes=self._changes(request),
            privacy=self._privacy.steps(num_examples=size, num_steps=num_steps),
        )
        if result.is_finite:
            self._moments.keep(trainer.model, client, request, before=moments, after=result.moments)
        condensed = shared.condensed(result.moments) if shared is not None else None
        after, seconds_after = self._judge(client, indices) if result.is_finite else (None, 0.0)
        measured = same_fields(result, TrainReceipt)
        measured["seconds"] = {**result.seconds, "validation": seconds_before + seconds_after}
        receipt = TrainReceipt(
            run=request.run,
            round=request.round,
            attempt=request.attempt,
            client=client,
            status=OK if result.is_finite else LOSS_NOT_FINITE,
            num_examples=len(training),
            before=before,
            after=after,
            adapter=pack(trainer.model.read(), without=request.frozen_factor, moments=condensed)
            if result.is_finite
            else b"",
            **measured,
        )
        return self._privacy.told(receipt)

    def _changes(self, request: TrainRequest) -> list[torch.Tensor]:
        """Return how the last round moved what is trained, from the request's adapter, which is loaded, and the former.

        Nothing in the first round, and where no step goes on with it.

        Raises:
            RunError: there is no former adapter, and the run needs one.
        """
        if self._config.train.client_momentum == 0 or request.round == 1:
            return []
        if not request.former:
            raise RunError(
                f"round {request.round} came without the adapter of the round before, which train.client_momentum = "
                f"{self._config.train.client_momentum:g} needs; set it to 0 where the server does not send that"
            )
        return self._trainer.model.change_since(unpack(packed_bytes(request.former)))

    def evaluate(self, client: str, request: EvaluateRequest) -> EvaluateReceipt:
        """Return the adapter's scores on one shard of the held-out set, or on `client`'s own validation examples."""
        self._trainer.model.load(unpack(packed_bytes(request.adapter)))
        if request.of_validation:
            indices = self._sample("validation", client, 0 if self._privacy.is_on else request.num_examples)
            score, _ = self._judge(client, indices)
            return EvaluateReceipt(request.run, request.round, 0, {} if score is None else {client: score})
        every, groups = self._sample("test", "", request.num_examples), self._examples("test", "").groups
        shard = every[request.shard :: request.num_shards]
        judged = self._trainer.evaluate(self._prepare("test", ""), shard, batch_size=self._config.evaluation_batch_size)
        predictions = dict(zip(shard.tolist(), judged.predictions.tolist(), strict=True))
        generated, answers = self._generated(shard[equal_parts(groups[shard], request.num_generated)])
        return EvaluateReceipt(
            request.run,
            request.round,
            request.shard,
            {str(group): self._score(judged, groups[shard] == group) for group in np.unique(groups[shard])},
            predictions if request.with_predictions and self._data.labels else {},
            generated,
            answers,
        )

    def _generated(self, places: np.ndarray) -> tuple[dict[str, Generated], dict[int, str]]:
        """Return how the loaded adapter's own answers to some held-out examples compare, by group, and the answers.

        The answers are by the examples' places in the whole held-out set, also those that are too long counted.
        """
        task, prepared = self._base.task, self._prepare("test", "")
        if len(places) == 0 or not isinstance(task, CausalLm):
            return {}, {}
        examples = self._examples("test", "").take(places)
        self._resident.set_training(False)
        answers = task.answers(
            self._resident.peft_model,
            cast(Sequence[Conversation], examples.inputs),
            max_new_tokens=self._config.evaluation.max_new_tokens,
        )
        references = task.references(cast(Sequence[Conversation], examples.inputs))
        parts: dict[str, list[Generated]] = {}
        for group, answer, reference in zip(examples.groups.tolist(), answers, references, strict=True):
            compared = Generated(1, float(is_exact_match(answer, reference)), rouge_l(answer, reference))
            parts.setdefault(group, []).append(compared)
        by_group = {group: merge_generated(found) for group, found in sorted(parts.items())}
        whole = cast(PreparedConversations, prepared).kept[places].tolist()
        return by_group, dict(zip(whole, answers, strict=True))

    def _judge(self, client: str, indices: np.ndarray) -> tuple[Score | None, float]:
        """Return the score of the model's adapter on validation examples of `client`, and the seconds it took."""
        if len(indices) == 0:
            return None, 0.0
        began = time.perf_counter()
        prepared = self._prepare("validation", client)
        judged = self._trainer.evaluate(prepared, indices, batch_size=self._config.evaluation_batch_size)
        return self._score(judged, np.ones(len(indices), dtype=bool)), time.perf_counter() - began

    def _score(self, judged: Evaluation, chosen: np.ndarray) -> Score:
        """Return the mean over the chosen examples, or over their tokens where losses are per token."""
        counts, losses = judged.token_counts[chosen], judged.losses[chosen]
        if self._most_loss is not None:
            losses = np.nan_to_num(losses, nan=self._most_loss).clip(max=self._most_loss)
        weights = counts if counts.any() else None
        return Score(
            int(chosen.sum()),
            float(np.average(losses, weights=weights)),
            float(np.average(judged.metrics[chosen], weights=weights)),
            int(counts.sum()),
        )

    def _sample(self, part: str, client: str, num_examples: int | None) -> np.ndarray:
        """Return a fixed sample of a data set, the same in every round; None for all of it."""
        groups = self._examples(part, client).groups
        return np.arange(len(groups)) if num_examples is None else equal_parts(groups, num_examples)

    def _examples(self, part: str, client: str) -> Examples:
        """Return the examples of a data set that the task can use."""
        return self._prepared_part(part, client)[0]

    def _prepare(self, part: str, client: str) -> Prepared:
        """Return a data set in the task's form."""
        return self._prepared_part(part, client)[1]

    def _prepared_part(self, part: str, client: str) -> tuple[Examples, Prepared]:
        """Return a data set and its form in the task, prepared at its first use.

        Raises:
            DataError: nothing of what a client trains on, or of what all are tested on, can be used.
        """
        if (part, client) not in self._prepared:
            examples = self._data.test if part == "test" else getattr(self._data.clients[client], part)
            prepared = self._base.task.prepare(examples)
            kept = getattr(prepared, "kept", None)
            used = examples if kept is None else examples.take(kept)
            fates = checked(getattr(prepared, "fates", {}), num_left_out=len(examples) - len(used))
            self._require_some(part, client, used, given=len(examples), why=reasons(fates))
            self._fates[part, client] = fates
            self._prepared[part, client] = used, prepared
        return self._prepared[part, client]

    def _require_some(self, part: str, client: str, used: Examples, *, given: int, why: str) -> None:
        """Check that something of a training or test set is left; of sites' own test sets the server sees to it."""
        if len(used) or not given or part == "validation" or (part == "test" and self._is_site):
            return
        whose = f"{client}: all {given:,} training examples" if client else f"data.test: all {given:,} test examples"
        remedy = (
            'raise task.max_length, or set task.too_long = "cut" (fedlora data preview shows the lengths)'
            if isinstance(self._config.task, CausalLmSection)
            else "give the task examples that it can use"
        )
        raise DataError(f"{whose} are left out: {why}; {remedy}")
