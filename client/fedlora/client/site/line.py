"""A site's present connection to its server, as far as others need it."""

from collections.abc import Callable
from dataclasses import dataclass

import grpc

from fedlora.client.site.transfer import Exchange, Metadata
from fedlora.v1 import session_pb2


@dataclass(frozen=True)
class Line:
    """How to send, and the exchange beside it."""

    send: Callable[[session_pb2.ConnectRequest], None]
    exchange: Exchange
    metadata: Metadata


class ConnectionGone(grpc.RpcError):
    """There is no connection at the moment."""

    def code(self) -> grpc.StatusCode:
        """Return the status that grpc itself gives."""
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        """Return it in words."""
        return "not connected"
