"""Who takes part in the sums of a round, by their keys, and what they sign of it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from fedlora.secure_sums.keys import PublicKeys, SumPlan, agreed, digest, names_digest
from fedlora.secure_sums.neighbours import holders_needed, neighbours, ring_order


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

    def mask_seed(self, masking: bytes, other: str, index: int, *, name: str) -> bytes:
        """Return the seed of the mask that two members have in common in a sum, from the private key of one, by name.

        Raises:
            ValueError: the public key of the other is none.
        """
        theirs = self.keys[other].masking[index]
        pair = names_digest((name, other))
        return agreed(masking, theirs, b"mask", index.to_bytes(4, "big"), pair, self.context)

    def _sorted(self) -> list[PublicKeys]:
        return [self.keys[name] for name in sorted(self.keys)]

    def has_enough(self, name: str, there: Collection[str]) -> bool:
        """Return whether of the holders of a member's secrets so many are there as have them together."""
        return len({name, *self.neighbours(name)} & set(there)) >= self.needed

    def consent_bytes(self, index: int, there: Sequence[str]) -> bytes:
        """Return what a member signs that takes these members for there."""
        return digest(b"consent", self.context, index.to_bytes(4, "big"), names_digest(there))

    def voucher_bytes(self, index: int, sealers: Sequence[str], basis: bytes) -> bytes:
        """Return what a member signs of its vector: who, as it knows, has sealed shares, and what it comes from."""
        return digest(b"voucher", self.context, index.to_bytes(4, "big"), names_digest(sealers), basis)
