"""Who may ask for what: requests that only read, from pages of this server's own, under a name that is this machine's.

A page of anybody's can have a browser ask servers on loopback. Under a name of its own, which it lets point here after
it was loaded, it could also read the answers: so a request must name an address, this machine, or what was typed.
"""

import ipaddress
import socket
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedlora.common.addresses import split_address
from fedlora.common.errors import ConfigError

_METHODS = ("GET", "HEAD")
_LONGEST_TARGET = 4096
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Guard:
    """Lets through what may be asked, refuses all else in a line, and sets the headers of every answer."""

    def __init__(self, app: ASGIApp, *, names: Collection[str]) -> None:
        """`names` are this server's beside IP addresses, as `own_names` returns them."""
        self._app = app
        self._names = frozenset(names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        refusal = _refusal(scope, self._names)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await (refusal or self._app)(scope, receive, send_guarded)


def own_names(address: str) -> frozenset[str]:
    """Return the names under which a server at HOST:PORT may be asked, beside IP addresses."""
    host, _ = split_address(address, listens=True)
    return frozenset(name.lower().removesuffix(".") for name in ("localhost", host, socket.gethostname()))


def _refusal(scope: Scope, names: Collection[str]) -> PlainTextResponse | None:
    headers = Headers(scope=scope)
    if scope["method"] not in _METHODS:
        return PlainTextResponse("this page only reads: GET and HEAD\n", 405, {"Allow": ", ".join(_METHODS)})
    if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > _LONGEST_TARGET:
        return PlainTextResponse("the address is too long\n", 414)
    if not _is_own(headers.getlist("host"), names):
        said = (
            "the Host header names neither an IP address nor this machine; open the address that the command printed\n"
        )
        return PlainTextResponse(said, 421)
    # A link from elsewhere may lead here; a page from elsewhere may load nothing of this.
    is_elsewhere = headers.get("sec-fetch-site", "none") in ("cross-site", "same-site")
    if is_elsewhere and headers.get("sec-fetch-mode") != "navigate":
        return PlainTextResponse("asked for by a page from elsewhere\n", 403)
    return None


def _is_own(hosts: Collection[str], names: Collection[str]) -> bool:
    """Return whether the one Host header of a request is a name of this server's, with whatever port."""
    if len(hosts) != 1:
        return False
    (said,) = hosts
    try:
        host, _ = split_address(said if _has_port(said) else f"{said}:80")
    except ConfigError:
        return False
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host.lower().removesuffix(".") in names
    return True


def _has_port(host: str) -> bool:
    return ":" in host.rpartition("]")[2]
