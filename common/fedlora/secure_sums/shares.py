"""A secret of 32 bytes among holders, so that any `threshold` of them together have it, and fewer know nothing.

Shamir, "How to share a secret", 1979: a polynomial of degree threshold - 1 modulo a prime, with the secret at 0 and a
share at each holder's number.
"""

import secrets
from collections.abc import Mapping, Sequence

SECRET_BYTES = 32
SHARE_BYTES = 33
# The smallest prime above all secrets.
_PRIME = (1 << 256) + 297


def shared(secret: bytes, *, threshold: int, holders: Sequence[int]) -> dict[int, bytes]:
    """Return each holder's share.

    Args:
        secret: of `SECRET_BYTES`.
        threshold: how many holders it takes.
        holders: their numbers, from 1 on, all different.

    Raises:
        ValueError: the secret has another length, numbers are no holders', or there are fewer than `threshold`.
    """
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret of {len(secret)} bytes; expected {SECRET_BYTES}")
    if len(set(holders)) != len(holders) or not all(0 < holder < 1 << 32 for holder in holders):
        raise ValueError("expected holders' numbers from 1 on, all different")
    if not 1 <= threshold <= len(holders):
        raise ValueError(f"a threshold of {threshold} with {len(holders)} holders")
    coefficients = [int.from_bytes(secret, "big"), *(secrets.randbelow(_PRIME) for _ in range(threshold - 1))]
    return {holder: _value(coefficients, holder).to_bytes(SHARE_BYTES, "big") for holder in holders}


def joined(shares: Mapping[int, bytes], *, threshold: int) -> bytes:
    """Return the secret that so many shares have together.

    Shares that do not belong together give another secret, or none: whoever joins them checks what comes out.

    Raises:
        ValueError: there are too few, or they have no secret.
    """
    if len(shares) < threshold:
        raise ValueError(f"{len(shares)} shares; it takes {threshold}")
    points = [(holder, int.from_bytes(share, "big")) for holder, share in sorted(shares.items())[:threshold]]
    total = 0
    for holder, value in points:
        over, under = 1, 1
        for other, _ in points:
            if other != holder:
                over, under = over * other % _PRIME, under * (other - holder) % _PRIME
        total += value * over * pow(under, -1, _PRIME)
    try:
        return (total % _PRIME).to_bytes(SECRET_BYTES, "big")
    except OverflowError:
        raise ValueError("the shares do not belong together") from None


def _value(coefficients: Sequence[int], place: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * place + coefficient) % _PRIME
    return value
