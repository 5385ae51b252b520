"""Who stands at the port without a call of a site: of one address only so many connections, and none for long.

gRPC accepts connections by itself and tells nobody. So the doorkeeper looks through the process's own descriptors for
them, and shuts those down that are too many. The rest gRPC does: it ends handshakes that take too long, connections
without a call, and at its most connections it accepts no other.
"""

import logging
import os
import socket
import stat
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import quote

logger = logging.getLogger(__name__)

# Several sites may be behind one address, and all come back at once; a handshake is over before the second look.
MOST_OF_AN_ADDRESS = 64
LOOK_SECONDS = 1.0
# So much of the time may go into looking.
LOOKING_SHARE = 0.02
_SAY_AGAIN_SECONDS = 60.0
_DESCRIPTORS = "/dev/fd"


@dataclass
class Doorkeeper:
    """Looks at the connections to one port of this process.

    Attributes:
        most: the connections that the port takes; that there are as many is said.
        since: by the other end of each connection without a call, when it was first seen.
    """

    port: int
    most: int
    since: dict[str, float] = field(default_factory=dict)
    _said: dict[str, float] = field(default_factory=dict)

    def look(self, in_use: Collection[str]) -> None:
        """Shut down the oldest connections beyond what an address may have without a call of a site.

        Args:
            in_use: the other ends of those with such a call, as `peer_text` has them.
        """
        now = time.monotonic()
        try:
            num_open = len(os.listdir(_DESCRIPTORS))
            found = list(self._connections()) if num_open > MOST_OF_AN_ADDRESS else []
        except OSError as error:
            self._say("", f"the connections cannot be counted ({error.strerror})")
            return
        idle = [(host, peer, descriptor) for host, peer, descriptor in found if peer not in in_use]
        self.since = {peer: self.since.get(peer, now) for _, peer, _ in idle}
        by_address: dict[str, list[tuple[float, str, int]]] = {}
        for host, peer, descriptor in idle:
            if self.since[peer] < now:
                by_address.setdefault(host, []).append((self.since[peer], peer, descriptor))
        for host, waiting in by_address.items():
            beyond = sorted(waiting)[: max(0, len(waiting) - MOST_OF_AN_ADDRESS)]
            num_closed = sum(self._shut(descriptor, peer) for _, peer, descriptor in beyond)
            if num_closed:
                self._say(
                    host,
                    f"{num_closed} connections from {host} were closed: on more than {MOST_OF_AN_ADDRESS} at a time no "
                    "site has made a call",
                )
        if len(found) >= self.most:
            self._say(
                "",
                f"all {self.most} connections that this process may have are taken, and others are refused; raise the "
                "limit of open files (ulimit -n), or look who connects",
            )

    def _connections(self) -> Iterator[tuple[str, str, int]]:
        """Yield address, other end and descriptor of each connection to the port."""
        for name in os.listdir(_DESCRIPTORS):
            with suppress(OSError):  # Closed meanwhile, or none of a network.
                if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                    continue
                with socket.socket(fileno=os.dup(int(name))) as connection:
                    is_ours = connection.family in (socket.AF_INET, socket.AF_INET6)
                    if is_ours and connection.getsockname()[1] == self.port:
                        host, number = connection.getpeername()[:2]
                        yield _plain(host), peer_text(host, number), int(name)

    def _shut(self, descriptor: int, peer: str) -> bool:
        """Shut a connection down, unless its descriptor is another's by now; return whether it was."""
        with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as connection:
            host, number = connection.getpeername()[:2]
            if peer_text(host, number) == peer:
                connection.shutdown(socket.SHUT_RDWR)
                return True
        return False

    def _say(self, key: str, words: str) -> None:
        """Log something, and of the same matter no more for a minute."""
        now = time.monotonic()
        self._said = {known: when for known, when in self._said.items() if now - when < _SAY_AGAIN_SECONDS}
        if key not in self._said:
            self._said[key] = now
            logger.warning("%s", words)


def peer_text(host: str, number: int) -> str:
    """Return gRPC's words for the other end of a connection, from an address of the operating system's."""
    host = _plain(host)
    return f"ipv6:{quote(f'[{host}]', safe=':')}:{number}" if ":" in host else f"ipv4:{host}:{number}"


def _plain(host: str) -> str:
    """Return an address without what a port for IPv6 too puts before one of IPv4."""
    return host.removeprefix("::ffff:")
