"""The adapter before a request's own: fetched where the site lacks it, by difference where that will do."""

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from site_bench import Bench, StartBench, adapter, train

from fedlora.adapters.differences import decode_file, encode_file
from fedlora.common.config import RunConfig
from fedlora.v1 import messages_pb2, session_pb2

WITH_MOMENTUM = RunConfig.model_validate({"train": {"client_momentum": 0.5}})


@dataclass(frozen=True)
class Step:
    """A global adapter, and the difference from the one before that makes it."""

    whole: bytes
    difference: bytes = b""


@pytest.fixture
def steps(tmp_path: Path) -> list[Step]:
    """Return the global adapters of four rounds, as a wire of bfloat16 has them."""
    found = [Step(adapter())]
    for seed in (1, 2, 3):
        reference, wanted, difference, made = (
            tmp_path / name for name in ("reference", "wanted", "difference", "made")
        )
        reference.write_bytes(found[-1].whole)
        wanted.write_bytes(adapter(seed))
        encode_file(wanted, difference, reference=reference, precision="bfloat16")
        decode_file(difference, made, reference=reference)
        found.append(Step(made.read_bytes(), difference.read_bytes()))
    return found


def ready(start_bench: StartBench, run: RunConfig = WITH_MOMENTUM) -> Bench:
    bench = start_bench(run=run)
    bench.connect()
    assert bench.readiness().HasField("description")
    return bench


def ask(bench: Bench, steps: list[Step], round: int) -> session_pb2.Answer:
    """Return the answer to a round's training, from the adapters of that round and of the one before."""

    def offered(number: int) -> messages_pb2.OfferedAdapter:
        step = steps[number - 1]
        offer = messages_pb2.OfferedAdapter(whole=bench.exchange.put(step.whole))
        if step.difference:
            offer.difference.CopyFrom(bench.exchange.put(step.difference))
            offer.reference.CopyFrom(bench.exchange.put(steps[number - 2].whole))
        return offer

    message = session_pb2.Request(request_id=str(round), ticket=b"ticket", precision="float32", train=train(round))
    message.adapter.CopyFrom(offered(round))
    if round > 1:
        message.former.CopyFrom(offered(round - 1))
    bench.site.take(session_pb2.ConnectResponse(request=message))
    return bench.answer()


def fetched(bench: Bench) -> list[bytes]:
    return [bench.exchange.files[digest] for digest in bench.exchange.read]


def former(bench: Bench) -> bytes:
    """Return what the worker was given as the former adapter."""
    return (bench.app / "former").read_bytes()


def test_who_took_part_in_the_round_before_fetches_nothing_more(start_bench: StartBench, steps: list[Step]) -> None:
    bench = ready(start_bench)
    for round in (1, 2, 3):
        assert ask(bench, steps, round).train.status == "ok"
        assert former(bench) == (steps[round - 2].whole if round > 1 else b"")
    assert fetched(bench) == [steps[0].whole, steps[1].difference, steps[2].difference]


def test_who_comes_new_fetches_it_whole_and_the_other_by_difference(start_bench: StartBench, steps: list[Step]) -> None:
    bench = ready(start_bench)
    assert ask(bench, steps, 3).train.status == "ok"
    assert former(bench) == steps[1].whole
    assert fetched(bench) == [steps[1].whole, steps[2].difference]


def test_who_sat_out_a_round_makes_one_of_a_difference_and_the_other_of_that(
    start_bench: StartBench, steps: list[Step]
) -> None:
    bench = ready(start_bench)
    for round in (1, 3):
        assert ask(bench, steps, round).train.status == "ok"
    assert former(bench) == steps[1].whole
    assert fetched(bench) == [steps[0].whole, steps[1].difference, steps[2].difference]


def test_a_difference_that_gives_something_else_is_followed_by_both_whole(
    start_bench: StartBench, steps: list[Step]
) -> None:
    bench = ready(start_bench)
    assert ask(bench, steps, 1).train.status == "ok"
    wrong = [steps[0], Step(steps[1].whole, steps[3].difference), steps[2]]
    assert ask(bench, wrong, 3).train.status == "ok"
    assert former(bench) == steps[1].whole
    assert fetched(bench)[-2:] == [steps[1].whole, steps[2].whole]


def test_one_that_no_adapter_of_the_run_can_be_is_not_fetched(start_bench: StartBench, steps: list[Step]) -> None:
    bench = ready(start_bench)
    answer = ask(bench, [Step(steps[0].whole + bytes(1 << 20)), Step(steps[1].whole)], 2)
    assert answer.failure.code == "adapter_too_large"
    assert fetched(bench) == []


def test_a_run_without_momentum_fetches_none_whatever_is_offered(start_bench: StartBench, steps: list[Step]) -> None:
    bench = ready(start_bench, RunConfig())
    assert ask(bench, [steps[0], Step(steps[1].whole)], 2).train.status == "ok"
    assert (former(bench), fetched(bench)) == (b"", [steps[1].whole])
