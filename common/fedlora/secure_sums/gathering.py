"""The server's part in the sums of a round: it hands on what members tell each other, adds up, and takes out the masks.

It believes no share: whether one is what its holder was given, and whether secrets are those of the member, is seen
from what that member has made known of them. So it knows who is at fault where a sum cannot be had.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedlora.secure_sums.keys import PublicKeys, SumPlan, public_of, seed_digest
from fedlora.secure_sums.masks import add_mask
from fedlora.secure_sums.member import DIGEST_BYTES, Revealed, Sealed, share_digest
from fedlora.secure_sums.ring import Ring
from fedlora.secure_sums.roster import Roster
from fedlora.secure_sums.shares import joined


class SumLost(Exception):  # noqa: N818 (what has become of it)
    """A sum cannot be had: too few members are there, or their shares have no secret.

    Attributes:
        at_fault: the members that have made it so, where that can be known.
    """

    def __init__(self, what: str, *, at_fault: Sequence[str] = ()) -> None:
        super().__init__(what)
        self.at_fault = tuple(at_fault)


@dataclass
class _Sum:
    total: Ring | None = None
    there: list[str] = field(default_factory=list)
    told: dict[str, Revealed] = field(default_factory=dict)


class Gathering:
    """Adds up the vectors of the members of a round, sum after sum."""

    def __init__(self, plan: SumPlan) -> None:
        self._plan = plan
        self._keys: dict[str, PublicKeys] = {}
        self._roster: Roster | None = None
        self._sealed: dict[str, Sealed] = {}
        self._sums = [_Sum() for _ in range(plan.num_sums)]

    def add_keys(self, keys: PublicKeys) -> None:
        """Take what a member makes known of its keys.

        Raises:
            ValueError: it is no member, or all have been handed on.
        """
        if keys.member not in self._plan.members or self._roster is not None:
            raise ValueError(f"keys of {keys.member}: it is no member, or comes too late")
        self._keys[keys.member] = keys

    def roster(self) -> tuple[PublicKeys, ...]:
        """Return the keys of all who take part, to be handed to each of them; from here on nobody joins.

        Raises:
            SumLost: they are too few.
        """
        self._require(len(self._keys), "have made keys known")
        self._roster = Roster(self._plan, self._keys)
        return tuple(self._keys[name] for name in sorted(self._keys))

    def add_sealed(self, member: str, sealed: Sealed) -> None:
        """Take a member's shares for its neighbours.

        Raises:
            ValueError: they, or their digests, are not for just these.
        """
        if member not in self._keys or sealed.shares.keys() != set(self._neighbours(member)):
            raise ValueError(f"shares of {member}: not for its neighbours")
        size = 2 * self._plan.num_sums * DIGEST_BYTES
        holders = {member, *sealed.shares}
        if sealed.digests.keys() != holders or any(len(each) != size for each in sealed.digests.values()):
            raise ValueError(f"shares of {member}: their digests are not for its neighbours and itself")
        self._sealed[member] = sealed

    def sealers(self) -> tuple[str, ...]:
        """Return who has sealed shares.

        Raises:
            SumLost: they are too few, or too few of them have the secrets of one.
        """
        self._require(len(self._sealed), "have sent shares")
        roster, sealers = self._known_roster(), tuple(sorted(self._sealed))
        if lost := [name for name in sealers if not roster.has_enough(name, sealers)]:
            raise SumLost(f"too few have sent shares who have the secrets of {', '.join(lost)}")
        return sealers

    def sealed_for(self, member: str) -> tuple[dict[str, bytes], dict[str, bytes]]:
        """Return what a member's neighbours have sealed for it, and the digests of these shares."""
        senders = [sender for sender in self._neighbours(member) if sender in self._sealed]
        shares = {sender: self._sealed[sender].shares[member] for sender in senders}
        return shares, {sender: self._sealed[sender].digests[member] for sender in senders}

    def add_masked(self, index: int, member: str, vector: Ring) -> None:
        """Add a member's hidden vector to a sum.

        Raises:
            ValueError: it has sent no shares, or a vector already, or one of another form than the others.
        """
        the_sum = self._sums[index]
        if member not in self._sealed or member in the_sum.there:
            raise ValueError(f"a vector of {member}: it has sent no shares, or this is its second")
        if the_sum.total is None:
            the_sum.total = vector.copy()
        elif the_sum.total.shape != vector.shape or the_sum.total.dtype != vector.dtype:
            raise ValueError(f"a vector of {member}: {vector.dtype} {vector.shape}, the others' have another form")
        else:
            np.add(the_sum.total, vector, out=the_sum.total)
        the_sum.there.append(member)

    def there(self, index: int) -> tuple[str, ...]:
        """Return who is there for a sum, to be confirmed by each of them.

        Raises:
            SumLost: they are too few.
        """
        self._require(len(self._sums[index].there), f"are there for sum {index}")
        roster, there = self._known_roster(), tuple(sorted(self._sums[index].there))
        if lost := [name for name in there if not roster.has_enough(name, there)]:
            raise SumLost(f"too few are there for sum {index} who have the secrets of {', '.join(lost)}")
        return there

    def add_revealed(self, index: int, member: str, revealed: Revealed) -> None:
        """Take what a member tells of others' secrets for a sum."""
        self._sums[index].told[member] = revealed

    def total(self, index: int) -> Ring:
        """Return the sum of the vectors of those who are there.

        Raises:
            SumLost: too few have told their shares, or these have no secret; it says who is at fault.
        """
        there, told, total = self.there(index), self._sums[index].told, self._sums[index].total
        assert total is not None
        total = total.copy()
        for member in there:
            known = self._keys[member].own_seeds[index]
            shares = {holder: each.own_seeds[member] for holder, each in told.items() if member in each.own_seeds}
            add_mask(total, self._secret(member, 2 * index, shares, seed_digest, known), subtracts=True)
        for member in sorted(self._sealed.keys() - set(there)):
            known = self._keys[member].masking[index]
            shares = {holder: each.masking[member] for holder, each in told.items() if member in each.masking}
            hidden_with = [other for other in self._neighbours(member) if other in there]
            if not hidden_with:
                continue
            private = self._secret(member, 2 * index + 1, shares, public_of, known)
            for other in hidden_with:
                # What the other has added of it: it is taken away where that added, and added where it took away.
                seed = self._known_roster().mask_seed(private, other, index, name=member)
                add_mask(total, seed, subtracts=other < member)
        return total

    def _secret(
        self, member: str, place: int, shares: Mapping[str, bytes], shown: Callable[[bytes], bytes], known: bytes
    ) -> bytes:
        """Return a member's secret, from its holders' shares; `place` is that of the secret among all of its own."""
        roster, digests = self._known_roster(), self._sealed[member].digests
        part = slice(DIGEST_BYTES * place, DIGEST_BYTES * (place + 1))
        liars = [
            holder
            for holder, share in shares.items()
            if holder not in digests or share_digest(share) != digests[holder][part]
        ]
        good = {roster.numbers[holder]: share for holder, share in shares.items() if holder not in liars}
        if len(good) < roster.needed:
            raise SumLost(f"{len(good)} shares of {member} are good; it takes {roster.needed}", at_fault=liars)
        try:
            secret = joined(good, threshold=roster.needed)
            if shown(secret) == known:
                return secret
        except ValueError:
            pass  # As below.
        raise SumLost(f"the shares of {member} have no secret of it", at_fault=(member,))

    def _neighbours(self, member: str) -> tuple[str, ...]:
        return self._known_roster().neighbours(member)

    def _known_roster(self) -> Roster:
        if self._roster is None:
            raise ValueError("the keys have not been handed on yet")
        return self._roster

    def _require(self, found: int, what: str) -> None:
        if found < self._plan.threshold:
            raise SumLost(f"{found} of {len(self._plan.members)} {what}; it takes {self._plan.threshold}")
