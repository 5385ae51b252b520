"""A strategy for other people's ServerApps: FedAvg's rounds and result, our methods, and a gate before them.

Flower's own FedAvg averages whatever comes: one client with a NaN makes the model NaN, a tensor of shape (1, n) is
spread over (m, n), a weight of 1e12 takes the model over, and an extra key ends the run. Here such replies are refused
one by one, and the round goes on without them.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypedDict, Unpack

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fedlora.adapters import Adapter, load_adapter
from fedlora.adapters.keys import to_state_dict
from fedlora.adapters.peft_format import HasToDict
from fedlora.adapters.settings import fitted_config, plain_config
from fedlora.aggregation import Aggregate, AggregationReport, Robust, RoundPlan, ServerOptimizer, aggregate
from fedlora.aggregation.server_optimizer import require_step
from fedlora.common.bounds import MAX_EXAMPLES
from fedlora.common.errors import AdapterError
from fedlora.flower.metrics import averageable
from fedlora.flower.replies import (
    Refused,
    Update,
    in_fixed_order,
    judge,
    read_update,
    read_weight,
    tensors_in,
)
from fedlora.methods import Method, MethodState, default_method, names_of
from fedlora.server.rounds.starts import start_of_round

TRAINS_KEY = "lora-trains"
NUM_REFUSED_KEY = "num-refused"

# Flower's own: it has a handler already, and its level is what users set to hear of a run.
_log = logging.getLogger("flwr")


class FedAvgArguments(TypedDict, total=False):
    """The arguments of Flower's FedAvg."""

    fraction_train: float
    fraction_evaluate: float
    min_train_nodes: int
    min_evaluate_nodes: int
    min_available_nodes: int
    weighted_by_key: str
    arrayrecord_key: str
    configrecord_key: str
    train_metrics_aggr_fn: Callable[[list[RecordDict], str], MetricRecord] | None
    evaluate_metrics_aggr_fn: Callable[[list[RecordDict], str], MetricRecord] | None


@dataclass(frozen=True)
class TrainReport:
    """What became of the replies to one round of training.

    Attributes:
        accepted: the node ids whose updates count.
        refused: the other nodes with the reasons.
        aggregation: the error of plain averaging, and of the method; None where the arrays stayed as they were.
        failure: why updates that count could not be aggregated: fewer than `robust` needs, as a rule.
    """

    accepted: tuple[int, ...]
    refused: tuple[Refused, ...]
    aggregation: AggregationReport | None
    failure: str = ""


@dataclass(frozen=True, eq=False)
class _Asked:
    """What the nodes were asked in a round."""

    start: Adapter
    plan: RoundPlan
    messages: tuple[Message, ...]


class LoraFairStrategy(FedAvg):
    """Flower's FedAvg for LoRA adapters, with an aggregation method that knows what A and B are.

    `initial_arrays` are what PEFT's `get_peft_model_state_dict` gives, in float32, and so is what clients send back:
    one array for each tensor under PEFT's key names. What a module that is trained whole counts (a batch norm its
    batches) stays a whole number, and becomes the rounded mean. A reply with other keys, shapes or dtypes, with values
    that are not finite, or with a weight that is not positive or above `max_weight` is refused with a warning, and the
    round goes on. Where nothing is left, the arrays stay as they are.

    A metric that is NaN or infinite at one client is left out of the mean with a warning, and the others' counts. Each
    round's MetricRecord has `num-refused`, and in training `lora-error-before` and `lora-error-after`: the errors
    of plain averaging and of the method, relative to the ideal update.

    The train ConfigRecord has `lora-trains`: "A,B", or the only factor that clients train in this round. Under a method
    that changes the base weights the record of arrays has further ones, `base_change.<layer>.A` and `.B`, to be added
    to them. `fedlora.training.flower_round.load_round` does on a client what both ask for; the other methods need
    nothing of the kind.

    Attributes:
        adapter: the newest global adapter; `fedlora.adapters.save_adapter` writes it as a PEFT folder.
        reports: by round, which replies counted and what averaging them got wrong.
    """

    adapter: Adapter
    reports: dict[int, TrainReport]

    def __init__(
        self,
        *,
        lora_config: HasToDict | Mapping[str, object],
        method: Method | None = None,
        robust: Robust | None = None,
        server_optimizer: ServerOptimizer | None = None,
        max_weight: float = MAX_EXAMPLES,
        seed: int = 0,
        **fedavg: Unpack[FedAvgArguments],
    ) -> None:
        """Return a strategy whose further arguments are those of Flower's FedAvg.

        Args:
            lora_config: the LoraConfig of the clients' models, or its content.
            method: how updates become one adapter; `fedlora.aggregation` has them. LoRA-FAIR's way if None.
            robust: what is done to the updates first, against attackers.
            server_optimizer: how the server steps to what the method makes of the updates: FedAvgM, FedAdam, FedYogi.
            max_weight: the most that one client's `weighted_by_key` may claim.
            seed: of the fresh pairs that some methods draw in every round.

        Raises:
            AdapterError: `lora_config` asks for DoRA, under a method that changes the base weights.
            ValueError: the optimiser does not go with the method.
        """
        super().__init__(**fedavg)
        content = lora_config if isinstance(lora_config, Mapping) else lora_config.to_dict()
        self.lora_config = plain_config(content)
        self.method = method or default_method()
        self.robust = robust
        self.server_optimizer = server_optimizer
        if server_optimizer is not None:
            require_step(self.method)
        self.max_weight = max_weight
        self.seed = seed
        self.reports = {}
        self._state: MethodState = {}
        self._asked: _Asked | None = None
        self._evaluate_messages: tuple[Message, ...] = ()
        if not self.method.takes_dora() and self.lora_config.get("use_dora"):
            raise AdapterError(
                f"lora_config has use_dora, and {self.method.name} cannot move its magnitudes into the base weights; "
                f"choose a method that leaves them alone: {names_of(lambda kind: kind.takes_dora())}"
            )

    def summary(self) -> None:
        """Log the method and FedAvg's settings."""
        _log.info("\t├──> Aggregation: %s", self.method)
        if self.method.changes_base:
            _log.info("\t│\t└──It changes the base weights: clients must use fedlora.training.flower_round.load_round")
        super().summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the round's messages: where it starts from, and which factors it trains.

        Raises:
            AdapterError: `arrays` are not those of a PEFT model with this LoraConfig.
        """
        plan = self.method.plan(server_round)
        start = start_of_round(self._adapter_in(arrays), plan=plan, seed=self.seed, round=server_round)
        config[TRAINS_KEY] = ",".join(plan.trains)
        messages = tuple(super().configure_train(server_round, _record(start), config, grid))
        self.adapter, self._asked = start, _Asked(start, plan, messages)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the next global arrays and the clients' mean metrics, from the replies that count."""
        if self._asked is None:
            raise ValueError("aggregate_train before configure_train, which says what the replies answer")
        asked, self._asked = self._asked, None
        sent = to_state_dict(replace(asked.start, base_change={}))
        judged = judge(
            replies,
            asked.messages,
            lambda content: read_update(
                content,
                sent=sent,
                trains=asked.plan.trains,
                weighted_by=self.weighted_by_key,
                max_weight=self.max_weight,
            ),
        )
        if not judged.accepted and not judged.refused:
            return None, None
        _tell("aggregate_train", len(judged.accepted), judged.refused)
        arrays, metrics, report, failure = None, MetricRecord(), None, ""
        if judged.accepted:
            updates = in_fixed_order(judged.accepted)
            contents = [(node, update.content) for node, update in updates]
            metrics = self._mean_metrics("aggregate_train", contents, self.train_metrics_aggr_fn)
            result, failure = self._aggregate(updates, asked.start)
            if result is not None:
                self.adapter, report = result.adapter, result.report
                arrays = _record(result.adapter)
                metrics["lora-error-before"] = report.error_before
                metrics["lora-error-after"] = report.error_after
        metrics[NUM_REFUSED_KEY] = len(judged.refused)
        self.reports[server_round] = TrainReport(tuple(judged.accepted), tuple(judged.refused), report, failure)
        return arrays, metrics

    def _aggregate(self, updates: Sequence[tuple[int, Update]], start: Adapter) -> tuple[Aggregate | None, str]:
        """Return what the updates by node id become, or why nothing does."""
        # `aggregate` goes by the order of names.
        digits = len(str(len(updates)))
        named = {f"{place:0{digits}} (node {node})": update for place, (node, update) in enumerate(updates)}
        try:
            result = aggregate(
                {name: load_adapter(update.tensors, self.lora_config) for name, update in named.items()},
                weights={name: update.weight for name, update in named.items()},
                method=self.method,
                reference=start,
                state=self._state,
                robust=self.robust,
                server_optimizer=self.server_optimizer,
            )
        except AdapterError as error:
            _log.warning("aggregate_train: the arrays stay as they are: %s", error)
            return None, str(error)
        self._state = result.state
        return result, ""

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the messages that ask for an evaluation of the global arrays."""
        self._evaluate_messages = tuple(super().configure_evaluate(server_round, arrays, config, grid))
        return self._evaluate_messages

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:  # noqa: ARG002
        """Return the clients' mean metrics, from the replies that count."""

        def read(content: RecordDict) -> RecordDict:
            read_weight(content, weighted_by=self.weighted_by_key, max_weight=self.max_weight)
            return content

        judged = judge(replies, self._evaluate_messages, read)
        if not judged.accepted and not judged.refused:
            return None
        _tell("aggregate_evaluate", len(judged.accepted), judged.refused)
        metrics = MetricRecord()
        if contents := list(judged.accepted.items()):
            metrics = self._mean_metrics("aggregate_evaluate", contents, self.evaluate_metrics_aggr_fn)
        metrics[NUM_REFUSED_KEY] = len(judged.refused)
        return metrics

    def _mean_metrics(
        self,
        hook: str,
        contents: Sequence[tuple[int, RecordDict]],
        mean_of: Callable[[list[RecordDict], str], MetricRecord],
    ) -> MetricRecord:
        """Return the mean of the nodes' metrics; what is not finite, or not every node's, is left out and told of."""
        metrics = averageable(contents, weighted_by=self.weighted_by_key)
        for words in metrics.left_out:
            _log.warning("%s: %s", hook, words)
        found = mean_of(list(metrics.contents), self.weighted_by_key)
        for name, mean in metrics.means.items():
            if name not in found:
                found[name] = mean
        return found

    def _adapter_in(self, arrays: ArrayRecord) -> Adapter:
        """Return the adapter in the arrays that a round is asked to start from."""
        tensors = tensors_in(arrays)
        adapter = load_adapter(tensors, self.lora_config)
        if other := sorted(tensors.keys() ^ to_state_dict(adapter).keys()):
            raise AdapterError(
                f"the arrays have {len(other)} keys that are not PEFT's for a LoRA adapter, the first {other[0]}; "
                "expected ArrayRecord(get_peft_model_state_dict(model, save_embedding_layers=False))"
            )
        if fitted_config(self.lora_config, adapter.layers) != self.lora_config:
            ranks = sorted({layer.rank for layer in adapter.layers.values()})
            raise AdapterError(
                f"the arrays have pairs of rank {ranks}, and lora_config says r = {self.lora_config.get('r')}, "
                f"rank_pattern = {self.lora_config.get('rank_pattern')}; give the strategy the model's own LoraConfig"
            )
        return adapter


def _record(adapter: Adapter) -> ArrayRecord:
    """Return one array for each tensor, under PEFT's key names, float32 but for what counts something."""
    tensors = to_state_dict(adapter).items()
    return ArrayRecord({key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in tensors})


def _tell(hook: str, num_accepted: int, refused: Sequence[Refused]) -> None:
    _log.info("%s: %d replies count, %d are refused", hook, num_accepted, len(refused))
    for reply in refused:
        _log.warning("%s: node %d is left out: %s", hook, reply.node_id, reply.reason)
