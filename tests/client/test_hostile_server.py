"""A server that means ill, over a real connection: what it learns of single examples, and what it makes a site do."""

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity

sys.path.append(str(Path(__file__).parent))

from hostile_server import HostileServer, serving, site_at_hostile_server

from fedlora.adapters import pack, unpack
from fedlora.client.site.limits import own_site
from fedlora.client.site.outbox import Outbox
from fedlora.client.site.participation import Participation
from fedlora.client.site.rounding import MOST_LOSS, step_of
from fedlora.client.site.session import Session
from fedlora.client.site.site_file import SiteConfig, for_site
from fedlora.client.worker.seat import WorkerSeat
from fedlora.client.worker.source import WorkbenchSource
from fedlora.client.worker.workbench import Workbench
from fedlora.common.config import RunConfig
from fedlora.common.errors import RunError
from fedlora.common.messages import EvaluateRequest, InitialiseRequest, Score, TrainRequest
from fedlora.common.run_file import to_toml
from fedlora.training.data import load_own_data
from fedlora.v1 import messages_pb2, session_pb2

MakeRun = Callable[..., RunConfig]

LABELS = ("0", "1", "2")
# A loss for each label, by which a server knows them apart, and the biases of a head that give them.
LOSSES = torch.tensor([0.5, 1.2, 2.3])

REFUSES = SiteConfig.model_validate(
    {"site": {"name": "north"}, "data": {"path": "never read"}, "limits": {"base_models": ["another"]}}
)

Asks = Callable[[EvaluateRequest | TrainRequest], Score | None]


@dataclass(frozen=True)
class Attacked:
    """A site at a hostile server, and what is true of it.

    Attributes:
        workbench: one over the same data that does whatever it is asked, as a site's worker would.
        labels: of the site's held-out examples in their places.
        validation_labels: of its validation examples.
    """

    server: HostileServer
    run: RunConfig
    workbench: Workbench
    labels: Sequence[int]
    validation_labels: Sequence[int]

    def crafted(self, scale: float = 1.0) -> bytes:
        """Return an adapter whose head gives each example a loss that depends on its label alone."""
        start = unpack(self.workbench.initialise(InitialiseRequest(0)).adapter)
        biases = -LOSSES * scale
        dense = {name: biases if tensor.ndim == 1 else torch.zeros_like(tensor) for name, tensor in start.dense.items()}
        return pack(replace(start, dense=dense))

    def worker(self, request: EvaluateRequest | TrainRequest) -> Score | None:
        """Return the score that a site's worker gives for a request as it stands."""
        if isinstance(request, TrainRequest):
            return self.workbench.train("chalk", request).before
        receipt = self.workbench.evaluate("chalk", request)
        return next(iter(receipt.groups.values()), None)

    def site(self, request: EvaluateRequest | TrainRequest) -> Score | None:
        """Return the score that the site gives over its connection."""
        assert isinstance(request.adapter, bytes)
        if isinstance(request, TrainRequest):
            asked = messages_pb2.TrainRequest(
                run=request.run, round=request.round, num_rounds=request.num_rounds, trains=["A", "B"],
                validation_examples=request.validation_examples,
            )  # fmt: skip
            before = self.server.ask(asked, request.adapter).train
            return _score(before.before) if before.HasField("before") else None
        answer = self.server.ask(_wire(request), request.adapter)
        found = [_score(score) for score in answer.evaluate.groups.values()]
        assert found or answer.failure.code == "withheld", answer
        return found[0] if found else None


def _wire(request: EvaluateRequest) -> messages_pb2.EvaluateRequest:
    return messages_pb2.EvaluateRequest(
        run=request.run, round=request.round, num_examples=request.num_examples, shard=request.shard,
        num_shards=request.num_shards, with_predictions=True, of_validation=request.of_validation,
    )  # fmt: skip


def _score(score: messages_pb2.Score) -> Score:
    return Score(score.num_examples, score.loss, score.metric)


@pytest.fixture(scope="module")
def attacked(
    vision_run: MakeRun, tiny_digits: Path, tiny_vision_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Attacked]:
    """Return a site with 24 held-out and 20 validation examples, ready at a hostile server; not for the bad ends."""
    folder = tmp_path_factory.mktemp("attacked")
    run = vision_run(
        run={"name": "attacked"}, data={"labels": LABELS}, federation={"rounds": 3}, evaluation={"client_examples": 20}
    )
    site = SiteConfig.model_validate(
        {
            "site": {"name": "chalk"},
            "data": {"path": str(tiny_digits), "only_group": "chalk", "test": 0.4, "validation": 0.56},
            "model": {"path": str(tiny_vision_model)},
            "limits": {"least_examples": 16},
            "worker": {"device": "cpu"},
        }
    )
    own_run = for_site(run, site, beside=folder)
    data = load_own_data(own_run, client="chalk", only_group="chalk")
    obedient = replace(own_site(run, site), most_loss=None)
    workbench = WorkbenchSource("obedient", own_run, site=obedient).load()
    with site_at_hostile_server(run, site, folder) as server:
        assert server.heard("readiness").readiness.HasField("description")
        labels = data.test.labels.tolist(), data.clients["chalk"].validation.labels.tolist()
        yield Attacked(server, run, workbench, *labels)


def read_by_shards(attacked: Attacked, ask: Asks) -> list[int | None]:
    """Read each held-out label by a shard of one example."""
    adapter, num = attacked.crafted(), len(attacked.labels)
    scores = [ask(EvaluateRequest("run", 1, None, place, num, False, adapter)) for place in range(num)]
    return [None if score is None else _label_of(score.loss) for score in scores]


def read_by_differences(attacked: Attacked, ask: Asks, *, of_validation: bool) -> list[int | None]:
    """Read labels by what one example more adds to the sum of the losses."""
    adapter = attacked.crafted()
    num = len(attacked.validation_labels if of_validation else attacked.labels)
    request = EvaluateRequest("run", 1, 0, 0, 1, False, adapter, of_validation=of_validation)
    return _from_sums(ask, [replace(request, num_examples=count) for count in range(1, num + 1)])


def read_by_trainings(attacked: Attacked, ask: Asks) -> list[int | None]:
    """Read validation labels by the scores before trainings: of one example, and of one more."""
    adapter = attacked.crafted()
    counts = {1: 1, 2: 19, 3: 20}
    return _from_sums(ask, [TrainRequest("run", round, 0, 0, 3, num, adapter) for round, num in counts.items()])


def _from_sums(ask: Asks, requests: Sequence[EvaluateRequest | TrainRequest]) -> list[int | None]:
    sums = [0.0]
    for request in requests:
        score = ask(request)
        sums.append(sums[-1] if score is None else score.loss * score.num_examples)
    return [_label_of(after - before) for before, after in itertools.pairwise(sums)]


def _label_of(loss: float) -> int | None:
    """Return the label whose loss this is, None where it is no label's."""
    losses = torch.logsumexp(-LOSSES, 0) + LOSSES
    distances = (losses - loss).abs()
    return int(distances.argmin()) if distances.min() < 1e-3 else None


def test_shards_of_one_example_read_every_label_of_a_worker_and_none_of_a_site(attacked: Attacked) -> None:
    assert read_by_shards(attacked, attacked.worker) == attacked.labels
    assert read_by_shards(attacked, attacked.site) == [None] * 24


@pytest.mark.parametrize("of_validation", [False, True])
def test_one_example_more_reads_labels_of_a_worker_and_none_of_a_site(attacked: Attacked, of_validation: bool) -> None:
    # Which examples are those of a smaller sample, the server cannot know; that it reads labels is bad enough.
    by_worker = read_by_differences(attacked, attacked.worker, of_validation=of_validation)
    assert by_worker[0] is not None
    by_site = read_by_differences(attacked, attacked.site, of_validation=of_validation)
    assert by_site == [None] * len(by_site)


def test_scores_before_trainings_read_labels_of_a_worker_and_none_of_a_site(attacked: Attacked) -> None:
    one, _, last = read_by_trainings(attacked, attacked.worker)
    assert {one, last} <= set(attacked.validation_labels)
    assert read_by_trainings(attacked, attacked.site) == [None] * 3


def test_what_leaves_is_rounded_and_one_loss_cannot_outweigh_all_others(attacked: Attacked) -> None:
    request = EvaluateRequest("run", 3, None, 0, 1, False, attacked.crafted(scale=1e6))
    by_worker, by_site = attacked.worker(request), attacked.site(request)
    assert by_worker is not None
    assert by_site is not None
    assert by_worker.loss > 1e5
    assert by_site.loss < MOST_LOSS
    assert by_site.num_examples == 24
    for value in (by_site.loss, by_site.metric):
        steps = value / step_of(24)
        assert steps == pytest.approx(round(steps))


def test_only_so_many_crafted_heads_are_judged_for_a_round_and_no_round_is_invented(attacked: Attacked) -> None:
    def judged(round: int, number: int) -> session_pb2.Answer:
        request = EvaluateRequest("run", round, None, 0, 1, False, b"")
        return attacked.server.ask(_wire(request), attacked.crafted(scale=1 + number / 8))

    answers = [judged(0, number) for number in range(11)]
    assert [answer.WhichOneof("content") for answer in answers] == ["evaluate"] * 8 + ["failure"] * 3
    assert {answer.failure.code for answer in answers[8:]} == {"withheld"}
    # What was judged tells nothing new.
    assert judged(0, 0).evaluate.groups.keys() == {"chalk"}
    assert judged(4, 0).failure.code == "run"


def test_more_than_an_adapter_of_the_run_can_be_is_not_fetched(attacked: Attacked) -> None:
    offer = attacked.server.offer(b"never read")
    offer.whole.size_bytes = 2 << 30
    asked = messages_pb2.TrainRequest(run="run", round=1, num_rounds=3, trains=["A", "B"])
    assert attacked.server.ask(asked, offer).failure.code == "adapter_too_large"
    assert offer.whole.sha256 not in attacked.server.read


def test_an_upload_that_never_counts_ends_and_the_site_goes_on(attacked: Attacked) -> None:
    server, adapter = attacked.server, attacked.crafted(scale=2)
    asked = messages_pb2.TrainRequest(run="run", round=3, num_rounds=3, trains=["A", "B"])
    server.received_bytes = 0
    for nothing in (lambda _came: 0, lambda _came: 1 << 40):
        server.committed = nothing
        assert server.ask(asked, adapter).failure.code == "not_taken"
    assert server.received_bytes < 6 * len(adapter)
    server.committed = lambda came: came
    asked.round = 2
    assert server.ask(asked, adapter).train.status == "ok"


def test_an_update_is_kept_for_as_long_as_the_servers_disk_is_full(
    attacked: Attacked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedlora.client.site.participation._LONGEST_PAUSE_SECONDS", 0.01)
    server = attacked.server
    server.num_full = 50
    asked = messages_pb2.TrainRequest(run="full", round=1, num_rounds=3, trains=["A", "B"])
    assert server.ask(asked, attacked.crafted(scale=3)).train.status == "ok"
    assert server.num_full == 0


@pytest.mark.parametrize(
    ("run_toml", "num_welcomes", "line"),
    [
        ("#" * (1 << 20 | 1), 1, "the server's run file has 1,048,577 characters; expected at most 1,048,576"),
        (to_toml(RunConfig()), 2, "the server has sent a second run over one connection"),
    ],
)
def test_a_welcome_that_no_honest_server_gives_ends_in_a_line(run_toml: str, num_welcomes: int, line: str) -> None:
    hostile = HostileServer(RunConfig())
    hostile.run_toml, hostile.num_welcomes = run_toml, num_welcomes
    made: list[RunConfig] = []

    def make_site(run: RunConfig) -> Participation:
        made.append(run)
        seat = WorkerSeat(never_made, {})
        return Participation(run, REFUSES, seat=seat, outbox=Outbox(Path("never")), is_paused=lambda: False)

    identity = TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id
    with serving(hostile) as address, pytest.raises(RunError, match=line):
        Session(address, "north", credentials=lambda: None, make_site=make_site).run()
    TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id = identity
    assert len(made) == num_welcomes - 1


def never_made() -> ClientApp:
    raise AssertionError("a worker was started for a run that the site refuses")


def test_another_choice_of_examples_is_not_told_of(attacked: Attacked) -> None:
    """By one example more, or by another seed, whose examples could be compared with those of the run before."""
    evaluation = attacked.run.evaluation.model_copy(update={"client_examples": 19})
    other_seed = attacked.run.run.model_copy(update={"seed": 1})
    for change in ({"evaluation": evaluation}, {"run": other_seed}):
        attacked.server.hang_up(attacked.run.model_copy(update=change))
        assert attacked.server.heard("readiness").readiness.HasField("description")
        request = EvaluateRequest("run", 1, None, 0, 1, False, attacked.crafted())
        assert attacked.site(request) is None
        assert attacked.site(replace(request, of_validation=True)) is None
