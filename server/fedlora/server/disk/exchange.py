"""The adapters on their way, as files: what sites may fetch, and what they upload.

    exchange/
        ticket.key
        offers/SHA.json           of an adapter that a round sent: what the sites fetch for it
        whole/SHA                 the adapter as the sites hold it
        difference/SHA            from an older one to it
        newest/SHAPES.json        the last whole file of adapters of one shape, the next one's reference
        uploads/SITE/ROUND-SHA    a site's update as it came, `.part` until all of it is here
        updates/SITE/ROUND-SHA    the same, made whole

Where the run's precision is not float32, the sites do not hold the server's own adapter g but g' = ref' + round(g -
ref'), ref' being what they held before: the server's state stays float32, and what the rounding took is part of the
next difference. A site that does not hold ref' fetches all of g'.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from fedlora.adapters.differences import decode_file, encode_file, max_encoded_bytes
from fedlora.adapters.tensor_file import TensorFile
from fedlora.common.codec import Codec
from fedlora.common.errors import AdapterError
from fedlora.common.files import client_file_name, link_file, sha256_of, unwritable, write_file
from fedlora.common.packed_file import Packed, PackedFile

logger = logging.getLogger(__name__)

Content = TypeVar("Content")

Precision = Literal["float32", "bfloat16", "int8"]

# Of one shape. A late update is a difference to one of them.
_KEPT_OFFERS = 4
# An adapter, the one before it, and moments.
_NUM_RECENT = 3


@dataclass(frozen=True)
class FileOnOffer:
    """A file by its content: the hex sha256, and its size."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Offer:
    """An adapter for the sites: all of it, and, for who holds `reference`, the difference to that."""

    whole: FileOnOffer
    difference: FileOnOffer | None = None
    reference: FileOnOffer | None = None


_OFFER = Codec(Offer)
_FILE = Codec(FileOnOffer)


class ExchangeStore:
    """The folder `exchange/` of a run. Safe to use from several threads as long as each has its own site or offer."""

    def __init__(self, folder: Path, *, precision: Precision) -> None:
        self.folder = folder
        self.precision: Precision = precision
        # A round sends the same few things to site after site.
        self._recent: list[tuple[Packed, Offer]] = []
        # By digest, the files that this process has made or read through.
        self._known: set[str] = set()

    @property
    def newest_bytes(self) -> int:
        """The size of the adapter that sites hold after the newest offer, 0 before the first."""
        return self._recent[-1][1].whole.size_bytes if self._recent else 0

    @property
    def ticket_key_file(self) -> Path:
        """Where the secret behind the tickets lies."""
        return self.folder / "ticket.key"

    def offer(self, packed: Packed) -> Offer:
        """Return what sites fetch for an adapter that a round sends; asked again, the same.

        Of one in a file nothing is copied where sites hold the very same.
        """
        known = next((offer for other, offer in self._recent if other is packed or other == packed), None)
        offer = known or self._offer(packed)
        others = [(other, its) for other, its in self._recent if its is not offer]
        self._recent = [*others[1 - _NUM_RECENT :], (packed, offer)]
        return offer

    def _offer(self, packed: Packed) -> Offer:
        digest = _digest(packed)
        record = self.folder / "offers" / f"{digest}.json"
        known = _read(record, _OFFER.load)
        if known is not None and all(map(self._is_whole, _files_of(known))):
            return known
        try:
            return self._new_offer(packed, digest, record)
        except OSError as error:
            raise unwritable(record, 0, error) from error

    def _new_offer(self, packed: Packed, digest: str, record: Path) -> Offer:
        source = self.folder / "offers" / f"{digest}.tmp"
        if isinstance(packed, PackedFile):
            link_file(packed.path, source)
        else:
            write_file(source, packed)
        try:
            newest = self._newest_of(source)
            reference = _read(newest, _FILE.load)
            if reference is not None and not self._is_whole(reference):
                reference = None
            offer = self._make(source, digest, reference)
        finally:
            source.unlink(missing_ok=True)
        write_file(record, _OFFER.dump(offer))
        write_file(newest, _FILE.dump(offer.whole))
        self._prune()
        return offer

    def whole_file(self, offer: Offer) -> Path:
        """Return where the adapter lies as the sites hold it."""
        return self._whole(offer.whole.sha256)

    def find(self, sha256: str) -> Path | None:
        """Return the file of that content which sites may fetch, None where there is none."""
        if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
            return None
        places = (self._whole(sha256), self.folder / "difference" / sha256)
        return next((place for place in places if place.is_file()), None)

    def max_upload_bytes(self, offer: Offer) -> int:
        """Return the most bytes that an update to an offered adapter can take."""
        return max_encoded_bytes(self.whole_file(offer))

    def upload_file(self, site: str, *, round: int, sha256: str) -> Path:
        """Return where a site's update lies once all of it is here; until then its part has the suffix .part.

        A site has one upload at a time: those of other rounds and of other contents are removed.
        """
        folder = self.folder / "uploads" / client_file_name(site)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(folder, 0, error) from error
        path = folder / f"{round:04d}-{sha256}"
        for other in folder.iterdir():
            if not other.name.startswith(path.name):
                other.unlink(missing_ok=True)
        return path

    def whole_update(self, site: str, *, round: int, sha256: str, offer: Offer | None) -> Path:
        """Return a site's update as a packed adapter in float32, made from its upload where that was not done yet.

        Args:
            offer: the adapter that the site started from; None for an update that is no difference.

        Raises:
            AdapterError: the upload is no such update.
        """
        upload = self.upload_file(site, round=round, sha256=sha256)
        whole = self.folder / "updates" / client_file_name(site) / upload.name
        if not whole.is_file():
            shutil.rmtree(whole.parent, ignore_errors=True)
            try:
                whole.parent.mkdir(parents=True)
            except OSError as error:
                raise unwritable(whole, upload.stat().st_size, error) from error
            reference = None if offer is None else self.whole_file(offer)
            reference_sha256 = None if offer is None else offer.whole.sha256
            decode_file(upload, whole, reference=reference, reference_sha256=reference_sha256)
        return whole

    def clear(self) -> None:
        """Remove all files of a run that is over."""
        for name in ("offers", "whole", "difference", "newest", "uploads", "updates"):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def _make(self, source: Path, sha256: str, reference: FileOnOffer | None) -> Offer:
        if self.precision == "float32":
            return Offer(self._keep(source, "whole", sha256=sha256))
        encoded, decoded = source.with_suffix(".encoded"), source.with_suffix(".decoded")
        try:
            path = None if reference is None else self._whole(reference.sha256)
            # Who holds nothing gets all of it in float32, but for moments: else there is nothing to round.
            encode_file(source, encoded, reference=path, precision=self.precision)
            decode_file(encoded, decoded, reference=path)
            whole = self._keep(decoded, "whole")
            if reference is None or encoded.stat().st_size >= whole.size_bytes:
                return Offer(whole)
            return Offer(whole, self._keep(encoded, "difference"), reference)
        finally:
            encoded.unlink(missing_ok=True)
            decoded.unlink(missing_ok=True)

    def _keep(self, path: Path, kind: str, *, sha256: str = "") -> FileOnOffer:
        """Move a file under the name of its content, whose digest may be known."""
        sha256 = sha256 or sha256_of([path])
        place = self.folder / kind / sha256
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, place)
        self._known.add(sha256)
        return FileOnOffer(sha256, place.stat().st_size)

    def _is_whole(self, file: FileOnOffer) -> bool:
        """Return whether a file on offer is there as it was made; of a damaged one that is said."""
        path = self.find(file.sha256)
        if path is None:
            return False
        is_whole = path.stat().st_size == file.size_bytes
        if is_whole and file.sha256 not in self._known:
            is_whole = sha256_of([path]) == file.sha256
            self._known.add(file.sha256)
        if not is_whole:
            logger.warning("%s is damaged, and made again", path)
            path.unlink(missing_ok=True)
        return is_whole

    def _whole(self, sha256: str) -> Path:
        return self.folder / "whole" / sha256

    def _newest_of(self, source: Path) -> Path:
        """Return where the newest adapter with the tensors of `source` is noted."""
        try:
            shapes = json.dumps(sorted(TensorFile(source).shapes.items()))
        except AdapterError as error:
            raise ValueError(f"what a round sends is no packed adapter: {error}") from error
        return self.folder / "newest" / f"{hashlib.sha256(shapes.encode()).hexdigest()}.json"

    def _prune(self) -> None:
        """Remove the files of all but the newest offers."""
        records = sorted((self.folder / "offers").glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        newest = list((self.folder / "newest").glob("*.json"))
        num_old = max(0, len(records) - _KEPT_OFFERS * len(newest))
        kept = {file.sha256 for path in newest if (file := _read(path, _FILE.load)) is not None}
        for record in records[num_old:]:
            if (offer := _read(record, _OFFER.load)) is not None:
                kept |= {file.sha256 for file in _files_of(offer)}
        for record in records[:num_old]:
            record.unlink(missing_ok=True)
        self._known &= kept
        for kind in ("whole", "difference"):
            for path in (self.folder / kind).glob("*"):
                if path.name not in kept:
                    path.unlink(missing_ok=True)


def _files_of(offer: Offer) -> tuple[FileOnOffer, ...]:
    return tuple(file for file in (offer.whole, offer.difference, offer.reference) if file is not None)


def _read(path: Path, load: Callable[[bytes], Content]) -> Content | None:
    """Return what a record says, None where there is none or it is damaged: what it spoke of is made again."""
    try:
        return load(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        logger.warning("%s is damaged, and what it speaks of is made again", path)
        return None


def _digest(packed: Packed) -> str:
    if isinstance(packed, PackedFile):
        return packed.sha256 or sha256_of([packed.path])
    return hashlib.sha256(packed).hexdigest()
