"""Tickets: the permission to upload one update, which goes out with the request and comes back with the bytes.

A ticket names what it is for, signed with the server's own secret, so that no table of them has to outlive a restart.
"""

import hmac
import secrets
from dataclasses import dataclass
from pathlib import Path

from fedlora.common.codec import Codec
from fedlora.common.files import write_file

_KEY_BYTES = 32
_MAC_BYTES = 32


@dataclass(frozen=True)
class Ticket:
    """One update's place: of which run, round and attempt, from which site, and of how many bytes at most."""

    run: str
    round: int
    attempt: int
    site: str
    max_bytes: int


_TICKET = Codec(Ticket)


class TicketOffice:
    """Issues and checks tickets with a secret that lies in a file."""

    def __init__(self, key_file: Path) -> None:
        """Take the secret from `key_file`, which is made if it is missing or damaged."""
        key = key_file.read_bytes() if key_file.is_file() else b""
        if len(key) != _KEY_BYTES:
            key = secrets.token_bytes(_KEY_BYTES)
            write_file(key_file, key)
            key_file.chmod(0o600)
        self._key = key

    def issue(self, ticket: Ticket) -> bytes:
        """Return the ticket as the bytes that the site sends back."""
        text = _TICKET.dump(ticket).encode()
        return hmac.digest(self._key, text, "sha256") + text

    def read(self, raw: bytes) -> Ticket | None:
        """Return the ticket in bytes that a site sent, None where we did not issue them."""
        mac, text = raw[:_MAC_BYTES], raw[_MAC_BYTES:]
        if not hmac.compare_digest(mac, hmac.digest(self._key, text, "sha256")):
            return None
        return _TICKET.load(text)
