"""What a hostile site tries, by the request at which it tries it. One attack is one small function: add it to ATTACKS.

Not among them: an update that is as large as the others and merely wrong. No check tells it from a site with other
data; `[robust]` is what bounds it.
"""

import json
import math
import pickle
import socket
import ssl
import time
from collections.abc import Callable

import torch
from hostile_site import DEADLINE_SECONDS, Attack, HostileSite, chunks, encoded, refusal_of
from safetensors.torch import load
from torch import Tensor

from fedlora.adapters.packed import metadata_of
from fedlora.adapters.tensor_writer import tensor_bytes
from fedlora.common.channels import split_address
from fedlora.v1 import exchange_pb2, messages_pb2, session_pb2

Request = session_pb2.Request
Change = Callable[[dict[str, Tensor], dict[str, object]], None]

INVENTED = "invented-by-the-hostile-site"
# Sets a terminal's title, goes to its upper left, and clears it.
ESCAPES = "\x1b]0;owned\x07\x1b[H\x1b[2J\nround 9/9: all is well"
FOREIGN = "chalk"
NUM_INVENTED = 200_000
NUM_IDLE, NUM_ANSWERS = 300, 300
# The rounds look ten times a second at who is there; an honest word that follows at once would hide a false one.
_SEEN_SECONDS = 0.5


# -- the run's first adapter


def first_adapter(change: Change) -> Callable[[HostileSite, Request], str]:
    """Return an attack that gives a changed adapter as the run's first."""

    def act(site: HostileSite, request: Request) -> str:
        tensors, config = load(site.known), json.loads(metadata_of(site.known)["adapter_config"])
        change(tensors, config)
        site.answer(request, encoded(tensors, json.dumps(config)))
        return ""

    return act


def empty(tensors: dict[str, Tensor], _config: dict[str, object]) -> None:
    tensors.clear()


def unpaired(tensors: dict[str, Tensor], _config: dict[str, object]) -> None:
    del tensors[next(name for name in tensors if ".lora_B." in name)]


def other_peft_type(_tensors: dict[str, Tensor], config: dict[str, object]) -> None:
    config["peft_type"] = "LOHA"


def absurd_alpha(_tensors: dict[str, Tensor], config: dict[str, object]) -> None:
    config["lora_alpha"] = 1e30


def pathological_pattern(_tensors: dict[str, Tensor], config: dict[str, object]) -> None:
    config["alpha_pattern"] = {"(([a-z_.0-9])+)+!": 3}


def foreign_keys(_tensors: dict[str, Tensor], config: dict[str, object]) -> None:
    config |= {"base_model_name_or_path": INVENTED, "auto_mapping": {"base_model_class": INVENTED}}


def not_finite(tensors: dict[str, Tensor], _config: dict[str, object]) -> None:
    next(iter(tensors.values())).fill_(math.nan)


def infinite(tensors: dict[str, Tensor], _config: dict[str, object]) -> None:
    next(iter(tensors.values()))[0] = -math.inf


def huge(tensors: dict[str, Tensor], _config: dict[str, object]) -> None:
    for tensor in tensors.values():
        tensor.fill_(3e38)


def float64(tensors: dict[str, Tensor], _config: dict[str, object]) -> None:
    tensors |= {name: tensor.double() for name, tensor in tensors.items()}


def of_another_seed(tensors: dict[str, Tensor], _config: dict[str, object]) -> None:
    for name, tensor in tensors.items():
        if ".lora_A." in name:
            tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)))


def first_adapter_a_list(site: HostileSite, request: Request) -> str:
    site.answer(request, encoded(load(site.known), "[1, 2]"))
    return ""


def first_adapter_never_uploaded(site: HostileSite, request: Request) -> str:
    answer = session_pb2.Answer(request_id=request.request_id, initialise=messages_pb2.InitialiseReceipt())
    answer.adapter.encoded.CopyFrom(messages_pb2.Blob(sha256=bytes(32), size_bytes=2**40))
    site.say(answer=answer)
    return ""


def silence(_site: HostileSite, _request: Request) -> str:
    return "said nothing"


# -- who it is


def wrong_fingerprint(site: HostileSite, _request: Request) -> str:
    """Be there first, with another base model than everybody else."""
    described = messages_pb2.SiteDescription(
        num_examples=40, num_validation=4, num_held_out=8, metric_name="accuracy", lora_rank=4,
        base_model_fingerprint=f"sha256:{INVENTED}", data_fingerprint=INVENTED, version="0.1.0",
    )  # fmt: skip
    site.say(readiness=session_pb2.Readiness(description=described))
    return "said"


def absurd_numbers_of_itself(site: HostileSite, _request: Request) -> str:
    site.say_ready(num_examples=2**64 - 1, num_validation=2**64 - 1, num_held_out=2**64 - 1)
    time.sleep(_SEEN_SECONDS)
    return "said"


def escapes_of_itself(site: HostileSite, _request: Request) -> str:
    site.say(readiness=session_pb2.Readiness(reason=ESCAPES))
    site.say_ready(version=ESCAPES, data_fingerprint=ESCAPES)
    time.sleep(_SEEN_SECONDS)
    return "said"


# -- updates


def update(change: Change) -> Callable[[HostileSite, Request], str]:
    """Return an attack that answers a training with a changed copy of what it started from."""

    def act(site: HostileSite, request: Request) -> str:
        tensors, text = site.start_of(request)
        config = json.loads(text)
        change(tensors, config)
        site.answer(request, encoded(tensors, json.dumps(config)))
        return ""

    return act


def broadcastable(tensors: dict[str, Tensor], _config: dict[str, object]) -> None:
    name = next(name for name in tensors if ".lora_B." in name)
    tensors[name] = tensors[name][:1]


def missing_layer(tensors: dict[str, Tensor], _config: dict[str, object]) -> None:
    for name in list(tensors)[:2]:
        del tensors[name]


def extra_layer(tensors: dict[str, Tensor], _config: dict[str, object]) -> None:
    tensors |= {f"another.{name}": tensor.clone() for name, tensor in list(tensors.items())[:2]}


def far_away(tensors: dict[str, Tensor], _config: dict[str, object]) -> None:
    for tensor in tensors.values():
        tensor.add_(1e3)


def content(make: Callable[[], bytes]) -> Callable[[HostileSite, Request], str]:
    """Return an attack that uploads bytes that are no update."""

    def act(site: HostileSite, request: Request) -> str:
        site.answer(request, make())
        return ""

    return act


def claims_2_to_the_40() -> bytes:
    entry = {"dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [0, 2**42]}
    header = json.dumps({"__metadata__": {"adapter_config": "{}", "precision": "float32"}, "whole.x": entry}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(64)


def lists_in_lists() -> bytes:
    config = "[" * 3_000 + "]" * 3_000
    metadata = {"adapter_config": config, "precision": "float32", "reference": ""}
    return tensor_bytes({"whole.x": torch.ones(2, 2)}, metadata)


def says(honest_update: bool = True, **changes: object) -> Callable[[HostileSite, Request], str]:
    """Return an attack whose update is well made, and whose receipt is not."""

    def act(site: HostileSite, request: Request) -> str:
        tensors, config = site.start_of(request)
        for tensor in tensors.values():
            tensor.add_(0.001)
        site.answer(request, encoded(tensors, config) if honest_update else None, **changes)
        return ""

    return act


def claims_a_foreign_name(site: HostileSite, request: Request) -> str:
    """Answer in another's name, with an update that is set aside: not in the other's place."""
    tensors, config = site.start_of(request)
    not_finite(tensors, {})
    site.answer(request, encoded(tensors, config), client=FOREIGN)
    return ""


def invented_seconds(site: HostileSite, request: Request) -> str:
    """Tell of a great many phases that there are none of, to be kept with the round for good."""
    site.answer(request, None, seconds={f"{INVENTED} {number}": 1.0 for number in range(NUM_INVENTED)})
    return ""


def answers_twice(site: HostileSite, request: Request) -> str:
    tensors, config = site.start_of(request)
    far_away(tensors, {})
    for _ in range(2):
        site.answer(request, encoded(tensors, config))
    return ""


def fails_with(code: str, text: str = "") -> Callable[[HostileSite, Request], str]:
    """Return an attack that answers with the code of a failure."""

    def act(site: HostileSite, request: Request) -> str:
        site.fail(request, code, text)
        return ""

    return act


# -- beside a training


def invented_answers(site: HostileSite, _request: Request) -> str:
    """Answer what nobody asked, with ids of a megabyte that the server would have to send back, and read nothing."""
    for number in range(NUM_ANSWERS):
        site.fail(Request(request_id=f"{number}-{'x' * (1 << 20)}"))
    return "all sent" if site.is_all_sent() else "ended before all was sent"


def forged_tickets(site: HostileSite, request: Request) -> str:
    blob, found = messages_pb2.Blob(sha256=bytes(32), size_bytes=64), set()
    flipped = bytes([request.ticket[0] ^ 1]) + request.ticket[1:]
    with site.exchange() as exchange:
        for ticket in (b"", b"x" * 200, flipped, request.ticket[:-1]):
            found.add(refusal_of(lambda ticket=ticket: exchange.stub.Write(chunks(ticket, blob, bytes(64)))))  # type: ignore[misc]
    return "; ".join(sorted(found))


def offset_games(site: HostileSite, request: Request) -> str:
    """Begin in the middle, end in the middle, send more than was announced, and ask for what is not there."""
    blob, found = messages_pb2.Blob(sha256=bytes(32), size_bytes=100), []
    with site.exchange() as exchange:
        for offset in (1, 99, 2**63):
            upload = [exchange_pb2.WriteRequest(ticket=request.ticket, blob=blob, offset=offset, data=b"x")]
            found.append(refusal_of(lambda upload=upload: exchange.stub.Write(iter(upload))))  # type: ignore[misc]
        found.append(refusal_of(lambda: exchange.stub.Write(chunks(request.ticket, blob, bytes(200)))))
        huge_blob = messages_pb2.Blob(sha256=bytes(32), size_bytes=2**62)
        found.append(refusal_of(lambda: exchange.stub.Write(chunks(request.ticket, huge_blob, bytes(10)))))
        whole = request.adapter.whole
        beyond = exchange_pb2.ReadRequest(sha256=whole.sha256, offset=whole.size_bytes + 1)
        found.append(refusal_of(lambda: list(exchange.stub.Read(beyond))))
        elsewhere = exchange_pb2.ReadRequest(sha256=b"../../identity/ca.key".ljust(32, b"\0"))
        found.append(refusal_of(lambda: list(exchange.stub.Read(elsewhere))))
    return "; ".join(found)


def idle_connections(site: HostileSite, _request: Request) -> str:
    """Open connections that never say a word; they stay until the site itself goes."""
    host, port = split_address(site.address)
    site.kept += [socket.create_connection((host, port), 5) for _ in range(NUM_IDLE)]
    return f"{NUM_IDLE} opened"


def no_tls(site: HostileSite, _request: Request) -> str:
    """Speak anything but TLS, and then TLS without a certificate."""
    host, port = split_address(site.address)
    http = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    for words in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", http, bytes(100_000), b"\x16\x03"):
        with socket.create_connection((host, port), 5) as connection:
            connection.sendall(words)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection((host, port), 5) as raw, context.wrap_socket(raw) as connection:
            connection.sendall(http)
            return f"{len(connection.recv(10))} bytes without a certificate"
    except OSError:
        return "refused"


def another_site_of_the_same_name(site: HostileSite, _request: Request) -> str:
    """Connect once more as the same site: the former connection ends, which is this one."""
    with HostileSite(site.address, site.credentials, (), known=site.known, describe=site.describe) as other:
        other.welcomed.wait(DEADLINE_SECONDS)
    return "joined twice"


# -- scores


def scored(**changes: object) -> Callable[[HostileSite, Request], str]:
    """Return an attack that answers an evaluation with such a score."""

    def act(site: HostileSite, request: Request) -> str:
        site.answer(request, receipt=site.scores(request, **changes))
        return ""

    return act


def invented_groups(site: HostileSite, request: Request) -> str:
    receipt = site.scores(request)
    for number in range(NUM_INVENTED // 10):
        receipt.groups[f"{INVENTED} {number}"].CopyFrom(messages_pb2.Score(num_examples=1, loss=0.0, metric=1.0))
        receipt.predictions[number] = number
    site.answer(request, receipt=receipt)
    return ""


def score_of_another_round(site: HostileSite, request: Request) -> str:
    receipt = site.scores(request, metric=1.0, loss=0.0)
    receipt.run, receipt.round, receipt.shard = INVENTED, 10**6, 7
    site.answer(request, receipt=receipt)
    return ""


def of(kind: str, **acts: Callable[[HostileSite, Request], str]) -> tuple[Attack, ...]:
    """Return attacks of one kind by their names."""
    return tuple(Attack(name, kind, act) for name, act in acts.items())


ATTACKS = (
    *of("first", wrong_fingerprint=wrong_fingerprint),
    *of(
        "join",
        absurd_numbers_of_itself=absurd_numbers_of_itself,
        escapes_of_itself=escapes_of_itself,
    ),
    *of(
        "initialise",
        first_adapter_empty=first_adapter(empty),
        first_adapter_unpaired=first_adapter(unpaired),
        first_adapter_a_list=first_adapter_a_list,
        first_adapter_of_another_kind=first_adapter(other_peft_type),
        first_adapter_of_nan=first_adapter(not_finite),
        first_adapter_of_huge_numbers=first_adapter(huge),
        first_adapter_of_float64=first_adapter(float64),
        first_adapter_of_an_absurd_alpha=first_adapter(absurd_alpha),
        first_adapter_of_a_pathological_pattern=first_adapter(pathological_pattern),
        first_adapter_of_foreign_keys=first_adapter(foreign_keys),
        first_adapter_of_another_seed=first_adapter(of_another_seed),
        first_adapter_never_uploaded=first_adapter_never_uploaded,
        first_adapter_never_answered=silence,
        first_adapter_of_bytes=content(lambda: b"no adapter"),
    ),
    *of(
        "train",
        update_of_nan=update(not_finite),
        update_of_infinity=update(infinite),
        update_of_huge_numbers=update(huge),
        update_far_away=update(far_away),
        update_of_float64=update(float64),
        update_that_would_broadcast=update(broadcastable),
        update_unpaired=update(unpaired),
        update_without_a_layer=update(missing_layer),
        update_with_a_layer_more=update(extra_layer),
        update_of_another_scaling=update(absurd_alpha),
        update_with_a_pathological_pattern=update(pathological_pattern),
        update_of_pickle=content(lambda: pickle.dumps({"A": [1.0]})),
        update_of_2_to_the_40_numbers=content(claims_2_to_the_40),
        update_of_lists_in_lists=content(lists_in_lists),
        update_never_uploaded=says(honest_update=False),
        update_of_another_round=says(round=7_777),
        update_of_another_run=says(run="another"),
        update_of_a_loss_that_is_none=says(loss=math.nan),
        update_of_absurdly_many_examples=says(num_examples=10**9),
        update_of_no_examples=says(num_examples=0),
        update_of_negative_examples=says(num_examples=-(2**62)),
        update_in_a_foreign_name=claims_a_foreign_name,
        update_twice=answers_twice,
        status_of_escapes=says(honest_update=False, status=ESCAPES),
        failure_of_escapes=fails_with(ESCAPES, ESCAPES),
        failure_of_a_dead_worker=fails_with("worker_died"),
        invented_seconds=invented_seconds,
        silent_at_training=silence,
    ),
    *of(
        "beside",
        invented_answers=invented_answers,
        forged_tickets=forged_tickets,
        offset_games=offset_games,
        idle_connections=idle_connections,
        no_tls=no_tls,
        another_site_of_the_same_name=another_site_of_the_same_name,
    ),
    *of(
        "evaluate",
        score_of_a_billion_examples=scored(num_examples=10**9, loss=0.0, metric=1.0),
        score_of_2_to_the_64_examples=scored(num_examples=2**64 - 1),
        score_of_nan=scored(loss=math.nan, metric=math.inf),
        score_of_no_examples=scored(num_examples=0),
        score_of_invented_groups=invented_groups,
        score_of_another_round=score_of_another_round,
        silent_at_evaluation=silence,
    ),
)
