"""A client's answers in the secure sums of a round: its keys with the training's receipt, and then step after step.

Nothing leaves before it is on disk that it was said. What would show this client's update is refused: a server that
asks for the update itself, terms under which others weigh next to nothing, and all that `Member` refuses. And what has
gone into sums once does not go into others: asked for the same training again, a client trains by other draws.
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
from fedlora.client.worker.sums.summed import SummedTrainings
from fedlora.common.config import RunConfig
from fedlora.common.errors import StoreError
from fedlora.common.messages import OK, SumKeys, SumReceipt, SumRequest, SumTerms, TrainReceipt, TrainRequest
from fedlora.common.packed_file import packed_bytes
from fedlora.methods import Method
from fedlora.secure_sums.adapter_sums import AdapterSums, num_sums, trained_paths
from fedlora.secure_sums.keys import PublicKeys, RoundKeys, SumPlan, digest
from fedlora.secure_sums.member import Member, Sealed, SumRefused
from fedlora.secure_sums.round_terms import (
    MOST_REPETITIONS,
    packed_vector,
    plan_of,
    read,
    require_terms,
    share_of,
    unpacked_vector,
    written,
)

logger = logging.getLogger(__name__)

_START, _UPDATE = "start", "update"
# Between the seeds of a training that is done again for other sums.
_SEEDS_APART = 1 << 32


class OwnSums:
    """The part in secure sums of the clients that are served here."""

    def __init__(self, config: RunConfig, folder: Path, signer_of: SignerOf, *, least_members: int = 1) -> None:
        """`folder` is where the clients' parts are kept, and `signer_of` says who signs for them.

        In sums of fewer than `least_members` they take no part.
        """
        self._least_members = least_members
        self._config = config
        self._parts = PartFolder(folder)
        self._summed = SummedTrainings(folder)
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
            SumsRefused: the server asks for the update itself, or for sums that the run does not have.
            StoreError: the disk cannot be used.
        """
        start = packed_bytes(request.adapter)
        training = digest(b"training", start, request.round.to_bytes(8, "big"), request.seed.to_bytes(8, "big")).hex()
        if request.sums is None:
            self._require_open(client, request, training)
            return train(request)
        terms, basis = request.sums, _basis(request, start)
        context = self._checked(client, request, terms)
        self._require_terms(terms, unpack(start))
        folder = self._parts.newest(request.run, client, request.round)
        part = None if folder is None else _read(folder)
        if folder is not None and part is not None and part.basis == basis:
            if _plan(request.run, request.round, part.terms).context == context:
                return replace(part.receipt, attempt=request.attempt)
            if not part.memory.masked:
                # For other sums than it was made for, into which it has not gone.
                update, receipt = unpack(_bytes_of(folder / _UPDATE)), replace(part.receipt, attempt=request.attempt)
                return self._begin(client, request, update, receipt, training)
        seed = request.seed + _SEEDS_APART * self._summed.times(client, training)
        receipt = train(replace(request, seed=seed))
        if receipt.status != OK:
            return receipt
        update = unpack(packed_bytes(receipt.adapter), without=request.frozen_factor, frozen=unpack(start))
        return self._begin(client, request, update, replace(receipt, adapter=b""), training)

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
                    sealed = self._sealed(member, part, request.keys, signer)
                    receipt = replace(empty, sealed=dict(sealed.shares), digests=dict(sealed.digests))
                case "mask":
                    receipt = self._masked(member, part, folder, request, empty)
                case "consent":
                    receipt = replace(empty, consent=member.consented(request.index, request.there))
                case "reveal":
                    told = member.revealed(request.index, request.consents, request.vouchers)
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

    def _require_open(self, client: str, request: TrainRequest, training: str) -> None:
        """Check that an update may be sent itself.

        Raises:
            SumsRefused: the run has secure sums, or had them before, or the update has gone into others'.
        """
        if self._config.privacy.secure_sums:
            raise SumsRefused("privacy.secure_sums is set, and the server asks for the update by itself")
        if self._summed.has_run(client, request.run) or self._summed.times(client, training):
            raise SumsRefused(
                "what is asked for has gone into secure sums, and the run file says privacy.secure_sums = false now; "
                "ask who runs it"
            )

    def _checked(self, client: str, request: TrainRequest, terms: SumTerms) -> bytes:
        """Return what the round's sums are bound to.

        Raises:
            SumsRefused: they are not such as this client takes part in.
        """
        if not self._config.privacy.secure_sums:
            raise SumsRefused("the server asks for secure sums, and the run file has privacy.secure_sums = false")
        if request.seed != self._config.run.seed:
            raise SumsRefused(f"the server asks for the seed {request.seed}; the run's is {self._config.run.seed}")
        if client not in terms.members or terms.repetition > MOST_REPETITIONS:
            raise SumsRefused("the server asks for sums of other members, or has begun the round too often")
        if len(terms.members) < self._least_members:
            raise SumsRefused(
                f"a sum of {len(terms.members)} clients; expected limits.least_cohort = {self._least_members} or more"
            )
        return _plan(request.run, request.round, terms).context

    def _begin(
        self, client: str, request: TrainRequest, update: Adapter, receipt: TrainReceipt, training: str
    ) -> TrainReceipt:
        """Have a round's part on disk, and return the receipt with its keys."""
        terms, start = request.sums, packed_bytes(request.adapter)
        assert terms is not None
        signer, keys = self._signer_of(client), RoundKeys.made(len(terms.clips))
        part = Part(terms, _basis(request, start), training, request.trains, receipt, keys)
        public = self._member(client, request.run, request.round, part, signer).public()
        part.receipt = replace(
            receipt,
            keys=SumKeys(public.sealing, public.masking, public.own_seeds, public.signature, signer.identity()),
        )
        folder = self._parts.begin(request.run, client, request.round, terms.repetition)
        write_beside(folder, _START, start)
        write_beside(folder, _UPDATE, pack(update))
        write_part(folder, part)
        self._parts.forget_others(folder)
        return part.receipt

    def _require_terms(self, terms: SumTerms, start: Adapter) -> None:
        """Check what the server says of the sums.

        Raises:
            SumsRefused: it is not what this client takes part in.
        """
        expected = num_sums(self._method(), start)
        if len(terms.clips) != expected:
            raise SumsRefused(
                f"the server asks for {len(terms.clips)} sums of a round; {self._config.method_name} has {expected}"
            )
        try:
            require_terms(terms, is_uniform=self._config.federation.weighting == "uniform")
        except ValueError as error:
            raise SumsRefused(f"the server's terms: {error}") from error

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

    def _sealed(self, member: Member, part: Part, keys: Mapping[str, SumKeys], signer: Signer) -> Sealed:
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
        if request.index >= len(part.terms.clips):
            raise SumRefused(f"sum {request.index} of {len(part.terms.clips)}")
        member.take(request.sealed, request.digests, request.sealers)
        sums, basis = self._sums_up_to(folder, part, request)
        weight = share_of(part.terms, part.receipt.num_examples)
        term = sums.term(unpack(_bytes_of(folder / _UPDATE)))
        if request.index == 0 and 0 not in member.memory.masked:
            # Before anything of it leaves.
            self._summed.add(empty.client, part.training, run=request.run)
        made = written(term, part.terms, index=request.index, weight=weight)
        hidden = member.masked(request.index, made.vector, basis=basis)
        if made.num_clipped:
            logger.warning(
                "round %d: %d numbers were clipped in sum %d", request.round, made.num_clipped, request.index
            )
        if made.is_scaled:
            logger.warning(
                "round %d: the change was larger than the round allows (%.3g), and was scaled down",
                request.round,
                part.terms.most_change,
            )
        return replace(
            empty,
            num_clipped=made.num_clipped,
            is_scaled=made.is_scaled,
            voucher=member.voucher(request.index),
            adapter=packed_vector(hidden),
        )

    def _sums_up_to(self, folder: Path, part: Part, request: SumRequest) -> tuple[AdapterSums, bytes]:
        """Return the round's sums as far as those before this one are known, and the digest of what they come from."""
        start, basis = unpack(_bytes_of(folder / _START)), part.basis
        sums = AdapterSums(self._method(), start, only=trained_paths(start, part.trains))
        for index in range(request.index):
            is_newest = index == request.index - 1
            path = folder / f"total-{index}"
            total = packed_bytes(request.adapter) if is_newest else _bytes_of(path)
            sums.take(read(unpacked_vector(total, sum(sums.sizes())), part.terms, index=index))
            if is_newest:
                _keep(folder, path.name, total)
            basis = hashlib.sha256(basis.encode() + total).hexdigest()
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


def _basis(request: TrainRequest, start: bytes) -> str:
    """Return the digest of all that a training comes from which the server tells: the same for all members."""
    told = (request.num_rounds.to_bytes(8, "big"), "".join(request.trains).encode())
    return digest(b"basis", start, packed_bytes(request.former), *told).hex()


def _read(folder: Path) -> Part | None:
    """Return the part in a folder; a damaged one is none, and its training is done again."""
    try:
        return read_part(folder)
    except StoreError as error:
        logger.warning("%s", error)
        return None


def _bytes_of(path: Path) -> bytes:
    """Return a file beside a part.

    Raises:
        StoreError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror}); the round goes on without this client") from error
