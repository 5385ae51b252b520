"""A site in one run: its own rules first, nothing twice, and no result lost before the server has it."""

import hashlib
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from flwr.supercore.task_identity import TaskIdentity

sys.path.append(str(Path(__file__).parent))

from site_bench import DEADLINE_SECONDS, RUN, Bench, StartBench, adapter, evaluate, train

from fedlora.adapters.differences import decode_file, encode_file
from fedlora.v1 import messages_pb2, session_pb2

START = adapter()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartBench]:
    """Return a function that puts a site with these sections of its site file on the bench."""
    before = (TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id)
    benches: list[Bench] = []

    def make(**sections: object) -> Bench:
        benches.append(Bench(tmp_path, **sections))
        return benches[-1]

    yield make
    for bench in benches:
        bench.site.close()
    TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id = before


@pytest.fixture
def ready(start: StartBench) -> Bench:
    """Return a site that has said that it is ready."""
    bench = start()
    bench.connect()
    assert bench.readiness().HasField("description")
    return bench


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not is_true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def around_now() -> str:
    """Return quiet hours that begin an hour ago and end in an hour."""
    now = datetime.now()
    return f"{now - timedelta(hours=1):%H:%M}-{now + timedelta(hours=1):%H:%M}"


def test_a_site_rehearses_before_it_says_what_it_holds(start: StartBench) -> None:
    bench = start()
    bench.connect()
    description = bench.readiness().description
    assert (description.num_examples, description.num_held_out, description.lora_rank) == (10, 4, 2)
    assert description.base_model_fingerprint == "sha256:base"
    assert (bench.app / "rehearsals").read_text().endswith(" True\n")
    bench.site.look()
    assert bench.is_silent(), "it has said so"


def test_a_new_connection_needs_no_new_rehearsal(ready: Bench) -> None:
    ready.site.disconnected()
    ready.connect()
    assert ready.readiness().HasField("description")
    assert ready.num("rehearsals") == 1


def test_a_request_is_trained_once_and_answered_with_its_update(ready: Bench, tmp_path: Path) -> None:
    ready.ask("1", train(attempt=2), START)
    answer = ready.answer()
    assert (answer.request_id, answer.train.status, answer.train.attempt) == ("1", "ok", 2)
    assert (answer.train.num_examples, answer.train.loss, answer.train.after.metric) == (10, 0.5, 1.0)
    update = ready.exchange.written[answer.adapter.encoded.sha256]
    assert hashlib.sha256(update).digest() == answer.adapter.encoded.sha256
    (tmp_path / "update").write_bytes(update)
    decode_file(tmp_path / "update", tmp_path / "whole", reference=None)
    assert (tmp_path / "whole").read_bytes() != START
    assert ready.num("trainings") == 1


def test_what_is_asked_for_again_is_answered_from_disk(ready: Bench) -> None:
    ready.ask("1", train(), START)
    first = ready.answer()
    ready.site.disconnected()
    ready.connect()
    ready.readiness()
    ready.ask("2", train(attempt=1), START)
    again = ready.answer()
    assert (again.request_id, again.train.attempt) == ("2", 1)
    assert again.adapter == first.adapter
    assert ready.num("trainings") == 1
    assert ready.exchange.offsets == [0], "the server has the file"


def test_a_client_that_starts_anew_finds_its_result_too(ready: Bench, tmp_path: Path) -> None:
    ready.ask("1", train(), START)
    first = ready.answer()
    ready.site.close()
    (tmp_path / "again").mkdir()
    another = Bench(tmp_path / "again")
    ready.state.rename(another.state)
    another.connect()
    another.readiness()
    another.ask("1", train(), START)
    assert another.answer() == first
    assert another.num("trainings") == 0
    another.site.close()


def test_a_request_is_answered_once_on_a_connection(ready: Bench) -> None:
    for _ in range(3):
        ready.ask("1", train(), START)
    ready.ask("2", evaluate(), START)
    assert [ready.answer().request_id, ready.answer().request_id] == ["1", "2"]
    assert ready.is_silent()
    assert ready.num("trainings") == 1


def test_the_same_round_from_another_adapter_is_another_training(ready: Bench) -> None:
    ready.ask("1", train(), START)
    first = ready.answer()
    ready.ask("2", train(), adapter(seed=1))
    assert ready.answer().adapter != first.adapter
    assert ready.num("trainings") == 2


def test_a_cancelled_request_is_left_off_and_not_answered(ready: Bench) -> None:
    ready.order("loop")
    ready.ask("1", train(), START)
    wait_until((ready.app / "begun").exists)
    ready.cancel("1")
    ready.ask("2", train(2), START)
    answer = ready.answer()
    assert (answer.request_id, answer.train.round) == ("2", 2)
    assert ready.is_silent()
    assert ready.results() == ["run/0002/receipt.json", "run/0002/update"]


def test_a_request_that_is_cancelled_before_its_turn_is_not_begun(ready: Bench) -> None:
    ready.order("loop")
    ready.ask("1", train(1), START)
    wait_until((ready.app / "begun").exists)
    ready.ask("2", train(2), START)
    ready.cancel("2")
    ready.cancel("1")
    ready.ask("3", train(3), START)
    assert ready.answer().request_id == "3"
    assert ready.num("trainings") == 2


def test_what_is_cancelled_and_asked_for_again_at_once_is_trained_again(ready: Bench) -> None:
    ready.order("loop, then linger")
    ready.ask("1", train(), START)
    wait_until((ready.app / "begun").exists)
    ready.cancel("1")
    wait_until((ready.app / "interrupted").exists)
    ready.ask("2", train(attempt=1), START)
    (ready.app / "go").touch()
    answer = ready.answer()
    assert (answer.request_id, answer.WhichOneof("content"), answer.train.attempt) == ("2", "train", 1)
    assert ready.num("trainings") == 2


@pytest.mark.parametrize("refusal", ["", "norm_too_large", "late"])
def test_what_the_server_has_or_will_not_have_is_forgotten(ready: Bench, refusal: str) -> None:
    ready.ask("1", train(), START)
    ready.answer()
    assert ready.results() == ["run/0001/receipt.json", "run/0001/update"]
    ready.acknowledge("1", refusal)
    assert ready.results() == []


def test_what_the_server_could_not_store_is_kept(ready: Bench) -> None:
    ready.ask("1", train(), START)
    ready.answer()
    ready.acknowledge("1", "not_stored")
    ready.acknowledge("another")
    assert ready.results() == ["run/0001/receipt.json", "run/0001/update"]


def test_only_an_accepted_update_leaves_its_residual_for_the_next(ready: Bench) -> None:
    kept = ready.state / "residual" / "run"
    for round, refusal in [(1, "too_late"), (2, "")]:
        message = session_pb2.Request(request_id=str(round), ticket=b"ticket", precision="int8", train=train(round))
        message.adapter.whole.CopyFrom(ready.exchange.put(START))
        ready.site.take(session_pb2.ConnectResponse(request=message))
        ready.answer()
        assert (ready.state / "outbox" / "run" / f"000{round}" / "residual").is_file()
        ready.acknowledge(str(round), refusal)
        assert kept.is_file() == (refusal == "")


def test_an_operator_pauses_and_resumes(ready: Bench) -> None:
    ready.is_paused = True
    ready.site.look()
    assert ready.readiness().reason == "paused"
    ready.ask("1", train(), START)
    ready.ask("2", evaluate(), START)
    assert [ready.answer().failure.code, ready.answer().failure.code] == ["paused", "paused"]
    ready.is_paused = False
    ready.site.look()
    assert ready.readiness().HasField("description")
    ready.ask("3", train(), START)
    assert ready.answer().train.status == "ok"
    assert (ready.num("trainings"), ready.num("evaluations")) == (1, 0)


def test_what_was_trained_before_the_pause_is_still_delivered(ready: Bench) -> None:
    ready.ask("1", train(), START)
    first = ready.answer()
    ready.is_paused = True
    ready.connect()
    assert ready.readiness().reason == "paused"
    ready.ask("1", train(), START)
    assert ready.answer() == first


def test_in_quiet_hours_nothing_is_trained(start: StartBench) -> None:
    bench = start(limits={"quiet_hours": around_now()})
    bench.connect()
    assert bench.readiness().reason == "quiet_hours"
    bench.ask("1", train(), START)
    assert bench.answer().failure.code == "quiet_hours"
    assert bench.num("trainings") == 0


def test_a_base_model_that_is_not_allowed_is_not_trained(start: StartBench) -> None:
    bench = start(limits={"base_models": ["some/other", "sha256:other"]})
    bench.connect()
    assert bench.readiness().reason == "base_model_not_allowed"
    bench.ask("1", train(), START)
    assert bench.answer().failure.code == "base_model_not_allowed"
    assert bench.num("trainings") == 0


@pytest.mark.parametrize("name", [RUN.model.name, "sha256:base"])
def test_a_base_model_is_allowed_by_name_or_fingerprint(start: StartBench, name: str) -> None:
    bench = start(limits={"base_models": ["some/other", name]})
    bench.connect()
    assert bench.readiness().HasField("description")


def test_a_rehearsal_that_fails_is_told_by_its_code(start: StartBench) -> None:
    bench = start()
    bench.order("data")
    bench.connect()
    assert bench.readiness().reason == "data"
    bench.connect()
    assert bench.readiness().reason == "data"
    assert bench.num("rehearsals") == 1


def test_who_was_turned_away_stays_away(ready: Bench) -> None:
    away = session_pb2.TurnedAway(reason="other_base_model")
    ready.site.take(session_pb2.ConnectResponse(turned_away=away))
    ready.site.look()
    assert ready.is_silent(), "the server knows"
    ready.connect()
    assert ready.readiness().reason == "other_base_model"


def test_numbers_that_a_site_keeps_are_in_no_answer(start: StartBench) -> None:
    bench = start(limits={"metrics": []})
    bench.connect()
    bench.readiness()
    bench.ask("1", train(), START)
    receipt = bench.answer().train
    assert list(receipt.withheld) == ["loss", "scores"]
    assert math.isnan(receipt.loss)
    assert not receipt.HasField("before")
    assert not receipt.HasField("after")
    assert receipt.num_examples == 10
    bench.ask("2", evaluate(), START)
    assert bench.answer().failure.code == "withheld"


def test_the_scores_of_a_sites_groups_leave_as_one_without_predictions(ready: Bench) -> None:
    ready.ask("1", evaluate(), START)
    found = ready.answer().evaluate
    assert list(found.groups) == ["north"]
    assert (found.groups["north"].num_examples, found.groups["north"].metric) == (4, 0.75)
    assert not found.predictions
    ready.connect()
    ready.readiness()
    ready.ask("1", evaluate(), START)
    assert ready.answer().evaluate == found
    assert ready.num("evaluations") == 1


def test_a_worker_that_dies_is_told_and_the_next_request_has_another(ready: Bench) -> None:
    ready.order("die")
    ready.ask("1", train(), START)
    assert ready.answer().failure.code == "worker_died"
    ready.order("die")
    ready.ask("2", evaluate(), START)
    assert ready.answer().failure.code == "worker_died"
    # The same work again is done, and not the failure repeated.
    ready.ask("3", train(), START)
    ready.ask("4", evaluate(), START)
    assert ready.answer().train.status == "ok"
    assert ready.answer().evaluate.groups


def test_a_loss_that_is_not_finite_brings_no_update_also_not_an_old_one(ready: Bench) -> None:
    (ready.state / "outbox" / "run" / "0001").mkdir(parents=True)
    (ready.state / "outbox" / "run" / "0001" / "update").write_bytes(b"of a training that was cut off")
    ready.order("loss_not_finite")
    ready.ask("1", train(), START)
    answer = ready.answer()
    assert answer.train.status == "loss_not_finite"
    assert not answer.HasField("adapter")
    assert ready.exchange.written == {}


def test_an_upload_that_breaks_off_goes_on_where_it_stopped(ready: Bench) -> None:
    ready.exchange.breaks_after = 100
    ready.ask("1", train(), START)
    assert ready.answer().train.status == "ok"
    assert ready.exchange.offsets == [0, 100]
    assert ready.num("trainings") == 1


def test_a_first_adapter_is_given_whole(ready: Bench) -> None:
    (ready.app / "first").write_bytes(START)
    ready.ask("1", messages_pb2.InitialiseRequest(seed=0))
    answer = ready.answer()
    assert answer.WhichOneof("content") == "initialise"
    assert len(ready.exchange.written[answer.adapter.encoded.sha256]) > len(START) / 2


def test_of_a_known_adapter_only_the_difference_is_fetched(ready: Bench, tmp_path: Path) -> None:
    difference, whole = next_adapter(tmp_path, of=START)
    ready.ask("1", train(1), START)
    ready.answer()
    offered = {"difference": ready.exchange.put(difference), "reference": ready.exchange.put(START)}
    ready.ask("2", train(2), whole, **offered)
    assert ready.answer().train.status == "ok"
    assert ready.exchange.read == [hashlib.sha256(content).digest() for content in (START, difference)]


def test_a_difference_that_gives_something_else_is_followed_by_the_whole(ready: Bench, tmp_path: Path) -> None:
    difference, whole = next_adapter(tmp_path, of=START)
    ready.ask("1", train(1), START)
    ready.answer()
    wrong = encoded(tmp_path, adapter(seed=2), of=START)
    offered = {"difference": ready.exchange.put(wrong), "reference": ready.exchange.put(START)}
    ready.ask("2", train(2), whole, **offered)
    assert ready.answer().train.status == "ok"
    assert ready.exchange.read == [hashlib.sha256(content).digest() for content in (START, wrong, whole)]
    assert difference != wrong


def encoded(folder: Path, packed: bytes, *, of: bytes) -> bytes:
    (folder / "packed").write_bytes(packed)
    (folder / "reference").write_bytes(of)
    encode_file(folder / "packed", folder / "difference", reference=folder / "reference", precision="bfloat16")
    return (folder / "difference").read_bytes()


def next_adapter(folder: Path, *, of: bytes) -> tuple[bytes, bytes]:
    """Return a difference and the adapter that it makes."""
    difference = encoded(folder, adapter(seed=1), of=of)
    decode_file(folder / "difference", folder / "made", reference=folder / "reference")
    return difference, (folder / "made").read_bytes()


@pytest.mark.parametrize("run", ["../../elsewhere", "..", ""])
def test_a_run_that_would_name_another_folder_is_refused_and_nothing_is_touched(ready: Bench, run: str) -> None:
    (ready.state / "identity.json").write_text("the key")
    request = train()
    request.run = run
    ready.ask("1", request, START)
    assert ready.answer().failure.code == "run"
    ready.acknowledge("1")
    assert (ready.state / "identity.json").read_text() == "the key"
    assert ready.num("trainings") == 0


def test_closing_ends_the_worker_and_the_site_starts_no_other(ready: Bench, caplog: pytest.LogCaptureFixture) -> None:
    ready.order("loop")
    ready.ask("1", train(), START)
    wait_until((ready.app / "begun").exists)
    with caplog.at_level(logging.INFO):
        ready.site.close()
        assert ready.answer().failure.code == "worker_died"
        ready.ask("2", train(2), START)
        ready.connect()
    assert "bug" not in caplog.text
    assert (ready.num("trainings"), ready.num("rehearsals")) == (1, 1)
