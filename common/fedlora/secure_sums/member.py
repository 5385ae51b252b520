"""A member's part in the sums of a round: what it tells, what it refuses to tell, and nothing of the network between.

    1  public           its keys, signed                                  -> all
    2  sealed           shares of its secrets for its neighbours          -> each of them, who alone can read theirs
    3  masked           its vector for a sum, hidden                      -> the server
    4  consented        whom it takes for there, signed                   -> all
    5  revealed         shares of what is to be taken out of the sum      -> the server
       3 to 5 again for each further sum of the round

A member that is there has its own mask taken out, one that has left those with others; never both of one member, which
is what a server would need to see a vector. So a member names its list once for each sum, and tells nothing before
enough others have signed the same. With the list they sign what their vectors come from, such as the total of the sum
before: a server that told the others something from which nothing follows would have one member's vector for the sum.

A member that is asked again for a step gives the same answer, also in another process that has its `Memory`.
"""

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from fedlora.secure_sums.keys import PublicKeys, RoundKeys, SumPlan, agreed, digest, names_digest
from fedlora.secure_sums.masks import add_mask
from fedlora.secure_sums.neighbours import holders_needed, neighbours, ring_order
from fedlora.secure_sums.ring import Ring
from fedlora.secure_sums.shares import SHARE_BYTES, shared

Sign = Callable[[bytes], bytes]
# Whether a signature is that of a member, by its name.
Verify = Callable[[str, bytes, bytes], bool]

_NONCE_BYTES = 12


class SumRefused(Exception):  # noqa: N818 (what a member does)
    """A member does not go on: the server, or another member, asks for what would show somebody's vector.

    Attributes:
        accused: the members that it is about, as the member sees it; the server may have changed what they said.
    """

    def __init__(self, what: str, *, accused: Sequence[str] = ()) -> None:
        super().__init__(what)
        self.accused = tuple(accused)


@dataclass(frozen=True)
class Revealed:
    """What a member tells of others' secrets for a sum: shares by the names of whose they are.

    Attributes:
        own_seeds: of the members that are there.
        masking: of those that have left.
    """

    own_seeds: Mapping[str, bytes] = field(repr=False)
    masking: Mapping[str, bytes] = field(repr=False)


@dataclass(frozen=True)
class Roster:
    """Who has made keys known, what they are, and who is whose neighbour."""

    plan: SumPlan
    keys: Mapping[str, PublicKeys]

    @cached_property
    def context(self) -> bytes:
        """What all that follows is bound to."""
        return digest(b"roster", self.plan.context, *(keys.signed_bytes(self.plan) for keys in self._sorted()))

    @property
    def needed(self) -> int:
        """How many holders have a member's secrets together."""
        return holders_needed(len(self.keys), threshold=self.plan.threshold)

    @cached_property
    def order(self) -> tuple[str, ...]:
        """The members in the order in which they stand."""
        return ring_order(sorted(self.keys), self.context)

    @cached_property
    def numbers(self) -> Mapping[str, int]:
        """The holders' numbers, from 1 on."""
        return {name: number for number, name in enumerate(sorted(self.keys), start=1)}

    def neighbours(self, name: str) -> tuple[str, ...]:
        """Return with whom a member hides its vectors, and who holds shares of its secrets."""
        return neighbours(self.order, name)

    def mask_seed(self, masking: bytes, other: str, index: int) -> bytes:
        """Return the seed of the mask that two members have in common in a sum, from the private key of one.

        Raises:
            ValueError: the public key of the other is none.
        """
        theirs = self.keys[other].masking[index]
        return agreed(masking, theirs, b"mask", index.to_bytes(4, "big"), self.context)

    def _sorted(self) -> list[PublicKeys]:
        return [self.keys[name] for name in sorted(self.keys)]


@dataclass
class Memory:
    """What a member has said and heard, by which it keeps its word in another process too.

    Attributes:
        roster: whose keys it knows.
        sealed: the shares that it has sealed, by whom they are for.
        shares: those that it holds, by whose they are; its own among them.
        masked: by sum, the digest of the vector that it has hidden, and what that came from.
        there: by sum, the list that it has signed.
    """

    roster: tuple[PublicKeys, ...] = ()
    sealed: dict[str, bytes] = field(default_factory=dict, repr=False)
    shares: dict[str, tuple[bytes, ...]] = field(default_factory=dict, repr=False)
    masked: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)
    there: dict[int, tuple[str, ...]] = field(default_factory=dict)


def consent_bytes(context: bytes, index: int, there: Sequence[str], basis: bytes = b"") -> bytes:
    """Return what a member signs that takes these members for there, its vector having come from `basis`."""
    return digest(b"consent", context, index.to_bytes(4, "big"), names_digest(there), basis)


class Member:
    """One member. Its methods are called in the order above; it keeps its word over all of them.

    Attributes:
        memory: what is to be on disk before an answer leaves, where another process may go on.
    """

    def __init__(
        self,
        plan: SumPlan,
        name: str,
        keys: RoundKeys,
        *,
        sign: Sign,
        verify: Verify,
        memory: Memory | None = None,
    ) -> None:
        self._plan = plan
        self._name = name
        self._keys = keys
        self._sign = sign
        self._verify = verify
        self.memory = memory or Memory()
        known = self.memory.roster
        self._roster = Roster(plan, {each.member: each for each in known}) if known else None

    def public(self) -> PublicKeys:
        """Return what it makes known of its keys."""
        keys = self._keys.public(self._name)
        return replace(keys, signature=self._sign(keys.signed_bytes(self._plan)))

    def sealed(self, public: Sequence[PublicKeys]) -> dict[str, bytes]:
        """Return its shares for each neighbour, sealed.

        Args:
            public: of all who take part, itself among them.

        Raises:
            SumRefused: a key is not signed by whose it is said to be, too few take part, or other keys came before.
        """
        ordered = tuple(sorted(public, key=lambda keys: keys.member))
        if self.memory.roster:
            if ordered != self.memory.roster:
                raise SumRefused("other keys than before")
            return self.memory.sealed
        roster = self._checked(public)
        self._roster, self.memory.roster = roster, ordered
        context, holders = roster.context, [self._name, *self._neighbours()]
        numbers = [roster.numbers[holder] for holder in holders]
        parts = [
            shared(secret, threshold=roster.needed, holders=numbers)
            for pair in zip(self._keys.own_seeds, self._keys.masking, strict=True)
            for secret in pair
        ]
        for holder, number in zip(holders, numbers, strict=True):
            shares = b"".join(part[number] for part in parts)
            if holder == self._name:
                self.memory.shares[holder] = _cut(shares)
                continue
            key = self._sealing_key(holder, sender=self._name)
            nonce = secrets.token_bytes(_NONCE_BYTES)
            self.memory.sealed[holder] = nonce + ChaCha20Poly1305(key).encrypt(nonce, shares, context)
        return self.memory.sealed

    def take(self, sealed: Mapping[str, bytes]) -> None:
        """Open the shares that neighbours have sent; those who sent some are who it hides vectors with.

        Raises:
            SumRefused: they are another's, or were changed on the way, or are of too few.
        """
        roster, held = self._known_roster(), self.memory.shares
        if strangers := sealed.keys() - set(self._neighbours()):
            raise SumRefused(f"shares of {', '.join(sorted(strangers))}, who is no neighbour")
        opened = {sender: self._opened(sender, message) for sender, message in sealed.items()}
        if len(held) > 1:
            if opened != {sender: shares for sender, shares in held.items() if sender != self._name}:
                raise SumRefused("other shares than before")
            return
        if len(opened) + 1 < roster.needed:
            raise SumRefused(f"{len(opened) + 1} of {len(self._neighbours()) + 1} have sent shares")
        held |= opened

    def masked(self, index: int, vector: Ring, *, basis: bytes = b"") -> Ring:
        """Return its vector for a sum, hidden.

        Args:
            index: of the sum.
            vector: its numbers.
            basis: what all members' vectors come from, to be signed.

        Raises:
            SumRefused: another vector was hidden by the same masks before, and both would show their difference.
        """
        if not self._hides_with():
            raise SumRefused("nobody to hide a vector with")
        flat = np.ascontiguousarray(vector).reshape(-1)
        known = self.memory.masked.setdefault(index, (digest(b"vector", flat.tobytes()), basis))
        if known != (digest(b"vector", flat.tobytes()), basis):
            raise SumRefused(f"another vector for sum {index}")
        hidden = flat.copy()
        add_mask(hidden, self._keys.own_seeds[index])
        for other in self._hides_with():
            add_mask(hidden, self._seed_with(other, index), subtracts=other < self._name)
        return hidden

    def consented(self, index: int, there: Sequence[str]) -> bytes:
        """Return its signature under the list of the members that are there, which for each sum it gives to one list.

        Raises:
            SumRefused: it has signed another list, or is not on this one, or too few are.
        """
        roster, listed = self._known_roster(), tuple(sorted(set(there)))
        if index not in self.memory.masked or self._name not in listed:
            raise SumRefused(f"sum {index} without a vector of its own")
        if not set(listed) <= roster.keys.keys() or len(listed) < self._plan.threshold:
            raise SumRefused(f"{len(listed)} members are there; expected {self._plan.threshold} or more of the round's")
        if self.memory.there.setdefault(index, listed) != listed:
            raise SumRefused(f"another list of who is there for sum {index}")
        return self._sign(self._consent_bytes(index, listed))

    def revealed(self, index: int, consents: Mapping[str, bytes]) -> Revealed:
        """Return its shares of what is to be taken out of a sum.

        Args:
            index: of the sum.
            consents: signatures under the list that it has signed, by member.

        Raises:
            SumRefused: it has signed no list, or fewer than the threshold have signed the same.
        """
        if (there := self.memory.there.get(index)) is None:
            raise SumRefused(f"no list for sum {index}")
        signed = self._consent_bytes(index, there)
        confirmed = [name for name in there if name in consents and self._verify(name, signed, consents[name])]
        if len(confirmed) < self._plan.threshold:
            raise SumRefused(f"{len(confirmed)} have signed the same list; expected {self._plan.threshold} or more")
        held = self.memory.shares
        own = {name: shares[2 * index] for name, shares in held.items() if name in there}
        masking = {name: shares[2 * index + 1] for name, shares in held.items() if name not in there}
        return Revealed(own, masking)

    def _consent_bytes(self, index: int, there: Sequence[str]) -> bytes:
        _, basis = self.memory.masked[index]
        return consent_bytes(self._known_roster().context, index, there, basis)

    def _opened(self, sender: str, message: bytes) -> tuple[bytes, ...]:
        roster = self._known_roster()
        key = self._sealing_key(sender, sender=sender)
        try:
            opened = ChaCha20Poly1305(key).decrypt(message[:_NONCE_BYTES], message[_NONCE_BYTES:], roster.context)
        except (InvalidTag, ValueError) as error:
            raise SumRefused(f"the shares of {sender} cannot be opened", accused=(sender,)) from error
        if len(opened) != 2 * self._plan.num_sums * SHARE_BYTES:
            raise SumRefused(f"the shares of {sender} are {len(opened)} bytes", accused=(sender,))
        return _cut(opened)

    def _checked(self, public: Sequence[PublicKeys]) -> Roster:
        plan, keys = self._plan, {each.member: each for each in public}
        if len(keys) != len(public) or not keys.keys() <= set(plan.members) or len(keys) < plan.threshold:
            raise SumRefused(f"keys of {len(public)} members; expected {plan.threshold} or more of the round's")
        own = keys.get(self._name)
        if own is None or own.signed_bytes(plan) != self._keys.public(self._name).signed_bytes(plan):
            raise SumRefused("its own keys are missing, or have been changed")
        if wrong := sorted(name for name, each in keys.items() if not self._is_good(each)):
            raise SumRefused(
                f"the keys of {', '.join(wrong)} are not signed by whose they are said to be, or not for "
                f"{plan.num_sums} sums",
                accused=wrong,
            )
        return Roster(plan, keys)

    def _is_good(self, keys: PublicKeys) -> bool:
        plan = self._plan
        numbers = {len(keys.masking), len(keys.own_seeds)}
        return numbers == {plan.num_sums} and self._verify(keys.member, keys.signed_bytes(plan), keys.signature)

    def _known_roster(self) -> Roster:
        if self._roster is None:
            raise SumRefused("nobody's keys are known yet")
        return self._roster

    def _neighbours(self) -> tuple[str, ...]:
        return self._known_roster().neighbours(self._name)

    def _hides_with(self) -> list[str]:
        return [name for name in self.memory.shares if name != self._name]

    def _sealing_key(self, other: str, *, sender: str) -> bytes:
        roster = self._known_roster()
        with _key_of(other):
            return agreed(self._keys.sealing, roster.keys[other].sealing, b"shares", sender.encode(), roster.context)

    def _seed_with(self, other: str, index: int) -> bytes:
        with _key_of(other):
            return self._known_roster().mask_seed(self._keys.masking[index], other, index)


@contextmanager
def _key_of(other: str) -> Iterator[None]:
    """Refuse to go on with a key that is none."""
    try:
        yield
    except ValueError as error:
        raise SumRefused(f"a key of {other} is none", accused=(other,)) from error


def _cut(shares: bytes) -> tuple[bytes, ...]:
    return tuple(shares[start : start + SHARE_BYTES] for start in range(0, len(shares), SHARE_BYTES))
