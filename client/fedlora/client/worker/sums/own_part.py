"""A client's answers in the secure sums of a round: its keys with the training's receipt, and then step after step.

Nothing leaves before it is on disk that it was said. What would show this client's update is refused: a server that
asks for the update itself, other members or other terms once shares have been sealed, and all that `Member` refuses.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from fedlora.adapters import Adapter, pack, unpack
from fedlora.client.worker.sums.kept import Part, PartFolder, read_part, write_beside, write_part
from fedlora.client.worker.sums.signer import Signer, SignerOf, SumsRefused
from fedlora.common.config import RunConfig
from fedlora.common.messages import OK, SumKeys, SumReceipt, SumRequest, SumTerms, TrainReceipt, TrainRequest
from fedlora.common.packed_file import packed_bytes
from fedlora.methods import Method
from fedlora.secure_sums.adapter_sums import AdapterSums, num_sums
from fedlora.secure_sums.keys import PublicKeys, RoundKeys, SumPlan
from fedlora.secure_sums.member import Member, SumRefused
from fedlora.secure_sums.round_terms import packed_vector, plan_of, read, share_of, unpacked_vector, written

logger = logging.getLogger(__name__)

_START, _UPDATE = "start", "update"
# A round that is begun anew trains by other draws: the sums of both would differ by little more than who is missing.
_SEEDS_APART = 1 << 32


class OwnSums:
    """The part in secure sums of the clients that are served here."""

    def __init__(self, config: RunConfig, folder: Path, signer_of: SignerOf) -> None:
        """`folder` is where the clients' parts are kept, and `signer_of` says who signs for them."""
        self._config = config
        self._parts = PartFolder(folder)
        self._signer_of = signer_of

    def trained(
        self, client: str, request: TrainRequest, train: Callable[[TrainRequest], TrainReceipt]
    ) -> TrainReceipt:
        """Return the receipt of a round's training, with keys in place of the update, which stays here.

        Args:
            client: whose training it is.
            request: the server's.
            train: trains, where that was not done yet.

        Raises:
            SumsRefused: the server asks for the update itself, for sums that the run does not have, or for those of a
                round whose sums have begun with other members or terms.
            StoreError: the disk cannot be used.
        """
        if request.sums is None:
            if self._config.privacy.secure_sums:
                raise SumsRefused("privacy.secure_sums is set, and the server asks for the update by itself")
            return train(request)
        terms, start = self._checked_terms(request.sums, client), packed_bytes(request.adapter)
        if (known := self._known_receipt(client, request, terms, start)) is not None:
            return replace(known, attempt=request.attempt)
        receipt = train(replace(request, seed=request.seed + _SEEDS_APART * terms.repetition))
        if receipt.status != OK:
            return receipt
        update = unpack(packed_bytes(receipt.adapter), without=request.frozen_factor, frozen=unpack(start))
        return self._begin(client, request, terms, start, update, replace(receipt, adapter=b""))

    def answer(self, client: str, request: SumRequest) -> SumReceipt:
        """Return a client's answer to a step, the same to the same step.

        Raises:
            SumsRefused: it has no part in this round, or the step would show its update.
            StoreError: the disk cannot be used.
        """
        began = time.perf_counter()
        folder = self._parts.newest(request.run, client, request.round)
        part = None if folder is None else read_part(folder)
        if folder is None or part is None or part.terms.repetition != request.repetition:
            raise SumsRefused(f"round {request.round}: no part in its sums")
        signer = self._signer_of(client)
        member = self._member(client, request.run, request.round, part, signer)
        empty = SumReceipt(request.run, request.round, request.repetition, request.step, request.index, client)
        try:
            match request.step:
                case "seal":
                    receipt = replace(empty, sealed=self._sealed(member, part, request.keys, signer))
                case "mask":
                    receipt = self._masked(member, part, folder, request, empty)
                case "consent":
                    receipt = replace(empty, consent=member.consented(request.index, request.there))
                case "reveal":
                    told = member.revealed(request.index, request.consents)
                    receipt = replace(empty, own_seeds=dict(told.own_seeds), masking=dict(told.masking))
        except SumRefused as error:
            if not error.accused:
                raise SumsRefused(f"round {request.round}, {request.step}: {error}") from error
            logger.error("round %d, %s: %s", request.round, request.step, error)
            return replace(empty, accused=error.accused)
        except ValueError as error:
            raise SumsRefused(f"round {request.round}, {request.step}: {error}") from error
        write_part(folder, part)
        logger.debug("round %d: %s in %.2f s", request.round, request.step, time.perf_counter() - began)
        return receipt

    def _checked_terms(self, terms: SumTerms, client: str) -> SumTerms:
        if not self._config.privacy.secure_sums:
            raise SumsRefused("the server asks for secure sums, and the run file has privacy.secure_sums = false")
        if client not in terms.members:
            raise SumsRefused("the server asks for sums of other members")
        return terms

    def _known_receipt(self, client: str, request: TrainRequest, terms: SumTerms, start: bytes) -> TrainReceipt | None:
        """Return the receipt of a training that is done; None where the round is yet to be trained, or anew.

        Raises:
            SumsRefused: the sums have begun with other terms.
        """
        folder = self._parts.newest(request.run, client, request.round)
        if folder is None:
            return None
        part = read_part(folder)
        if part.terms == terms and part.start_sha256 == _sha256(start):
            return part.receipt
        if terms.repetition < part.terms.repetition or (
            terms.repetition == part.terms.repetition and part.memory.roster
        ):
            raise SumsRefused(
                f"round {request.round}: its sums have begun, and the server asks for others over the same update"
            )
        return None

    def _begin(
        self, client: str, request: TrainRequest, terms: SumTerms, start: bytes, update: Adapter, receipt: TrainReceipt
    ) -> TrainReceipt:
        """Have a round's part on disk, and return the receipt with its keys."""
        self._require_num_sums(terms, unpack(start))
        signer, keys = self._signer_of(client), RoundKeys.made(len(terms.clips))
        part = Part(terms, _sha256(start), receipt, keys)
        public = self._member(client, request.run, request.round, part, signer).public()
        part.receipt = replace(
            receipt,
            keys=SumKeys(public.sealing, public.masking, public.own_seeds, public.signature, signer.identity()),
        )
        folder = self._parts.begin(request.run, client, request.round, terms.repetition)
        write_beside(folder, _START, start)
        write_beside(folder, _UPDATE, pack(update))
        write_part(folder, part)
        return part.receipt

    def _require_num_sums(self, terms: SumTerms, start: Adapter) -> None:
        expected = num_sums(self._method(), start)
        if len(terms.clips) != expected:
            raise SumsRefused(
                f"the server asks for {len(terms.clips)} sums of a round; {self._config.method_name} has {expected}"
            )

    def _method(self) -> Method:
        method = self._config.aggregation
        if not isinstance(method, Method):
            raise SumsRefused(
                f"aggregation.method = {self._config.method_name} is not installed here, where terms of its sums are "
                "made; install it"
            )
        return method

    def _member(self, client: str, run: str, round: int, part: Part, signer: Signer) -> Member:
        def verify(name: str, message: bytes, signature: bytes) -> bool:
            identity = signer.identity() if name == client else part.identities.get(name, b"")
            return signer.is_signed(message, signature, identity=identity)

        plan = _plan(run, round, part.terms)
        return Member(plan, client, part.keys, sign=signer.sign, verify=verify, memory=part.memory)

    def _sealed(self, member: Member, part: Part, keys: Mapping[str, SumKeys], signer: Signer) -> Mapping[str, bytes]:
        unknown: dict[str, str] = {}
        for name, theirs in keys.items():
            try:
                signer.require_known(name, theirs.identity)
            except SumsRefused as error:
                unknown[name] = str(error)
        if unknown:
            raise SumRefused("; ".join(unknown.values()), accused=sorted(unknown))
        if not part.identities:
            part.identities = {name: theirs.identity for name, theirs in keys.items()}
        public = [
            PublicKeys(name, theirs.sealing, theirs.masking, theirs.own_seeds, theirs.signature)
            for name, theirs in keys.items()
        ]
        return member.sealed(public)

    def _masked(self, member: Member, part: Part, folder: Path, request: SumRequest, empty: SumReceipt) -> SumReceipt:
        member.take(request.sealed)
        sums, basis = self._sums_up_to(folder, part, request)
        sizes = sums.sizes()
        term = sums.term(unpack((folder / _UPDATE).read_bytes()))
        weight = share_of(part.terms, part.receipt.num_examples)
        vector, num_clipped = written(term, sizes, part.terms, index=request.index, weight=weight)
        hidden = member.masked(request.index, vector, basis=basis)
        if num_clipped:
            logger.warning("round %d: %d numbers were clipped in sum %d", request.round, num_clipped, request.index)
        return replace(empty, num_clipped=num_clipped, adapter=packed_vector(hidden))

    def _sums_up_to(self, folder: Path, part: Part, request: SumRequest) -> tuple[AdapterSums, bytes]:
        """Return the round's sums as far as those before this one are known, and the digest of what they come from."""
        start = (folder / _START).read_bytes()
        sums, basis = AdapterSums(self._method(), unpack(start)), _sha256(start)
        if request.index:
            _keep(folder, f"total-{request.index - 1}", packed_bytes(request.adapter))
        for index in range(request.index):
            packed = (folder / f"total-{index}").read_bytes()
            sums.take(read(unpacked_vector(packed, sum(sums.sizes())), part.terms, index=index))
            basis = hashlib.sha256(basis.encode() + packed).hexdigest()
        return sums, basis.encode()


def _plan(run: str, round: int, terms: SumTerms) -> SumPlan:
    try:
        return plan_of(run, round, terms)
    except ValueError as error:
        raise SumsRefused(f"the server's terms are none: {error}") from error


def _keep(folder: Path, name: str, content: bytes) -> None:
    """Write a file beside a part, once.

    Raises:
        SumsRefused: it is there with another content.
    """
    path = folder / name
    if not path.is_file():
        write_beside(folder, name, content)
    elif path.read_bytes() != content:
        raise SumsRefused(f"another {name} than before")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
