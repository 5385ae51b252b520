"""A site in one run: nothing twice, nothing that nobody waits for, and no result lost before the server has it."""

import hashlib
import logging
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from site_bench import Bench, StartBench, adapter, evaluate, train, wait_until

from fedlora.adapters.differences import decode_file, encode_file
from fedlora.v1 import messages_pb2, session_pb2

START = adapter()


def test_a_site_rehearses_before_it_says_what_it_holds(start_bench: StartBench) -> None:
    bench = start_bench()
    bench.connect()
    description = bench.readiness().description
    assert (description.num_examples, description.num_held_out, description.lora_rank) == (10, 4, 2)
    assert description.base_model_fingerprint == "sha256:base"
    assert (bench.app / "rehearsals").read_text().endswith(" True\n")
    bench.site.look()
    assert bench.is_silent(), "it has said so"


def test_what_is_left_out_is_said_at_the_site_and_its_numbers_to_the_server(
    start_bench: StartBench, caplog: pytest.LogCaptureFixture
) -> None:
    bench = start_bench()
    (bench.app / "long examples").touch()
    bench.connect()
    sent = bench.readiness().description
    assert {(part, *fate) for part, fates in sent.fates.items() for fate in fates.num_examples.items()} == {
        ("training", "too_long", 4), ("test", "cut", 1)
    }  # fmt: skip
    assert b"ward" not in sent.SerializeToString()
    assert "4 of 14 training examples are left out (longer than task.max_length)" in caplog.text
    assert "1 of 4 test examples is cut at task.max_length" in caplog.text
    assert "the column 'ward' is left aside, in 9 rows" in caplog.text


def test_a_new_connection_needs_no_new_rehearsal(bench: Bench) -> None:
    bench.site.disconnected()
    bench.connect()
    assert bench.readiness().HasField("description")
    assert bench.num("rehearsals") == 1


def test_a_request_is_trained_once_and_answered_with_its_update(bench: Bench, tmp_path: Path) -> None:
    bench.ask("1", train(attempt=2), START)
    answer = bench.answer()
    assert (answer.request_id, answer.train.status, answer.train.attempt) == ("1", "ok", 2)
    assert (answer.train.num_examples, answer.train.loss, answer.train.after.metric) == (10, 0.5, 1.0)
    update = bench.exchange.written[answer.adapter.encoded.sha256]
    assert hashlib.sha256(update).digest() == answer.adapter.encoded.sha256
    (tmp_path / "update").write_bytes(update)
    decode_file(tmp_path / "update", tmp_path / "whole", reference=None)
    assert (tmp_path / "whole").read_bytes() != START
    assert bench.num("trainings") == 1


def test_what_is_asked_for_again_is_answered_from_disk(bench: Bench) -> None:
    bench.ask("1", train(), START)
    first = bench.answer()
    bench.site.disconnected()
    bench.connect()
    bench.readiness()
    bench.ask("2", train(attempt=1), START)
    again = bench.answer()
    assert (again.request_id, again.train.attempt) == ("2", 1)
    assert again.adapter == first.adapter
    assert bench.num("trainings") == 1
    assert bench.exchange.offsets == [0], "the server has the file"


def test_a_client_that_starts_anew_finds_its_result_too(bench: Bench, tmp_path: Path) -> None:
    bench.ask("1", train(), START)
    first = bench.answer()
    bench.site.close()
    (tmp_path / "again").mkdir()
    another = Bench(tmp_path / "again")
    bench.state.rename(another.state)
    another.connect()
    another.readiness()
    another.ask("1", train(), START)
    assert another.answer() == first
    assert another.num("trainings") == 0
    another.site.close()


def test_a_request_is_answered_once_on_a_connection(bench: Bench) -> None:
    for _ in range(3):
        bench.ask("1", train(), START)
    bench.ask("2", evaluate(), START)
    assert [bench.answer().request_id, bench.answer().request_id] == ["1", "2"]
    assert bench.is_silent()
    assert bench.num("trainings") == 1


def test_the_same_round_from_another_adapter_is_another_training(bench: Bench) -> None:
    bench.ask("1", train(), START)
    first = bench.answer()
    bench.ask("2", train(), adapter(seed=1))
    assert bench.answer().adapter != first.adapter
    assert bench.num("trainings") == 2


def test_a_flood_of_requests_is_passed_over(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.order("loop")
    bench.ask("1", train(), START)
    wait_until((bench.app / "begun").exists)
    for number in range(200):
        bench.ask(f"flood {number}", evaluate(number), START)
    bench.ask("long" * 100, evaluate(0), START)
    bench.cancel("1")
    assert [bench.answer().request_id for _ in range(15)] == [f"flood {number}" for number in range(15)]
    bench.ask("2", evaluate(0), START)
    assert bench.answer().request_id == "2"
    assert "no honest one asks for so much at a time" in caplog.text


def test_a_cancelled_request_is_left_off_and_not_answered(bench: Bench) -> None:
    bench.order("loop")
    bench.ask("1", train(), START)
    wait_until((bench.app / "begun").exists)
    bench.cancel("1")
    bench.ask("2", train(2), START)
    answer = bench.answer()
    assert (answer.request_id, answer.train.round) == ("2", 2)
    assert bench.is_silent()
    assert bench.results() == ["run/0002/answer", "run/0002/update"]


def test_a_request_that_is_cancelled_before_its_turn_is_not_begun(bench: Bench) -> None:
    bench.order("loop")
    bench.ask("1", train(1), START)
    wait_until((bench.app / "begun").exists)
    bench.ask("2", train(2), START)
    bench.cancel("2")
    bench.cancel("1")
    bench.ask("3", train(3), START)
    assert bench.answer().request_id == "3"
    assert bench.num("trainings") == 2


def test_what_is_cancelled_and_asked_for_again_at_once_is_trained_again(bench: Bench) -> None:
    bench.order("loop, then linger")
    bench.ask("1", train(), START)
    wait_until((bench.app / "begun").exists)
    bench.cancel("1")
    wait_until((bench.app / "interrupted").exists)
    bench.ask("2", train(attempt=1), START)
    (bench.app / "go").touch()
    answer = bench.answer()
    assert (answer.request_id, answer.WhichOneof("content"), answer.train.attempt) == ("2", "train", 1)
    assert bench.num("trainings") == 2


@pytest.mark.parametrize("refusal", ["", "norm_too_large", "late"])
def test_what_the_server_has_or_will_not_have_is_forgotten(bench: Bench, refusal: str) -> None:
    bench.ask("1", train(), START)
    bench.answer()
    assert bench.results() == ["run/0001/answer", "run/0001/update"]
    bench.acknowledge("1", refusal)
    assert bench.results() == []


def test_what_the_server_could_not_store_is_kept(bench: Bench) -> None:
    bench.ask("1", train(), START)
    bench.answer()
    bench.acknowledge("1", "not_stored")
    bench.acknowledge("another")
    assert bench.results() == ["run/0001/answer", "run/0001/update"]


def test_only_an_accepted_update_leaves_its_residual_for_the_next(bench: Bench) -> None:
    kept = bench.state / "residual" / "run"
    for round, refusal in [(1, "too_late"), (2, "")]:
        message = session_pb2.Request(request_id=str(round), ticket=b"ticket", precision="int8", train=train(round))
        message.adapter.whole.CopyFrom(bench.exchange.put(START))
        bench.site.take(session_pb2.ConnectResponse(request=message))
        bench.answer()
        assert (bench.state / "outbox" / "run" / f"000{round}" / "residual").is_file()
        bench.acknowledge(str(round), refusal)
        assert kept.is_file() == (refusal == "")


def test_a_worker_that_dies_is_told_and_the_next_request_has_another(bench: Bench) -> None:
    bench.order("die")
    bench.ask("1", train(), START)
    assert bench.answer().failure.code == "worker_died"
    bench.order("die")
    bench.ask("2", evaluate(), START)
    assert bench.answer().failure.code == "worker_died"
    # The same work again is done, and not the failure repeated.
    bench.ask("3", train(), START)
    bench.ask("4", evaluate(), START)
    assert bench.answer().train.status == "ok"
    assert bench.answer().evaluate.groups


def test_a_loss_that_is_not_finite_brings_no_update_also_not_an_old_one(bench: Bench) -> None:
    (bench.state / "outbox" / "run" / "0001").mkdir(parents=True)
    (bench.state / "outbox" / "run" / "0001" / "update").write_bytes(b"of a training that was cut off")
    bench.order("loss_not_finite")
    bench.ask("1", train(), START)
    answer = bench.answer()
    assert answer.train.status == "loss_not_finite"
    assert not answer.HasField("adapter")
    assert bench.exchange.written == {}


def test_an_upload_that_breaks_off_goes_on_where_it_stopped(bench: Bench) -> None:
    bench.exchange.breaks_after = 100
    bench.ask("1", train(), START)
    assert bench.answer().train.status == "ok"
    assert bench.exchange.offsets == [0, 100]
    assert bench.num("trainings") == 1


def test_a_first_adapter_is_given_whole(bench: Bench) -> None:
    (bench.app / "first").write_bytes(START)
    bench.ask("1", messages_pb2.InitialiseRequest(seed=0))
    answer = bench.answer()
    assert answer.WhichOneof("content") == "initialise"
    assert len(bench.exchange.written[answer.adapter.encoded.sha256]) > len(START) / 2


def test_of_a_known_adapter_only_the_difference_is_fetched(bench: Bench, tmp_path: Path) -> None:
    difference, whole = next_adapter(tmp_path, of=START)
    bench.ask("1", train(1), START)
    bench.answer()
    offered = {"difference": bench.exchange.put(difference), "reference": bench.exchange.put(START)}
    bench.ask("2", train(2), whole, **offered)
    assert bench.answer().train.status == "ok"
    assert bench.exchange.read == [hashlib.sha256(content).digest() for content in (START, difference)]


def test_a_difference_that_gives_something_else_is_followed_by_the_whole(bench: Bench, tmp_path: Path) -> None:
    difference, whole = next_adapter(tmp_path, of=START)
    bench.ask("1", train(1), START)
    bench.answer()
    wrong = encoded(tmp_path, adapter(seed=2), of=START)
    offered = {"difference": bench.exchange.put(wrong), "reference": bench.exchange.put(START)}
    bench.ask("2", train(2), whole, **offered)
    assert bench.answer().train.status == "ok"
    assert bench.exchange.read == [hashlib.sha256(content).digest() for content in (START, wrong, whole)]
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


def test_closing_ends_the_worker_and_the_site_starts_no_other(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.order("loop")
    bench.ask("1", train(), START)
    wait_until((bench.app / "begun").exists)
    with caplog.at_level(logging.INFO):
        bench.site.close()
        assert bench.answer().failure.code == "worker_died"
        bench.ask("2", train(2), START)
        bench.connect()
    assert "bug" not in caplog.text
    assert (bench.num("trainings"), bench.num("rehearsals")) == (1, 1)


def test_an_update_that_is_refused_after_it_was_accepted_is_said(
    start_bench: StartBench, caplog: pytest.LogCaptureFixture
) -> None:
    bench = start_bench()
    content = session_pb2.Acknowledgement(refusal="norm", taken_back_round=3)
    with caplog.at_level("WARNING"):
        bench.site.take(session_pb2.ConnectResponse(acknowledgement=content))
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("round 3: ")
    assert "refused after all (norm)" in line
