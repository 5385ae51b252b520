"""Requests and their answers, over a small Grid of this file's that says what it is told to."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedlora.common.config import RunConfig
from fedlora.common.errors import RunError
from fedlora.common.messages import (
    WORKER_DIED,
    EvaluateReceipt,
    EvaluateRequest,
    Failure,
    Score,
    SiteDescription,
    TrainReceipt,
    TrainRequest,
)
from fedlora.common.packed_file import PackedFile
from fedlora.common.records import from_record, to_record
from fedlora.server.disk.store import RunFolder
from fedlora.server.record.events import Event, Noted
from fedlora.server.rounds.evaluation import judge
from fedlora.server.rounds.federation import Federation
from fedlora.server.rounds.inquiry import Addressed, Answer, Inquiry, ask, expect, never
from fedlora.server.sites import FlowerSites

Reply = RecordDict | Error


class PatientGrid(Grid):
    """A Grid that answers one message at a pull, the newest first, with what `reply` makes of it."""

    def __init__(self, reply: Callable[[TrainRequest, int], Reply], *, silent_seconds: float = 0.0) -> None:
        self._reply = reply
        self._waiting: list[Message] = []
        self._silent_until = time.monotonic() + silent_seconds
        self.num_pulls = 0
        self.pushed: list[tuple[int, int]] = []

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        for message in messages:
            self.pushed.append((message.metadata.dst_node_id, from_record(message.content, TrainRequest).attempt))
            message.metadata.__dict__["_message_id"] = f"message {len(self.pushed)}"
            self._waiting.append(message)
            yield message.metadata.message_id

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self.num_pulls += 1
        if time.monotonic() < self._silent_until:
            return
        message = self._waiting.pop()
        assert message.metadata.message_id in list(message_ids)
        yield Message(
            self._reply(from_record(message.content, TrainRequest), message.metadata.dst_node_id), reply_to=message
        )

    def set_run(self, run: Run) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Run:
        raise NotImplementedError

    def create_message(self, *args: object, **kwargs: object) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        raise NotImplementedError

    def send_and_receive(self, *args: object, **kwargs: object) -> Iterable[Message]:
        raise NotImplementedError


@pytest.fixture(autouse=True)
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower refuses to make a message outside of a task."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def request(attempt: int) -> TrainRequest:
    return TrainRequest("run", 1, attempt, seed=0, num_rounds=1, validation_examples=0, adapter=b"tensors")


def round_request(number: int, attempt: int) -> TrainRequest:
    return replace(request(attempt), round=number)


def receipt(given: TrainRequest, node: int) -> TrainReceipt:
    return TrainReceipt(given.run, given.round, given.attempt, f"client {node}", "ok", loss=0.5, adapter=given.adapter)


def honest(given: TrainRequest, node: int) -> RecordDict:
    return to_record(receipt(given, node))


def conversation(grid: Grid, num_clients: int = 3) -> Iterator[Answer[TrainReceipt]]:
    nodes = {f"client {node}": node for node in range(1, num_clients + 1)}
    sites = FlowerSites(grid, num_sites=num_clients, nodes=nodes)
    return ask(sites, {name: Addressed(name, request) for name in nodes}, expected=TrainReceipt, deadline=never)


def test_answers_come_one_by_one_in_the_order_of_their_arrival() -> None:
    grid = PatientGrid(honest)
    answers = conversation(grid)
    assert grid.pushed == []
    first = next(answers)
    assert first == Answer("client 3", 0, receipt(request(0), 3))
    assert (grid.num_pulls, len(grid.pushed)) == (1, 3)
    assert [answer.key for answer in answers] == ["client 2", "client 1"]


def test_nobody_asked_is_nobody_waited_for() -> None:
    grid = PatientGrid(honest)
    assert list(conversation(grid, num_clients=0)) == []
    assert grid.num_pulls == 0


@pytest.mark.parametrize(
    "died",
    [
        Error(8, "the worker process died"),
        Error(5),
        to_record(Failure(WORKER_DIED, "the worker process died"), with_local=True),
    ],
    ids=["died", "node gone", "said by its parent"],
)
def test_a_request_whose_worker_died_is_asked_again_up_to_three_times(died: Reply) -> None:
    def dies_twice(given: TrainRequest, node: int) -> Reply:
        return died if node == 2 and given.attempt < 2 else honest(given, node)

    def always_dies(given: TrainRequest, node: int) -> Reply:
        return died if node == 2 else honest(given, node)

    grid = PatientGrid(dies_twice)
    answers = {answer.key: answer for answer in conversation(grid)}
    assert answers["client 2"] == Answer("client 2", 2, receipt(request(2), 2))
    assert sorted(grid.pushed) == [(1, 0), (2, 0), (2, 1), (2, 2), (3, 0)]

    grid = PatientGrid(always_dies)
    answers = {answer.key: answer for answer in conversation(grid)}
    content = answers["client 2"].content
    assert isinstance(content, Failure)
    assert content.code == WORKER_DIED
    assert content.text
    assert answers["client 2"].attempt == 2
    assert isinstance(answers["client 1"].content, TrainReceipt)
    assert sorted(grid.pushed) == [(1, 0), (2, 0), (2, 1), (2, 2), (3, 0)]


@pytest.mark.parametrize("code", ["out_of_memory", "internal", "data"])
def test_any_other_failure_is_an_answer(code: str) -> None:
    grid = PatientGrid(lambda _given, _node: to_record(Failure(code, "why"), with_local=True))
    assert list(conversation(grid, 1)) == [Answer("client 1", 0, Failure(code, "why"))]


def test_a_code_of_another_form_does_not_pass() -> None:
    grid = PatientGrid(lambda _given, _node: to_record(Failure("<b>anything</b>", "why"), with_local=True))
    (answer,) = conversation(grid, 1)
    assert isinstance(answer.content, Failure)
    assert answer.content.code == "unreadable"


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"fedlora": ConfigRecord({"type": "TrainReceipt", "message": b"{"})}),
        RecordDict({"fedlora": ConfigRecord({"type": "SiteDescription", "message": b""})}),
        to_record(request(0)),
    ],
    ids=["empty", "torn", "another receipt", "a request"],
)
def test_an_answer_that_cannot_be_read_is_a_failure_of_that_client_alone(content: RecordDict) -> None:
    grid = PatientGrid(lambda given, node: content if node == 2 else honest(given, node))
    answers = {answer.key: answer.content for answer in conversation(grid)}
    failure = answers["client 2"]
    assert isinstance(failure, Failure)
    assert failure.code == "unreadable"
    assert isinstance(answers["client 1"], TrainReceipt)


def test_a_grid_that_answers_at_once_is_not_asked_without_a_pause() -> None:
    grid = PatientGrid(honest, silent_seconds=0.5)
    assert len(list(conversation(grid))) == 3
    assert grid.num_pulls < 12


def test_an_expected_receipt_is_returned_and_a_failure_ends_the_run_with_its_text() -> None:
    answer = Answer("client 1", 0, receipt(request(0), 1))
    assert expect(answer) == receipt(request(0), 1)
    for failure, message in [
        (Failure("data", "digits.npz: no such file"), "^digits.npz: no such file$"),
        (Failure("data"), "^client 1 answered data; its own log says why$"),
    ]:
        with pytest.raises(RunError, match=message):
            expect(Answer("client 1", 0, failure))


def test_a_worker_that_dies_as_it_is_met_is_asked_again() -> None:
    description = SiteDescription(
        client="north", num_examples=1, num_validation=0, num_held_out=0, metric_name="accuracy", labels=("a", "b"),
        base_model="m", base_model_fingerprint="f", data_fingerprint="d", version="1", lora_rank=2,
    )  # fmt: skip
    replies: list[Reply] = [Error(8, "died"), Error(8, "died"), to_record(description, with_local=True)]

    class Meeting(PatientGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            for message in messages:
                self.pushed.append((message.metadata.dst_node_id, 0))
                message.metadata.__dict__["_message_id"] = f"message {len(self.pushed)}"
                self._waiting.append(message)
                yield message.metadata.message_id

        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            message = self._waiting.pop()
            assert message.metadata.message_id in list(message_ids)
            yield Message(replies.pop(0), reply_to=message)  # type: ignore[call-overload]

        def get_node_ids(self) -> Iterable[int]:
            return [1]

    assert FlowerSites(Meeting(honest), num_sites=1).descriptions() == {"north": description}
    replies += [Error(8, "died")] * 3
    with pytest.raises(RunError, match="died"):
        FlowerSites(Meeting(honest), num_sites=1).descriptions()


def sites_over(grid: Grid, num_clients: int = 3) -> FlowerSites:
    nodes = {f"client {node}": node for node in range(1, num_clients + 1)}
    return FlowerSites(grid, num_sites=num_clients, nodes=nodes)


def test_several_inquiries_are_out_at_once_and_each_takes_its_own_answers() -> None:
    class Unordered(PatientGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            wanted = set(message_ids)
            found = [message for message in self._waiting if message.metadata.message_id in wanted][:1]
            self._waiting = [message for message in self._waiting if message not in found]
            for message in found:
                given = from_record(message.content, TrainRequest)
                yield Message(honest(given, message.metadata.dst_node_id), reply_to=message)

    sites = sites_over(Unordered(honest))
    inquiries = [
        Inquiry(
            sites,
            {f"client {node}": Addressed(f"client {node}", partial(round_request, number)) for node in (1, 2, 3)},
            expected=TrainReceipt,
            deadline=never,
        )
        for number in (1, 2, 3)
    ]
    rounds: dict[int, list[tuple[str, int]]] = {1: [], 2: [], 3: []}
    while any(inquiry.waiting for inquiry in inquiries):
        for number, inquiry in reversed(list(enumerate(inquiries, 1))):
            for answer in inquiry.poll():
                rounds[number].append((answer.key, expect(answer).round))
    for number, answers in rounds.items():
        assert sorted(answers) == [("client 1", number), ("client 2", number), ("client 3", number)]


def test_a_later_phase_asks_those_that_have_answered_and_nobody_else() -> None:
    def one_fails(given: TrainRequest, node: int) -> Reply:
        return to_record(Failure("data", "why")) if node == 2 else honest(given, node)

    grid = PatientGrid(one_fails)
    sites = sites_over(grid)
    first = Inquiry(
        sites,
        {name: Addressed(name, request) for name in ("client 1", "client 2", "client 3")},
        expected=TrainReceipt,
        deadline=never,
    )
    assert len(list(first.answers())) == 3
    losses: list[str] = []

    def follow(client: str, attempt: int) -> TrainRequest:
        losses.append(client)
        return round_request(2, attempt)

    second = first.next_phase(follow, expected=TrainReceipt, deadline=never)
    assert losses == ["client 1", "client 3"]
    assert [(answer.key, expect(answer).round) for answer in second.answers()] == [("client 3", 2), ("client 1", 2)]
    third = second.next_phase(follow, expected=TrainReceipt, deadline=never)
    assert sorted(third.waiting) == ["client 1", "client 3"]


def test_a_later_phase_withdraws_what_the_one_before_still_waits_for() -> None:
    class Silent(PatientGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            wanted = set(message_ids)
            for message in list(self._waiting):
                if message.metadata.dst_node_id != 2 and message.metadata.message_id in wanted:
                    self._waiting.remove(message)
                    given = from_record(message.content, TrainRequest)
                    yield Message(honest(given, message.metadata.dst_node_id), reply_to=message)

    sites = sites_over(Silent(honest))
    first = Inquiry(
        sites,
        {name: Addressed(name, request) for name in ("client 1", "client 2", "client 3")},
        expected=TrainReceipt,
        deadline=never,
    )
    assert len(list(first.answers(lambda waiting: len(waiting) == 1))) == 2
    second = first.next_phase(lambda _client, attempt: round_request(2, attempt), expected=TrainReceipt, deadline=never)
    assert not first.waiting
    assert sorted(answer.key for answer in second.answers()) == ["client 1", "client 3"]


@pytest.mark.parametrize("which", ["adapter", "former"])
def test_a_late_request_whose_adapter_the_journal_keeps_no_more_is_not_sent_again(tmp_path: Path, which: str) -> None:
    path = tmp_path / "adapter"
    path.write_bytes(b"tensors")

    def late(attempt: int) -> TrainRequest:
        return replace(request(attempt), **{which: PackedFile(path, 7)})

    grid = PatientGrid(lambda _given, _node: to_record(Failure(WORKER_DIED)))
    inquiry = Inquiry(
        sites_over(grid, 1), {"client 1": Addressed("client 1", late)}, expected=TrainReceipt, deadline=never
    )
    assert inquiry.poll() == []
    assert grid.pushed == [(1, 0), (1, 1)]
    path.unlink()
    (answer,) = inquiry.poll()
    assert answer == Answer("client 1", 1, Failure(WORKER_DIED))


class HalfDeadGrid(PatientGrid):
    """A Grid of two nodes with one held-out set, of which the first judges nothing."""

    def __init__(self) -> None:
        super().__init__(honest)
        self.asked: list[tuple[int, int]] = []

    def get_node_ids(self) -> Iterable[int]:
        return [1, 2]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        for number, message in enumerate(messages, len(self._waiting)):
            message.metadata.__dict__["_message_id"] = f"message {len(self.asked)}.{number}"
            self._waiting.append(message)
            yield message.metadata.message_id

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        wanted = set(message_ids)
        for message in [message for message in self._waiting if message.metadata.message_id in wanted]:
            self._waiting.remove(message)
            yield Message(self._answered(message), reply_to=message)

    def _answered(self, message: Message) -> RecordDict:
        node = message.metadata.dst_node_id
        if message.metadata.message_type == "query.describe":
            described = SiteDescription(f"site {node}", 1, 0, 300, "accuracy", ("a", "b"), "base", "f", "d", "0", 2)
            return to_record(described, with_local=True)
        asked = from_record(message.content, EvaluateRequest)
        self.asked.append((node, asked.shard))
        if node == 1:
            return to_record(Failure("internal"))
        score = Score(len(range(300)[asked.shard :: asked.num_shards]), 0.5, 0.5)
        return to_record(EvaluateReceipt(asked.run, asked.round, asked.shard, {"all": score}))


def test_a_part_of_the_held_out_set_that_a_site_cannot_judge_goes_to_another(tmp_path: Path) -> None:
    grid, events = HalfDeadGrid(), list[Event]()
    federation = Federation(FlowerSites(grid, num_sites=2), RunFolder(tmp_path), events.append, RunConfig())
    federation.gather(num_sites=2)
    federation.identify(config=RunConfig(), command="test")
    judged = judge(federation, b"tensors", round=0, num_examples=None, patience=1.0)
    assert judged.report is not None
    assert judged.report.overall.num_examples == 300
    assert sorted(shard for node, shard in grid.asked if node == 2) == [0, 1, 2]
    assert any("site 1 could not judge" in line for event in events if isinstance(event, Noted) for line in event.lines)
