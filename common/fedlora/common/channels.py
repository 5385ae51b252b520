"""What both ends of a gRPC connection agree on: keepalive, sizes, and how a site's channel is made."""

from dataclasses import dataclass

import grpc

from fedlora.common.addresses import require_loopback, split_address
from fedlora.common.proxies import proxy_for

# An idle firewall forgets a connection after minutes, and a half-open one is found out after a minute.
_KEEPALIVE_MS = 20_000
# On a slow link the answer waits behind megabytes of an adapter.
_KEEPALIVE_TIMEOUT_MS = 40_000
_MAX_MESSAGE_BYTES = 16 << 20

# Of a file on the wire. A connection holds a few of them in memory, and a server has many connections.
CHUNK_BYTES = 256 << 10
# With this a server refuses what it has no room for.
DISK_FULL = "disk_full"

# Under which a site names itself where there are no certificates, on loopback.
SITE_METADATA = "fedlora-site"

Options = list[tuple[str, int | str]]


@dataclass(frozen=True)
class Credentials:
    """A site's key and certificate, the authority it trusts, and the name in the server's certificate, all PEM.

    `server_name` is empty where the server's certificate names its host.
    """

    key: bytes
    certificate: bytes
    authority: bytes
    server_name: str


def both_ends(*, most_received: int = _MAX_MESSAGE_BYTES) -> Options:
    """Return the channel options of server and site, which takes messages of so many bytes at most."""
    return [
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        # The one that counts: gRPC 1.85 waits for the answer to any ping for so long, by default a minute.
        ("grpc.http2.ping_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_receive_message_length", most_received),
        ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    ]


def open_channel(address: str, credentials: Credentials | None) -> grpc.Channel:
    """Return a channel to `address`, HOST:PORT; through `https_proxy` where that is set.

    Without credentials it is plain text, which is for loopback alone.

    Raises:
        ConfigError: plain text to another machine, or a proxy that is none.
    """
    options = [
        *both_ends(),
        # We back off ourselves, and say so.
        ("grpc.initial_reconnect_backoff_ms", 500),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        ("grpc.enable_retries", 0),
        # Channels to one address would share a connection, and its certificate with it.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if credentials is None:
        require_loopback(address)
        return grpc.insecure_channel(address, [*options, ("grpc.enable_http_proxy", 0)])
    if credentials.server_name:
        options.append(("grpc.ssl_target_name_override", credentials.server_name))
    return grpc.secure_channel(
        address,
        grpc.ssl_channel_credentials(credentials.authority, credentials.key, credentials.certificate),
        [*options, *_through_proxy(address)],
    )


def speaks_grpc(address: str, *, seconds: float) -> bool:
    """Return whether somebody who speaks gRPC, in plain text, answers at HOST:PORT within so many seconds."""
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=seconds)
        except grpc.FutureTimeoutError:
            return False
    return True


def _through_proxy(address: str) -> Options:
    """Return the options that lead through the proxy on the way, which gRPC itself reads less strictly than we do."""
    proxy = proxy_for(split_address(address)[0])
    if proxy is None:
        return [("grpc.enable_http_proxy", 0)]
    options: Options = [("grpc.http_proxy", f"http://{proxy.address}")]
    if proxy.authorization:
        options.append(("grpc.http_connect_headers", f"Proxy-Authorization:{proxy.authorization}"))
    return options


def details_of(error: grpc.RpcError) -> str:
    """Return what an error of gRPC says: a code of ours, gRPC's own words, or nothing."""
    # Its base class has no details; every error that a call raises has.
    details = getattr(error, "details", None)
    return str(details() or "") if details is not None else ""
