"""The global adapter of a request: fetched once for each site, and of a known one only the difference."""

from collections.abc import Callable
from pathlib import Path

from fedlora.client.site.line import Line
from fedlora.client.site.outbox import Outbox
from fedlora.client.site.transfer import download
from fedlora.common.phases import announce
from fedlora.v1 import messages_pb2


def fetch(
    offered: messages_pb2.OfferedAdapter, outbox: Outbox, line: Callable[[], Line], *, takes_difference: bool
) -> tuple[Path, tuple[Path, Path] | None]:
    """Return the file of the adapter on offer; where it is not there yet, the difference and reference it is made of.

    Args:
        line: gives the present connection, where one is needed.
        takes_difference: whether a difference will do, if the site holds what it is to.

    Raises:
        grpc.RpcError: the connection broke; calling again goes on.
        FedloraError: the file came damaged again and again, or does not fit on the disk.
    """
    whole = outbox.adapter_file(offered.whole.sha256.hex())
    if whole.is_file():
        return whole, None
    connection = line()
    announce("download")
    reference = outbox.adapter_file(offered.reference.sha256.hex())
    if takes_difference and offered.HasField("difference") and reference.is_file():
        difference = outbox.adapter_file(offered.difference.sha256.hex())
        if not difference.is_file():
            download(connection.exchange, offered.difference, difference, metadata=connection.metadata)
        return whole, (difference, reference)
    download(connection.exchange, offered.whole, whole, metadata=connection.metadata)
    return whole, None
