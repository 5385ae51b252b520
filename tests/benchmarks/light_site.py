"""A site without worker and disk, many of which fit into one process: sessions and uploads are the product's own."""

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from queue import SimpleQueue

from idle_app import LOSS, NUM_EXAMPLES, described
from idle_federation import IdleFederation

from fedlora.client.site.joining import credentials_of, enrol
from fedlora.client.site.transfer import upload
from fedlora.common.channels import Credentials, open_channel
from fedlora.common.messages import OK, InitialiseReceipt, TrainReceipt
from fedlora.common.wire import PROTOCOL, write_description, write_receipt
from fedlora.v1 import messages_pb2, session_pb2
from fedlora.v1.exchange_pb2_grpc import AdapterExchangeServiceStub
from fedlora.v1.session_pb2_grpc import SessionServiceStub


def enrolled(federation: IdleFederation, name: str) -> Credentials:
    """Return the credentials of a site that is invited and enrolled by this."""
    address = f"127.0.0.1:{federation.port}"
    return credentials_of(enrol(address, federation.token(name), name=name, state=federation.folder / f"{name}.site"))


class LightSite:
    """One connection of a site, from its Hello on; it ends with `close`."""

    def __init__(self, address: str, name: str, credentials: Credentials) -> None:
        self._name = name
        self._channel = open_channel(address, credentials)
        self._exchange = AdapterExchangeServiceStub(self._channel)
        self._outgoing: SimpleQueue[session_pb2.ConnectRequest | None] = SimpleQueue()
        hello = session_pb2.Hello(protocol=PROTOCOL, version=version("fedlora"))
        self._outgoing.put(session_pb2.ConnectRequest(hello=hello))
        self._call = SessionServiceStub(self._channel).Connect(iter(self._outgoing.get, None))
        if not next(self._call).HasField("welcome"):
            raise RuntimeError("the server did not begin with its welcome")

    def say_ready(self) -> None:
        """Count as a site that has rehearsed."""
        description = write_description(described(self._name, 0, 0))
        self._outgoing.put(session_pb2.ConnectRequest(readiness=session_pb2.Readiness(description=description)))

    def responses(self) -> Iterator[session_pb2.ConnectResponse]:
        """Yield what the server sends."""
        yield from self._call

    def answer(self, request: session_pb2.Request, update: Path, blob: messages_pb2.Blob) -> None:
        """Upload the file of a blob as a request's adapter, and send the receipt."""
        upload(self._exchange, request.ticket, update, blob)
        answer = session_pb2.Answer(request_id=request.request_id)
        if request.HasField("train"):
            train = request.train
            receipt = TrainReceipt(
                train.run, train.round, train.attempt, self._name, OK, NUM_EXAMPLES, num_steps=1, loss=LOSS
            )
            write_receipt(receipt, answer)
        else:
            write_receipt(InitialiseReceipt(), answer)
        answer.adapter.encoded.CopyFrom(blob)
        self._outgoing.put(session_pb2.ConnectRequest(answer=answer))

    def close(self) -> None:
        """End the connection without a word, as a process that ends does."""
        self._outgoing.put(None)
        self._call.cancel()
        self._channel.close()
