"""Members of a sum and its server, in one process: the tests' way of telling each what the others say."""

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedlora.secure_sums.gathering import Gathering
from fedlora.secure_sums.keys import RoundKeys, SumPlan, least_threshold
from fedlora.secure_sums.member import Member, Sign, Verify
from fedlora.secure_sums.ring import Ring

# Where a member leaves: before its keys, and so on; at ("masked", 1) before its vector for the second sum.
Place = str | tuple[str, int]


class Signers:
    """Keys of certificates, by name."""

    def __init__(self, names: Sequence[str]) -> None:
        self._keys = {name: Ed25519PrivateKey.generate() for name in names}

    def sign(self, name: str) -> Sign:
        return self._keys[name].sign

    @property
    def verify(self) -> Verify:
        def verify(name: str, message: bytes, signature: bytes) -> bool:
            try:
                self._keys[name].public_key().verify(signature, message)
            except (InvalidSignature, KeyError):
                return False
            return True

        return verify


def names(count: int) -> tuple[str, ...]:
    return tuple(f"site-{number:03}" for number in range(count))


def plan_of(count: int, *, threshold: int | None = None, num_sums: int = 2) -> SumPlan:
    return SumPlan("run", 1, 0, names(count), threshold or least_threshold(count), num_sums)


def members_of(plan: SumPlan, signers: Signers | None = None) -> dict[str, Member]:
    signers = signers or Signers(plan.members)
    return {
        name: Member(plan, name, RoundKeys.made(plan.num_sums), sign=signers.sign(name), verify=signers.verify)
        for name in plan.members
    }


def introduced(plan: SumPlan, members: Mapping[str, Member]) -> Gathering:
    """Return what gathers the sums of members, all of whom know each other's keys and shares."""
    gathering = Gathering(plan)
    for member in members.values():
        gathering.add_keys(member.public())
    roster = gathering.roster()
    for name, member in members.items():
        gathering.add_sealed(name, member.sealed(roster))
    for name, member in members.items():
        member.take(*gathering.sealed_for(name), gathering.sealers())
    return gathering


def vectors_of(plan: SumPlan, size: int = 1000, *, kind: type = np.uint32) -> list[dict[str, Ring]]:
    """Return for each sum each member's vector."""
    random = np.random.default_rng(7)
    high = int(np.iinfo(kind).max)
    return [
        {name: random.integers(0, high, size, dtype=kind, endpoint=True) for name in plan.members}
        for _ in range(plan.num_sums)
    ]


def gathered(
    plan: SumPlan,
    vectors: Sequence[Mapping[str, Ring]],
    leaving: Mapping[str, Place] | None = None,
    *,
    members: Mapping[str, Member] | None = None,
    each: Callable[[Gathering, int], None] | None = None,
) -> list[tuple[Ring, tuple[str, ...]]]:
    """Return each sum's total and who is in it, with members that leave at their places and do not come back."""
    members, gathering = members or members_of(plan), Gathering(plan)
    gone: set[str] = set()

    def here(place: Place, among: Collection[str]) -> list[str]:
        gone.update(name for name, where in (leaving or {}).items() if where == place)
        return [name for name in among if name not in gone]

    for name in here("keys", plan.members):
        gathering.add_keys(members[name].public())
    roster = gathering.roster()
    for name in here("sealed", [keys.member for keys in roster]):
        gathering.add_sealed(name, members[name].sealed(roster))
    for name in here("taken", [keys.member for keys in roster]):
        members[name].take(*gathering.sealed_for(name), gathering.sealers())
    totals = []
    for index in range(plan.num_sums):
        for name in here(("masked", index), plan.members):
            gathering.add_masked(index, name, members[name].masked(index, vectors[index][name]))
        there = gathering.there(index)
        vouchers = {name: members[name].voucher(index) for name in there}
        consents = {name: members[name].consented(index, there) for name in here(("consented", index), there)}
        for name in here(("revealed", index), consents):
            gathering.add_revealed(index, name, members[name].revealed(index, consents, vouchers))
        if each is not None:
            each(gathering, index)
        totals.append((gathering.total(index), there))
    return totals
