"""int8 and bfloat16 on the wire against hostile updates: each is a failure or a refusal, and none is aggregated."""

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from flwr.app import Message
from torch import Tensor

sys.path.append(str(Path(__file__).parent))

from open_port import Conversation, OpenPort, blob_of, exchange_of, named, open_port
from peers import small_adapter

from fedlora.adapters import pack
from fedlora.adapters.keys import to_state_dict
from fedlora.adapters.tensor_writer import tensor_bytes
from fedlora.common.channels import open_channel
from fedlora.common.messages import Failure, TrainReceipt, TrainRequest
from fedlora.common.records import from_record, kind_of, to_record
from fedlora.server.disk.exchange import Precision
from fedlora.server.rounds.admission import Admitted, admit
from fedlora.v1 import exchange_pb2, messages_pb2, session_pb2

NORTH = named("north")
START = small_adapter()
NAMES = list(to_state_dict(START))
FIRST = NAMES[0]

Parts = dict[str, Tensor]
Change = Callable[[Parts], None]


def parts(precision: Precision) -> Parts:
    """Return what an honest site sends: a small step of every number."""
    found: Parts = {}
    for name, tensor in to_state_dict(START).items():
        if precision == "bfloat16":
            found[f"difference.{name}"] = torch.full_like(tensor, 0.01, dtype=torch.bfloat16)
        else:
            found[f"difference.{name}"] = torch.full_like(tensor, 5, dtype=torch.int8)
            found[f"scale.{name}"] = torch.full(tensor.shape[:-1], 0.002)
    return found


def filled(part: str, value: float) -> Change:
    return lambda sent: void(sent[f"{part}.{FIRST}"].fill_(value))


def replaced(part: str, make: Callable[[Tensor], Tensor]) -> Change:
    def change(sent: Parts) -> None:
        sent[f"{part}.{FIRST}"] = make(sent[f"{part}.{FIRST}"])

    return change


def added(part: str, tensor: Tensor) -> Change:
    return lambda sent: sent.update({f"{part}.{FIRST}": tensor})


def without(part: str) -> Change:
    return lambda sent: void(sent.pop(f"{part}.{FIRST}"))


def void(_value: object) -> None:
    """Return nothing."""


INT8: Mapping[str, tuple[Change, str]] = {
    "a scale of NaN": (filled("scale", math.nan), "unreadable"),
    "an infinite scale": (filled("scale", math.inf), "unreadable"),
    "a scale of 1e38": (filled("scale", 1e38), "not_finite"),
    "a scale of -1e38": (filled("scale", -1e38), "not_finite"),
    "a scale of 1e36": (filled("scale", 1e36), "too_large"),
    "too few scales": (replaced("scale", lambda scale: scale[:1]), "unreadable"),
    "too many scales": (replaced("scale", lambda scale: scale.repeat(3)), "unreadable"),
    "a scale for all": (replaced("scale", lambda scale: scale[0].clone()), "unreadable"),
    "scales in float64": (replaced("scale", Tensor.double), "unreadable"),
    "scales in bfloat16": (replaced("scale", Tensor.bfloat16), "unreadable"),
    "no scale": (without("scale"), "unreadable"),
    "a scale alone": (without("difference"), "unreadable"),
    "a row too few": (replaced("difference", lambda rows: rows[:-1].contiguous()), "unreadable"),
    "one row for all": (replaced("difference", lambda rows: rows[:1].contiguous()), "unreadable"),
    "no rows": (replaced("difference", lambda rows: rows[0, 0].clone()), "unreadable"),
    "16 bits": (replaced("difference", Tensor.short), "unreadable"),
    "unsigned": (replaced("difference", lambda rows: rows.to(torch.uint8)), "unreadable"),
    "whole beside it": (added("whole", torch.ones(2, 6)), "unreadable"),
    "another kind of part": (added("offset", torch.ones(2)), "unreadable"),
}
BFLOAT16: Mapping[str, tuple[Change, str]] = {
    "NaN": (filled("difference", math.nan), "not_finite"),
    "infinity": (filled("difference", -math.inf), "not_finite"),
    "its largest number": (filled("difference", 3.38e38), "too_large"),
    # The sign and the payload of a NaN are the sender's: none of them is to pass for a number.
    "NaN of all bits": (
        replaced("difference", lambda all: torch.full(all.shape, -1, dtype=torch.int16).view(torch.bfloat16)),
        "not_finite",
    ),
    "a signalling NaN": (
        replaced("difference", lambda all: torch.full(all.shape, 0x7F81, dtype=torch.int16).view(torch.bfloat16)),
        "not_finite",
    ),
    "a scale": (added("scale", torch.ones(2)), "unreadable"),
    "float16": (replaced("difference", Tensor.half), "unreadable"),
    "float32": (replaced("difference", Tensor.float), "unreadable"),
    "int8": (replaced("difference", Tensor.char), "unreadable"),
    "a row too few": (replaced("difference", lambda rows: rows[:-1].contiguous()), "unreadable"),
    "transposed": (replaced("difference", lambda rows: rows.T.contiguous()), "unreadable"),
}
HEADERS: Mapping[str, dict[str, str]] = {
    "another reference": {"reference": "0" * 64},
    "no reference": {"reference": ""},
    "a reference that is a path": {"reference": "../../run.toml"},
    "another precision": {"precision": "int4"},
    "a precision without it": {"precision": "float32"},
}


class Site:
    """A site of a port that has sites train in a precision; each update answers a request of its own."""

    def __init__(self, port: OpenPort, precision: Precision, stack: ExitStack) -> None:
        self._port = port
        self._precision = precision
        self._exchange = stack.enter_context(exchange_of(port.address))
        channel = stack.enter_context(open_channel(port.address, None))
        self._conversation = stack.enter_context(Conversation(channel, NORTH))
        self._conversation.hear("welcome")
        description = messages_pb2.SiteDescription(num_examples=1, lora_rank=2)
        self._conversation.say(readiness=session_pb2.Readiness(description=description))
        self._num_asked = 0

    def verdict(self, change: Change, **header: str) -> str:
        """Return the code with which a changed update is refused, nothing if it would count."""
        asked = TrainRequest("run", 1, self._num_asked, 0, 1, 0, pack(START))
        self._num_asked += 1
        grid = self._port.grid
        pushed = list(grid.push_messages([Message(to_record(asked), grid.node_of("north"), "train")]))
        request = self._conversation.hear("request").request
        sent = parts(self._precision)
        change(sent)
        metadata = {"precision": self._precision, "reference": request.adapter.whole.sha256.hex(), **header}
        update = tensor_bytes(sent, {"adapter_config": json.dumps(dict(START.config)), **metadata})
        blob = blob_of(update)
        upload = [exchange_pb2.WriteRequest(ticket=request.ticket, blob=blob, data=update)]
        self._exchange.Write(iter(upload), metadata=NORTH)
        receipt = messages_pb2.TrainReceipt(
            run="run", round=1, attempt=asked.attempt, client="north", status="ok", num_examples=1
        )
        adapter = messages_pb2.SentAdapter(encoded=blob)
        answer = session_pb2.Answer(request_id=request.request_id, adapter=adapter, train=receipt)
        self._conversation.say(answer=answer)
        while not (found := list(grid.pull_messages(pushed))):
            pass
        content = found[0].content
        if kind_of(content) == "Failure":
            code = from_record(content, Failure, with_files=True).code
        else:
            answered = from_record(content, TrainReceipt, with_files=True)
            admitted = admit(answered, request=asked, client="north", num_examples=1, reference=START)
            code = "" if isinstance(admitted, Admitted) else admitted.code
        grid.acknowledge(request.request_id, code)
        assert self._conversation.hear("acknowledgement").acknowledgement.refusal == code
        return code


@pytest.fixture(params=["int8", "bfloat16"])
def site(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    with ExitStack() as stack:
        port = stack.enter_context(open_port(tmp_path, precision=request.param))
        yield Site(port, request.param, stack)


def nothing(_sent: Parts) -> None:
    """Leave an update as an honest site sends it."""


def test_no_hostile_update_of_a_rounded_wire_counts_and_the_honest_one_after_it_does(
    site: Site, request: pytest.FixtureRequest
) -> None:
    hostile = INT8 if request.node.callspec.params["site"] == "int8" else BFLOAT16
    found = {name: site.verdict(change) for name, (change, _) in hostile.items()}
    assert found == {name: code for name, (_, code) in hostile.items()}
    assert {name: site.verdict(nothing, **header) for name, header in HEADERS.items()} == dict.fromkeys(
        HEADERS, "unreadable"
    )
    assert site.verdict(nothing) == ""
