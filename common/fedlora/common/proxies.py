"""The HTTP proxy on the way to a server, out of the environment's variables: the passwords in them are never shown."""

import base64
import os
import urllib.parse
import urllib.request
from dataclasses import dataclass, field

from fedlora.common.addresses import split_address
from fedlora.common.errors import ConfigError

_SCHEMES = ("grpc", "https", "http")
_DEFAULT_PORT = 80
_EXPECTED = "expected http://HOST:PORT or http://USER:PASSWORD@HOST:PORT; or except the server's host with no_proxy"


@dataclass(frozen=True)
class Proxy:
    """An HTTP proxy, and how one logs in there: the value of the Proxy-Authorization header, empty without a login."""

    host: str
    port: int
    authorization: str = field(default="", repr=False)

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def proxy_for(host: str) -> Proxy | None:
    """Return the proxy on the way to `host`, None where none is set or the host is excepted.

    The first of grpc_proxy, https_proxy and http_proxy counts, as gRPC has it.

    Raises:
        ConfigError: it is no HTTP proxy's address. The message does not show it.
    """
    found = urllib.request.getproxies()
    scheme = next((scheme for scheme in _SCHEMES if found.get(scheme)), None)
    if scheme is None or urllib.request.proxy_bypass(host):
        return None
    return parse_proxy(found[scheme], _variable(scheme))


def parse_proxy(text: str, variable: str) -> Proxy:
    """Return the proxy in a variable's text. What stands before the last @ is a login, whatever characters it has.

    Raises:
        ConfigError: it is no HTTP proxy's address. The message does not show it.
    """
    scheme, separator, rest = text.strip().partition("://")
    if not separator:
        scheme, rest = "http", scheme
    if scheme.lower() != "http":
        raise ConfigError(f"{variable} is no HTTP proxy's address (another scheme than http://); {_EXPECTED}")
    login, _, place = rest.rpartition("@")
    place = place.removesuffix("/")
    has_port = place.rpartition("]")[2].count(":") == 1
    try:
        host, port = split_address(place if has_port else f"{place}:{_DEFAULT_PORT}")
    except ConfigError:
        # Its message shows what was found, which may be a password without its @.
        raise ConfigError(f"{variable} is no HTTP proxy's address (its host or port); {_EXPECTED}") from None
    return Proxy(host, port, _authorization(login))


def _variable(scheme: str) -> str:
    name = f"{scheme}_proxy"
    return name if name in os.environ or name.upper() not in os.environ else name.upper()


def _authorization(login: str) -> str:
    if not login:
        return ""
    user, _, password = (urllib.parse.unquote(part) for part in login.partition(":"))
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"
