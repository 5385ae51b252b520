"""What becomes of an answer and its upload: what the strategy gets, once, and what it is spared."""

import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

sys.path.append(str(Path(__file__).parent))

from open_port import Conversation, OpenPort, blob_of, exchange_of, named, open_port

from fedlora.common.channels import open_channel
from fedlora.common.messages import Failure, TrainReceipt
from fedlora.common.packed_file import PackedFile
from fedlora.common.records import from_record, kind_of
from fedlora.v1 import exchange_pb2, messages_pb2, session_pb2

NORTH = named("north")


@pytest.fixture
def port(tmp_path: Path) -> Iterator[OpenPort]:
    with open_port(tmp_path) as port:
        yield port


def upload(port: OpenPort, content: bytes) -> None:
    ticket = port.ask_for_update("north")
    with exchange_of(port.address) as exchange:
        request = exchange_pb2.WriteRequest(ticket=ticket, blob=blob_of(content), data=content)
        assert exchange.Write(iter([request]), metadata=NORTH).committed_bytes == len(content)


@contextmanager
def asked(port: OpenPort) -> Iterator[tuple[Conversation, session_pb2.Request]]:
    """Give the session of a site that is ready, and the request that it got."""
    with open_channel(port.address, None) as channel, Conversation(channel, NORTH) as conversation:
        conversation.hear("welcome")
        conversation.say(
            readiness=session_pb2.Readiness(description=messages_pb2.SiteDescription(num_examples=1, lora_rank=2))
        )
        yield conversation, conversation.hear("request").request


def reply_of(port: OpenPort) -> object:
    """Return what the strategy gets."""
    while not (found := list(port.grid.pull_messages(port.asked))):
        pass
    (message,) = found
    kind = Failure if kind_of(message.content) == "Failure" else TrainReceipt
    return from_record(message.content, kind, with_files=True)


def answer_to(request: session_pb2.Request, content: bytes) -> session_pb2.Answer:
    receipt = messages_pb2.TrainReceipt(run="run", round=1, client="north", status="ok", num_examples=1)
    sent = messages_pb2.SentAdapter(encoded=blob_of(content))
    return session_pb2.Answer(request_id=request.request_id, adapter=sent, train=receipt)


def encoded(tensor: Tensor) -> bytes:
    return save({"whole.A": tensor}, {"adapter_config": "{}", "precision": "float32", "reference": ""})


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self._path,)


@pytest.mark.parametrize("is_torch", [False, True])
def test_case_17_pickle_bytes_are_refused_unread(port: OpenPort, tmp_path: Path, is_torch: bool) -> None:
    path, saved = tmp_path / "exploded", tmp_path / "saved"
    saved.write_bytes(pickle.dumps(Bomb(path)))
    if is_torch:
        torch.save(Bomb(path), saved)
    upload(port, saved.read_bytes())
    with asked(port) as (conversation, request):
        conversation.say(answer=answer_to(request, saved.read_bytes()))
        reply = reply_of(port)
    assert isinstance(reply, Failure)
    assert reply.code == "unreadable"
    assert not path.exists()
    torch.load(saved, weights_only=False) if is_torch else pickle.loads(saved.read_bytes())
    assert path.exists()


def test_case_11_the_same_answer_twice_is_one_to_the_strategy(port: OpenPort) -> None:
    tensor = torch.ones(4, 10)
    update = encoded(tensor)
    upload(port, update)
    with asked(port) as (conversation, request):
        conversation.say(answer=answer_to(request, update))
        conversation.say(answer=answer_to(request, update))
        reply = reply_of(port)
        port.grid.acknowledge(request.request_id, "")
        assert conversation.hear("acknowledgement").acknowledgement.refusal == ""
        # By now it is settled, and whoever still asks is told to forget it.
        conversation.say(answer=answer_to(request, update))
        assert conversation.hear("acknowledgement").acknowledgement.refusal == "withdrawn"
    assert isinstance(reply, TrainReceipt)
    assert isinstance(reply.adapter, PackedFile)
    assert torch.equal(load(reply.adapter.path.read_bytes())["A"], tensor)
    assert list(port.grid.pull_messages(port.asked)) == []


def test_an_answer_whose_update_was_not_uploaded_is_a_failure(port: OpenPort) -> None:
    port.ask_for_update("north")
    with asked(port) as (conversation, request):
        conversation.say(answer=answer_to(request, encoded(torch.ones(2, 2))))
        reply = reply_of(port)
    assert isinstance(reply, Failure)
    assert reply.code == "unreadable"


@pytest.mark.parametrize(
    "answer",
    [
        session_pb2.Answer(),
        session_pb2.Answer(failure=messages_pb2.Failure(code="<script>")),
        session_pb2.Answer(failure=messages_pb2.Failure(code="x" * 41)),
        session_pb2.Answer(
            train=messages_pb2.TrainReceipt(run="run", round=4 * 10**9),
            adapter=messages_pb2.SentAdapter(encoded=blob_of(b"x")),
        ),
        session_pb2.Answer(
            train=messages_pb2.TrainReceipt(run="run", round=1),
            adapter=messages_pb2.SentAdapter(encoded=messages_pb2.Blob(sha256=b"../x", size_bytes=1)),
        ),
    ],
    ids=["empty", "no code", "long code", "round", "digest"],
)
def test_an_answer_that_no_site_of_ours_gives_is_a_failure(port: OpenPort, answer: session_pb2.Answer) -> None:
    port.ask_for_update("north")
    with asked(port) as (conversation, request):
        answer.request_id = request.request_id
        conversation.say(answer=answer)
        reply = reply_of(port)
    assert isinstance(reply, Failure)
    assert reply.code == "unreadable"


def test_a_request_is_sent_again_at_each_connection_until_it_is_answered(port: OpenPort) -> None:
    port.ask_for_update("north")
    with asked(port) as (_, first):
        pass
    with asked(port) as (conversation, again):
        assert again == first
        conversation.say(
            answer=session_pb2.Answer(request_id=first.request_id, failure=messages_pb2.Failure(code="internal"))
        )
        assert reply_of(port) == Failure("internal")
