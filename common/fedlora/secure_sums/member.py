"""A member's part in the sums of a round: what it tells, what it refuses to tell, and nothing of the network between.

    1  public           its keys, signed                                  -> all
    2  sealed           shares of its secrets for its neighbours          -> each of them, who alone can read theirs
    3  masked           its vector for a sum, hidden                      -> the server
    4  consented        whom it takes for there, signed                   -> all
    5  revealed         shares of what is to be taken out of the sum      -> the server
       3 to 5 again for each further sum of the round

A member that is there has its own mask taken out, one that has left those with others; never both of one member, which
is what a server would need to see a vector. So a member names its list once for each sum, and tells nothing before
enough others have signed the same. With its vector each signs with whom it is hidden and what it comes from, such as
the total of the sum before, and nobody tells anything before all that are there have signed the same of theirs. Or
else a server could let one hide its vector with members that it says have left, or have one's vector for the sum by
telling the others something from which nothing follows.

A member that is asked again for a step gives the same answer, also in another process that has its `Memory`.
"""

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from fedlora.secure_sums.keys import PublicKeys, RoundKeys, SumPlan, agreed, digest, names_digest
from fedlora.secure_sums.masks import add_mask
from fedlora.secure_sums.ring import Ring
from fedlora.secure_sums.roster import Roster
from fedlora.secure_sums.shares import SHARE_BYTES, shared

Sign = Callable[[bytes], bytes]
# Whether a signature is that of a member, by its name.
Verify = Callable[[str, bytes, bytes], bool]

_NONCE_BYTES = 12
# Of a share, which is a random number of twice as many.
DIGEST_BYTES = 16


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
class Sealed:
    """A member's shares of its secrets.

    Attributes:
        shares: sealed, by whom they are for.
        digests: of each holder's shares, by holder, itself among them: by these a holder knows that it has what all
            think, and the server who tells it something else.
    """

    shares: Mapping[str, bytes] = field(repr=False)
    digests: Mapping[str, bytes]


@dataclass
class Memory:
    """What a member has said and heard, by which it keeps its word in another process too.

    Attributes:
        roster: whose keys it knows.
        sealed: the shares that it has sealed, by whom they are for.
        digests: of the shares, by who holds them.
        shares: those that it holds, by whose they are; its own among them.
        sealers: all who have sealed shares, as it was told.
        masked: by sum, the digest of the vector that it has hidden, and what that came from.
        there: by sum, the list that it has signed.
    """

    roster: tuple[PublicKeys, ...] = ()
    sealed: dict[str, bytes] = field(default_factory=dict, repr=False)
    digests: dict[str, bytes] = field(default_factory=dict)
    shares: dict[str, tuple[bytes, ...]] = field(default_factory=dict, repr=False)
    sealers: tuple[str, ...] = ()
    masked: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)
    there: dict[int, tuple[str, ...]] = field(default_factory=dict)


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

    def sealed(self, public: Sequence[PublicKeys]) -> Sealed:
        """Return its shares for each neighbour, sealed, and digests of all shares.

        Args:
            public: of all who take part, itself among them.

        Raises:
            SumRefused: a key is not signed by whose it is said to be, too few take part, or other keys came before.
        """
        ordered = tuple(sorted(public, key=lambda keys: keys.member))
        if self.memory.roster:
            if ordered != self.memory.roster:
                raise SumRefused("other keys than before")
            return Sealed(self.memory.sealed, self.memory.digests)
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
            self.memory.digests[holder] = shares_digest(_cut(shares))
            if holder == self._name:
                self.memory.shares[holder] = _cut(shares)
                continue
            key = self._sealing_key(holder, sender=self._name)
            nonce = secrets.token_bytes(_NONCE_BYTES)
            self.memory.sealed[holder] = nonce + ChaCha20Poly1305(key).encrypt(nonce, shares, context)
        return Sealed(self.memory.sealed, self.memory.digests)

    def take(self, sealed: Mapping[str, bytes], digests: Mapping[str, bytes], sealers: Sequence[str]) -> None:
        """Open the shares that neighbours have sent; those are who it hides vectors with.

        Args:
            sealed: by whose they are.
            digests: of the shares, as their members have made them known.
            sealers: all who have sealed any.

        Raises:
            SumRefused: they are not those of its neighbours that have sealed any, or of too few; or others came before.
                Shares that cannot be opened, or are others than made known, are their members' fault.
        """
        roster, held, known = self._known_roster(), self.memory.shares, tuple(sorted(sealers))
        if self._name not in known or sealed.keys() != set(known) & set(self._neighbours()):
            raise SumRefused(
                f"shares of {', '.join(sorted(sealed)) or 'nobody'}; expected its neighbours' who have sealed"
            )
        if not roster.has_enough(self._name, known) or len(known) < self._plan.threshold:
            raise SumRefused(f"{len(known)} have sealed shares; expected {self._plan.threshold} or more")
        opened = self._all_opened(sealed, digests)
        if self.memory.sealers:
            if (known, opened) != (self.memory.sealers, {name: held[name] for name in held if name != self._name}):
                raise SumRefused("other shares than before")
            return
        self.memory.sealers = known
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

    def voucher(self, index: int) -> bytes:
        """Return its signature of whom its vector for a sum is hidden with, and of what it comes from."""
        _, basis = self.memory.masked[index]
        return self._sign(self._known_roster().voucher_bytes(index, self.memory.sealers, basis))

    def consented(self, index: int, there: Sequence[str]) -> bytes:
        """Return its signature under the list of the members that are there, which for each sum it gives to one list.

        Raises:
            SumRefused: it has signed another list, or is not on this one, or too few are.
        """
        roster, listed = self._known_roster(), tuple(sorted(set(there)))
        if index not in self.memory.masked or self._name not in listed:
            raise SumRefused(f"sum {index} without a vector of its own")
        before = self.memory.there.get(index - 1, self.memory.sealers)
        if not set(listed) <= set(before) or len(listed) < self._plan.threshold:
            raise SumRefused(
                f"{len(listed)} members are there; expected {self._plan.threshold} or more, all there before"
            )
        if lost := [name for name in listed if not roster.has_enough(name, listed)]:
            raise SumRefused(f"too few are there who have the secrets of {', '.join(lost)}")
        if self.memory.there.setdefault(index, listed) != listed:
            raise SumRefused(f"another list of who is there for sum {index}")
        return self._sign(roster.consent_bytes(index, listed))

    def revealed(self, index: int, consents: Mapping[str, bytes], vouchers: Mapping[str, bytes]) -> Revealed:
        """Return its shares of what is to be taken out of a sum.

        Args:
            index: of the sum.
            consents: signatures under the list that it has signed, by member.
            vouchers: what those who are there have signed of their vectors.

        Raises:
            SumRefused: it has signed no list, fewer than the threshold have signed the same, or the vector of one that
                is there is hidden with others than its own, or comes from something else.
        """
        roster = self._known_roster()
        if (there := self.memory.there.get(index)) is None:
            raise SumRefused(f"no list for sum {index}")
        signed = roster.consent_bytes(index, there)
        confirmed = [name for name in there if name in consents and self._verify(name, signed, consents[name])]
        if len(confirmed) < self._plan.threshold:
            raise SumRefused(f"{len(confirmed)} have signed the same list; expected {self._plan.threshold} or more")
        _, basis = self.memory.masked[index]
        vouched = roster.voucher_bytes(index, self.memory.sealers, basis)
        others = [name for name in there if not self._verify(name, vouched, vouchers.get(name, b""))]
        if others:
            what = f"the vectors of {', '.join(others)} are hidden with others, or come from something else"
            raise SumRefused(what, accused=others)
        held = self.memory.shares
        own = {name: shares[2 * index] for name, shares in held.items() if name in there}
        masking = {name: shares[2 * index + 1] for name, shares in held.items() if name not in there}
        return Revealed(own, masking)

    def _all_opened(self, sealed: Mapping[str, bytes], digests: Mapping[str, bytes]) -> dict[str, tuple[bytes, ...]]:
        opened, wrong = {}, []
        for sender, message in sealed.items():
            try:
                opened[sender] = self._opened(sender, message)
            except SumRefused:
                wrong.append(sender)
                continue
            if shares_digest(opened[sender]) != digests.get(sender):
                wrong.append(sender)
        if wrong:
            raise SumRefused(f"the shares of {', '.join(sorted(wrong))} are not good", accused=sorted(wrong))
        return opened

    def _opened(self, sender: str, message: bytes) -> tuple[bytes, ...]:
        roster = self._known_roster()
        key = self._sealing_key(sender, sender=sender)
        try:
            opened = ChaCha20Poly1305(key).decrypt(message[:_NONCE_BYTES], message[_NONCE_BYTES:], roster.context)
        except (InvalidTag, ValueError) as error:
            raise SumRefused(f"the shares of {sender} cannot be opened") from error
        if len(opened) != 2 * self._plan.num_sums * SHARE_BYTES:
            raise SumRefused(f"the shares of {sender} are {len(opened)} bytes")
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
            pair = names_digest((self._name, other))
            theirs = roster.keys[other].sealing
            return agreed(self._keys.sealing, theirs, b"shares", sender.encode(), pair, roster.context)

    def _seed_with(self, other: str, index: int) -> bytes:
        with _key_of(other):
            return self._known_roster().mask_seed(self._keys.masking[index], other, index, name=self._name)


@contextmanager
def _key_of(other: str) -> Iterator[None]:
    """Refuse to go on with a key that is none."""
    try:
        yield
    except ValueError as error:
        raise SumRefused(f"a key of {other} is none", accused=(other,)) from error


def _cut(shares: bytes) -> tuple[bytes, ...]:
    return tuple(shares[start : start + SHARE_BYTES] for start in range(0, len(shares), SHARE_BYTES))


def shares_digest(shares: Sequence[bytes]) -> bytes:
    """Return what tells a holder's shares of a member from others, and not what they are: some bytes for each."""
    return b"".join(share_digest(share) for share in shares)


def share_digest(share: bytes) -> bytes:
    """Return the digest of a single one."""
    return digest(b"share", share)[:DIGEST_BYTES]
