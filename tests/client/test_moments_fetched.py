"""The federation's moments beside a request's adapter: fetched where the run shares them, and no more than can be."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent))

from site_bench import Bench, StartBench, adapter, train

from fedlora.adapters.moments import pack_moments
from fedlora.common.config import RunConfig
from fedlora.v1 import messages_pb2, session_pb2

SHARED = RunConfig.model_validate({"train": {"optimizer_state": "shared"}})
MOMENTS = pack_moments({"base_model.model.block.q_proj.lora_A.weight/exp_avg": torch.ones(2, 6)})


def ask(start_bench: StartBench, run: RunConfig, moments: bytes) -> tuple[Bench, session_pb2.Answer]:
    """Return the answer of a site in this run to a training with these moments on offer."""
    bench = start_bench(run=run)
    bench.connect()
    assert bench.readiness().HasField("description")
    message = session_pb2.Request(request_id="2", ticket=b"ticket", precision="float32", train=train(2))
    message.adapter.CopyFrom(messages_pb2.OfferedAdapter(whole=bench.exchange.put(adapter())))
    message.moments.CopyFrom(messages_pb2.OfferedAdapter(whole=bench.exchange.put(moments)))
    bench.site.take(session_pb2.ConnectResponse(request=message))
    return bench, bench.answer()


def fetched(bench: Bench) -> list[bytes]:
    return [bench.exchange.files[digest] for digest in bench.exchange.read]


def test_they_are_given_to_the_worker(start_bench: StartBench) -> None:
    bench, answer = ask(start_bench, SHARED, MOMENTS)
    assert answer.train.status == "ok"
    assert (bench.app / "moments").read_bytes() == MOMENTS
    assert fetched(bench) == [MOMENTS, adapter()]


def test_more_than_those_of_an_adapter_are_not_fetched(
    start_bench: StartBench, caplog: pytest.LogCaptureFixture
) -> None:
    bench, answer = ask(start_bench, SHARED, MOMENTS + bytes(1 << 20))
    assert answer.failure.code == "adapter_too_large"
    assert fetched(bench) == []
    assert "the server offers moments of 1," in caplog.text
    assert "and all of this run takes at most" in caplog.text


def test_a_run_without_them_fetches_none_whatever_is_offered(start_bench: StartBench) -> None:
    bench, answer = ask(start_bench, RunConfig(), MOMENTS)
    assert answer.train.status == "ok"
    assert (bench.app / "moments").read_bytes() == b""
    assert fetched(bench) == [adapter()]
