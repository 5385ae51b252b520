"""The strategy: plan a round, take the replies one by one, admit, aggregate, journal, and go on.

Flower's own `Strategy.start` waits for all replies and hands them over together, begins at round 1
whatever came before, and aggregates after its timeout whatever has come. Here `start` is ours: it
admits and journals each reply as it arrives, and goes on from the journal. What a round is stands in
`rounds`, what may enter it in `admission`; this file is the order of events.
"""

import math
import platform
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version

from flwr.app import MessageType
from flwr.serverapp import Grid

from fedlora.adapters import Adapter, LoraLayer, load_adapter, pack, unpack
from fedlora.aggregation import AggregationReport, Method
from fedlora.common.config import RunConfig
from fedlora.common.errors import AdapterError, RunError, StoreError
from fedlora.common.messages import (
    DescribeRequest,
    EvaluateReceipt,
    EvaluateRequest,
    Failure,
    InitialiseReceipt,
    InitialiseRequest,
    Score,
    SiteDescription,
    TrainReceipt,
    TrainRequest,
)
from fedlora.server import rounds
from fedlora.server.admission import Refusal, admit, outliers, unfit
from fedlora.server.conversation import Addressed, Answer, Receipt, ask
from fedlora.server.events import (
    EvaluationStarted,
    Listener,
    RoundEnded,
    RoundStarted,
    RunStarted,
    UpdateArrived,
    ignore,
)
from fedlora.server.round_report import ClientReport, HeldOutReport, RoundReport
from fedlora.server.store import RunFolder

_DESCRIBE = f"{MessageType.QUERY}.describe"
_INITIALISE = f"{MessageType.QUERY}.initialise"
_SHARD_EXAMPLES = 128
_WAIT_SECONDS = 60.0
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Site:
    """A client of the run: the Flower node it is reached at, and what it says of itself."""

    node: int
    description: SiteDescription


@dataclass(frozen=True)
class Federation:
    """Who takes part: the way to the sites, the sites by client name, and the run they agreed on."""

    grid: Grid
    sites: Mapping[str, Site]
    run_id: str


@dataclass(frozen=True)
class Collected:
    """The updates of a round that count with their receipts, and why the others do not."""

    cohort: Sequence[str] = ()
    updates: Mapping[str, Adapter] = field(default_factory=dict)
    receipts: Mapping[str, TrainReceipt] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    storing_seconds: float = 0.0


class LoraStrategy:
    """Runs all rounds of one run, from where its folder stands."""

    def __init__(
        self,
        config: RunConfig,
        method: Method,
        folder: RunFolder,
        *,
        num_sites: int,
        command: str,
        listener: Listener = ignore,
    ) -> None:
        """`num_sites` are waited for at the start, `command` goes into the manifest, `listener` hears what happens."""
        self._config = config
        self._method = method
        self._folder = folder
        self._num_sites = num_sites
        self._command = command
        self._listener = listener

    def start(self, grid: Grid) -> None:
        """Run the rounds that are left.

        Raises:
            RunError: too few sites came, they do not fit together, or a round stayed below its quorum.
            StoreError: the folder cannot be written, or base model or data are not those the run began with.
        """
        sites = self._meet(grid)
        federation = Federation(grid, sites, self._identify(sites))
        checkpoint = self._folder.latest()
        num_rounds = self._config.federation.rounds
        if checkpoint is None:
            self._listener(RunStarted(tuple(sites), num_rounds, 0, ()))
            adapter, number = self._begin(federation), 0
        else:
            adapter, number = checkpoint.adapter, checkpoint.round
            self._folder.publish(adapter, number)
            self._listener(RunStarted(tuple(sites), num_rounds, number + 1, checkpoint.reports))
        for following in range(number + 1, num_rounds + 1):
            adapter = self._round(federation, following, adapter)

    def _meet(self, grid: Grid) -> dict[str, Site]:
        """Return the run's sites by client name, once they have said who they are."""
        deadline = time.monotonic() + _WAIT_SECONDS
        while len(nodes := list(grid.get_node_ids())) < self._num_sites:
            if time.monotonic() > deadline:
                raise RunError(f"{len(nodes)} of {self._num_sites} clients have joined within {_WAIT_SECONDS:.0f} s")
            time.sleep(_POLL_SECONDS)
        requests = {f"node {node}": Addressed(node, lambda _attempt: DescribeRequest()) for node in nodes}
        sites: dict[str, Site] = {}
        for answer in ask(grid, requests, message_type=_DESCRIBE, expected=SiteDescription):
            description = _expect(answer)
            if description.client in sites:
                raise RunError(f"two clients are named {description.client!r}; each needs a name of its own")
            sites[description.client] = Site(requests[answer.key].node, description)
        _must_agree(sites)
        return dict(sorted(sites.items()))

    def _identify(self, sites: Mapping[str, Site]) -> str:
        """Return the run's id; a new run gets a manifest, a resumed one must have the same base model and data."""
        descriptions = [site.description for site in sites.values()]
        data = {description.client: description.data_fingerprint for description in descriptions}
        found = {
            "base_model": {"name": descriptions[0].base_model, "fingerprint": descriptions[0].base_model_fingerprint},
            "data": data if len(set(data.values())) > 1 else descriptions[0].data_fingerprint,
            "labels": list(descriptions[0].labels),
            "metric": descriptions[0].metric_name,
        }
        manifest = self._folder.manifest()
        if manifest is None:
            manifest = new_manifest(self._config, self._command) | found
            self._folder.write_manifest(manifest)
        for key, value in found.items():
            if manifest[key] != value:
                raise StoreError(
                    f"{self._folder.path}: {key} is not what the run began with: {manifest[key]}, found {value}; "
                    "restore it, or start a new run"
                )
        return str(manifest["run_id"])

    def _begin(self, federation: Federation) -> Adapter:
        """Return the first adapter, after round 0: its score before any training."""
        request = InitialiseRequest(federation.run_id, self._config.run.seed)
        client, site = next(iter(federation.sites.items()))
        asked = {client: Addressed(site.node, lambda _attempt: request)}
        (answer,) = ask(federation.grid, asked, message_type=_INITIALISE, expected=InitialiseReceipt)
        adapter = unpack(_expect(answer).adapter)
        if (given := self._config.federation.start_from) is not None:
            adapter = _given_start(given, like=adapter)
        self._finish(federation, 0, adapter, Collected(), None, {})
        return adapter

    def _round(self, federation: Federation, number: int, adapter: Adapter) -> Adapter:
        """Return the global adapter after one round."""
        settings = self._config.federation
        began = time.perf_counter()
        collected = self._collect(federation, number, adapter)
        trained = time.perf_counter()
        if len(collected.updates) < rounds.quorum_size(len(collected.cohort), settings.quorum):
            reasons = "; ".join(f"{client}: {reason}" for client, reason in sorted(collected.refused.items()))
            raise RunError(
                f"round {number}: {len(collected.updates)} of {len(collected.cohort)} updates were accepted, "
                f"fewer than federation.quorum = {settings.quorum:g} asks for ({reasons})"
            )
        result = rounds.complete(
            collected.updates,
            num_examples={client: receipt.num_examples for client, receipt in collected.receipts.items()},
            weighting=settings.weighting,
            method=self._method,
        )
        seconds = {
            "training": trained - began - collected.storing_seconds,
            "aggregation": time.perf_counter() - trained,
            "storing": collected.storing_seconds,
        }
        self._finish(federation, number, result.adapter, collected, result.report, seconds)
        return result.adapter

    def _collect(self, federation: Federation, number: int, adapter: Adapter) -> Collected:
        """Return the updates of the cohort: those that an earlier process journaled, and the others as they arrive."""
        cohort = self._plan(federation, number)
        make_request = self._train_requests(federation.run_id, number, pack(adapter))
        updates: dict[str, Adapter] = {}
        receipts: dict[str, TrainReceipt] = {}
        refused: dict[str, str] = {}
        storing_seconds = 0.0

        def take(client: str, attempt: int, content: TrainReceipt | Failure) -> Refusal | None:
            if isinstance(content, Failure):
                return Refusal(content.code, content.text)
            admitted = admit(content, request=make_request(attempt), client=client, reference=adapter)
            if isinstance(admitted, Refusal):
                return admitted
            updates[client], receipts[client] = admitted, content
            return None

        for client, receipt in self._folder.accepted(number).items():
            take(client, receipt.attempt, receipt)
        self._listener(RoundStarted(number, cohort, tuple(updates)))
        asked = {
            client: Addressed(federation.sites[client].node, make_request) for client in cohort if client not in updates
        }
        for answer in ask(federation.grid, asked, message_type=MessageType.TRAIN, expected=TrainReceipt):
            refusal = take(answer.key, answer.attempt, answer.content)
            if refusal is None:
                writing = time.perf_counter()
                self._folder.write_accepted(receipts[answer.key])
                storing_seconds += time.perf_counter() - writing
            else:
                refused[answer.key] = str(refusal)
            self._listener(UpdateArrived(number, answer.key, refused.get(answer.key, ""), _loss(answer.content)))
        limit = self._config.federation.norm_limit
        for client, outlier in outliers(updates, reference=adapter, norm_limit=limit).items():
            del updates[client]
            refused[client] = str(outlier)
            self._listener(UpdateArrived(number, client, refused[client], receipts.pop(client).loss))
        return Collected(cohort, updates, receipts, refused, storing_seconds)

    def _plan(self, federation: Federation, number: int) -> tuple[str, ...]:
        """Return the round's clients, journaled before any of them is asked."""
        planned = self._folder.plan(number)
        if planned is not None:
            return planned
        settings = self._config.federation
        cohort = rounds.cohort(
            list(federation.sites), fraction=settings.fraction, seed=self._config.run.seed, round=number
        )
        self._folder.write_plan(number, cohort)
        return cohort

    def _train_requests(self, run_id: str, number: int, packed: bytes) -> Callable[[int], TrainRequest]:
        """Return what makes the round's request for an attempt."""
        config = self._config
        request = TrainRequest(
            run=run_id,
            round=number,
            attempt=0,
            seed=config.run.seed,
            num_rounds=config.federation.rounds,
            validation_examples=config.evaluation.client_examples,
            adapter=packed,
        )
        return lambda attempt: replace(request, attempt=attempt)

    def _finish(
        self,
        federation: Federation,
        number: int,
        adapter: Adapter,
        collected: Collected,
        aggregation: AggregationReport | None,
        seconds: Mapping[str, float],
    ) -> None:
        """Judge the new global adapter, and record that the round is over."""
        began = time.perf_counter()
        held_out, predictions = self._judge(federation, number, adapter)
        judged = time.perf_counter()
        adapter_sha256 = self._folder.write_checkpoint(number, adapter, predictions=predictions)
        storing = seconds.get("storing", 0.0) + time.perf_counter() - judged
        received = collected.receipts
        report = RoundReport(
            round=number,
            cohort=tuple(collected.cohort),
            clients={client: _client_report(received[client]) for client in sorted(received)},
            refused=dict(sorted(collected.refused.items())),
            aggregation=aggregation,
            held_out=held_out,
            bytes_down=len(pack(adapter)) * len(collected.cohort),
            bytes_up=sum(len(receipt.adapter) for receipt in received.values()),
            seconds={**seconds, "evaluation": judged - began, "storing": storing},
            adapter_sha256=adapter_sha256,
        )
        self._folder.complete(report, adapter)
        self._listener(RoundEnded(report))

    def _judge(
        self, federation: Federation, number: int, adapter: Adapter
    ) -> tuple[HeldOutReport | None, dict[int, int]]:
        """Return the adapter's score on the held-out set, and at both ends of the run the predicted labels."""
        sites = list(federation.sites.values())
        num_held_out = sites[0].description.num_held_out
        is_complete = number in (0, self._config.federation.rounds)
        size = num_held_out if is_complete else min(self._config.evaluation.round_examples, num_held_out)
        if size == 0:
            return None, {}
        self._listener(EvaluationStarted(number))
        num_shards = math.ceil(size / _SHARD_EXAMPLES)
        packed = pack(adapter)
        asked = {
            f"shard {shard}": Addressed(
                sites[shard % len(sites)].node,
                lambda _attempt, shard=shard: EvaluateRequest(  # type: ignore[misc]
                    run=federation.run_id,
                    round=number,
                    num_examples=None if is_complete else size,
                    shard=shard,
                    num_shards=num_shards,
                    with_predictions=is_complete,
                    adapter=packed,
                ),
            )
            for shard in range(num_shards)
        }
        answers = ask(federation.grid, asked, message_type=MessageType.EVALUATE, expected=EvaluateReceipt)
        receipts = sorted((_expect(answer) for answer in answers), key=lambda receipt: receipt.shard)
        by_group: dict[str, list[Score]] = {}
        for receipt in receipts:
            for group, score in receipt.groups.items():
                by_group.setdefault(group, []).append(score)
        groups = {group: rounds.merge_scores(scores) for group, scores in sorted(by_group.items())}
        overall = rounds.merge_scores(list(groups.values()))
        predictions = {place: label for receipt in receipts for place, label in receipt.predictions.items()}
        return HeldOutReport(overall, groups, is_complete), dict(sorted(predictions.items()))


def new_manifest(config: RunConfig, command: str) -> dict[str, object]:
    """Return the part of a new run's manifest that is known before its sites are."""
    packages = ("fedlora", "flwr", "torch", "transformers", "peft", "numpy")
    return {
        "run_id": uuid.uuid4().hex,
        "name": config.run.name,
        "seed": config.run.seed,
        "command": command,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
    }


def _expect(answer: Answer[Receipt]) -> Receipt:
    """Return the receipt in `answer`.

    Raises:
        RunError: it is a failure, and the run cannot go on without the answer.
    """
    content = answer.content
    if isinstance(content, Failure):
        raise RunError(content.text or f"{answer.key} answered {content.code}; its own log says why")
    return content


def _must_agree(sites: Mapping[str, Site]) -> None:
    reference = next(iter(sites.values())).description
    for name, site in sites.items():
        for what in ("base_model_fingerprint", "labels", "version"):
            found, expected = getattr(site.description, what), getattr(reference, what)
            if found != expected:
                raise RunError(
                    f"{name} has {what} {found!r}, {reference.client} {expected!r}; all sites of a run need the same"
                )


def _given_start(source: str, *, like: Adapter) -> Adapter:
    """Return the adapter in the folder `source`, fit for this run; heads it does not have start fresh."""
    given = load_adapter(source)
    layers = {path: LoraLayer(layer.A.float(), layer.B.float(), layer.scaling) for path, layer in given.layers.items()}
    dense = {path: tensor.float() for path, tensor in given.dense.items()} or like.dense
    start = Adapter(layers, dense, like.config)
    if refusal := unfit(start, like):
        raise AdapterError(f"federation.start_from: {source} does not fit this run: {refusal}")
    return start


def _client_report(receipt: TrainReceipt) -> ClientReport:
    return ClientReport(
        num_examples=receipt.num_examples,
        num_steps=receipt.num_steps,
        loss=receipt.loss,
        before=receipt.before,
        after=receipt.after,
        seconds=receipt.seconds,
    )


def _loss(content: TrainReceipt | Failure) -> float:
    return content.loss if isinstance(content, TrainReceipt) else math.nan
