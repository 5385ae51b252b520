"""HOST:PORT, as people type it: read strictly, so that what is wrong is said before anybody connects."""

import ipaddress
import re
import socket

from fedlora.common.errors import ConfigError

_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_LONGEST_HOST = 253
_MOST_PORT = 65_535
_EXPECTED = "expected HOST:PORT, such as fl.example.org:8470 or [::1]:8470"


def split_address(address: str, *, listens: bool = False) -> tuple[str, int]:
    """Return host and port of HOST:PORT or [IPV6]:PORT.

    Args:
        listens: where a server is to listen: port 0 is then any that is free.

    Raises:
        ConfigError: it is something else. What may be a password, before an @, is not shown.
    """
    what = _what_is_wrong(address, least_port=0 if listens else 1)
    if what:
        shown = address.rpartition("@")[2]
        raise ConfigError(f"{shown[:80]!r} is no address ({what}); {_EXPECTED}")
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def require_loopback(address: str) -> None:
    """Check that an address is one of this machine's own.

    Raises:
        ConfigError: it is not.
    """
    host, _ = split_address(address, listens=True)
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(host, None)}
    except OSError as error:
        raise ConfigError(f"{host} has no address ({error.strerror}); look at the spelling") from error
    if not all(ipaddress.ip_address(str(ip).partition("%")[0]).is_loopback for ip in found):
        raise ConfigError(
            f"--insecure sends adapters in plain text and is for loopback alone; {host} is another machine: "
            "leave it out, and invite the site"
        )


def _what_is_wrong(address: str, *, least_port: int) -> str:
    """Return what keeps a text from being an address, nothing where it is one."""
    if not address.isprintable() or " " in address:
        return "it has a space or a character that cannot be seen"
    scheme, separator, _ = address.partition("://")
    if separator:
        return "leave out " + (
            f"{scheme.lower()}://" if scheme.lower() in ("http", "https", "grpc") else "what is before the host"
        )
    if "@" in address:
        return "it has an @"
    host, colon, port = ("", "", "") if address.endswith("]") else address.rpartition(":")
    if not colon or (":" in host and not host.startswith("[")):
        return "an IPv6 address stands in [ ]" if ":" in host else "it has no port"
    if "/" in port:
        return "nothing follows the port"
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and least_port <= int(port) <= _MOST_PORT):
        return f"the port is no number from {least_port} to {_MOST_PORT}"
    return "" if _is_host(host) else "its host is neither a name nor an IP address"


def _is_host(host: str) -> bool:
    if host.startswith("[") and host.endswith("]"):
        try:
            ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            return False
        return True
    labels = host.removesuffix(".").split(".")
    return len(host) <= _LONGEST_HOST and all(map(_LABEL.fullmatch, labels))
