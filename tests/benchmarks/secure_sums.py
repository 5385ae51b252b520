"""`secure-sums`: what it takes to hide a vector among 5, 50 and 500 members, and to take the masks out of the sum.

First whole rounds of five sites that do nothing, over mTLS on this machine, open ones and secure ones. Then, in one
process and one thread, without a network: a real member among as many as there are, each with keys and shares
of its own. From 50 members on a member hides its vector with some of the others alone (`neighbours`). The server's
part is that of a sum in which nobody leaves: a mask of each member.
"""

import secrets
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from figures import Figure, at_most
from fresh_process import run_fresh
from progress import progress

from fedlora.secure_sums.keys import RoundKeys, SumPlan, least_threshold
from fedlora.secure_sums.masks import add_mask
from fedlora.secure_sums.member import Member
from fedlora.secure_sums.neighbours import degree
from fedlora.secure_sums.ring import FixedPoint


def figures(*, quick: bool) -> Iterator[Figure]:
    """Yield the seconds of a mask, of a member's steps and of the server's."""
    for megabytes in (1,) if quick else (10, 100):
        yield from _rounds(megabytes, num_sites=3 if quick else 5, num_rounds=1 if quick else 3)
    size = (1 << 20) if quick else 25_000_000
    num_repeats = 1 if quick else 5
    vector = np.zeros(size, np.uint32)
    numbers = np.random.default_rng(0).normal(size=size).astype(np.float32)
    fixed = FixedPoint(32, 64.0, 10)
    seed = secrets.token_bytes(32)
    mega = vector.nbytes / 1e6
    masks = [_seconds(lambda: add_mask(vector, seed)) for _ in range(num_repeats)]
    yield Figure(f"a mask of {mega:.0f} MB", "s", masks, at_most(1.0))
    writing = [_seconds(lambda: fixed.written(numbers, weight=0.1)) for _ in range(num_repeats)]
    yield Figure(f"{mega:.0f} MB of float32 in fixed point", "s", writing)
    for num_members in (5, 50) if quick else (5, 50, 500):
        for part in (vector[: size // 10],) if quick else (vector[: size // 10], vector):
            yield from _member(num_members, part)


def _rounds(megabytes: float, *, num_sites: int, num_rounds: int) -> Iterator[Figure]:
    """Yield seconds and bytes of a secure round beside an open one."""
    medians = {}
    for name, is_secure in (("open", 0), ("secure", 1)):
        label = f"{num_sites} sites, {megabytes:g} MB in float32: a round, {name}"
        progress(label)
        found = run_fresh("timed_secure_rounds.py", megabytes, num_sites, num_rounds, is_secure)
        medians[name] = statistics.median(found["round"])
        yield Figure(label, "s", found["round"])
        for way in ("up", "down"):
            yield Figure(f"{label}, a site {way}", "MB", [count / num_sites / 1e6 for count in found[way]])
    yield Figure(f"{num_sites} sites, {megabytes:g} MB: secure / open", "x", [medians["secure"] / medians["open"]])


def _member(num_members: int, vector: "np.ndarray[tuple[int, ...], np.dtype[np.uint32]]") -> Iterator[Figure]:
    progress(f"{num_members} members")
    names = tuple(f"site-{number:03}" for number in range(num_members))
    plan = SumPlan("run", 1, 0, names, least_threshold(num_members), 2)
    signers = {name: Ed25519PrivateKey.generate() for name in names}

    def verify(name: str, message: bytes, signature: bytes) -> bool:
        signers[name].public_key().verify(signature, message)
        return True

    members = {
        name: Member(plan, name, RoundKeys.made(plan.num_sums), sign=signers[name].sign, verify=verify)
        for name in names
    }
    roster = [members[name].public() for name in names]
    one, title = members[names[0]], f"{num_members} members"
    sealed: dict[str, bytes] = {}
    yield Figure(
        f"{title}: keys checked, shares made", "s", [_seconds(lambda: sealed.update(one.sealed(roster).shares))]
    )
    every = {name: members[name].sealed(roster) for name in sealed}
    theirs = {name: each.shares[names[0]] for name, each in every.items()}
    digests = {name: each.digests[names[0]] for name, each in every.items()}
    yield Figure(f"{title}: shares opened", "s", [_seconds(lambda: one.take(theirs, digests, names))])
    mega = vector.nbytes / 1e6
    hiding = [_seconds(lambda: one.masked(0, vector))]
    yield Figure(f"{title}: {mega:.0f} MB hidden, with {degree(num_members)} others", "s", hiding)
    total = vector.copy()
    seeds = [secrets.token_bytes(32) for _ in names]

    def take_out() -> None:
        for seed in seeds:
            add_mask(total, seed, subtracts=True)

    yield Figure(f"{title}: {mega:.0f} MB, their masks taken out", "s", [_seconds(take_out)])
    yield Figure(f"{title}: bytes of keys and shares, a member up", "kB", [_bytes_up(sealed, num_members) / 1e3])


def _bytes_up(sealed: dict[str, bytes], num_members: int) -> int:
    """Return the bytes that a member sends beside its vectors for two sums: keys, shares, consents, what it reveals."""
    num_holders = degree(num_members) + 1
    keys, signed, revealed, digests = 32 + 4 * 32 + 64, 4 * 64, 2 * num_holders * 33, 4 * num_holders * 16
    return keys + sum(map(len, sealed.values())) + digests + signed + revealed


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
