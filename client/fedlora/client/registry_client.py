"""A server's finished adapters: listed, downloaded, and followed as they come.

OUT/NAME-vNNNN/           an adapter, as the server publishes it (fedlora.common.published)
OUT/.NAME-vNNNN.part/     one whose download was cut off; it goes on from there
OUT/.watched.json         the last version that a watch has handled
"""

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from fedlora.client.site.backoff import Backoff
from fedlora.client.site.outage import Outage
from fedlora.client.site.transfer import LEAST_FREE_BYTES, Metadata, complete
from fedlora.common.channels import SITE_METADATA, Credentials, details_of, open_channel
from fedlora.common.codec import Codec
from fedlora.common.errors import RunError, StoreError, one_line
from fedlora.common.files import write_file
from fedlora.common.open_files import require_descriptors
from fedlora.common.published import (
    CODEC,
    METADATA_FILE,
    Published,
    PublishedFile,
    described_files,
    from_message,
    move_folder,
)
from fedlora.v1 import messages_pb2, registry_pb2
from fedlora.v1.registry_pb2_grpc import RegistryServiceStub

logger = logging.getLogger(__name__)

NEWEST = "latest"
MOST_BYTES = 4 * 10**9

_SECONDS = 30.0
_LONGEST_PAUSE_SECONDS = 8.0
# Longer than any attempt at one that nobody answers.
_GOOD_CONNECTION_SECONDS = 120.0
_PAGE_SIZE = 1_000
_WATCHED_FILE = ".watched.json"
_REFUSALS = {
    "no_certificate": "the server asks for a certificate; leave out --insecure",
    "no_name": "the server asks for a name; give --name",
    "expired": "the certificate has expired; ask for a new invitation",
    "revoked": "this site was revoked; ask for a new invitation",
}

_NO_RUN = "no_run"

Handle = Callable[[Path, Published], None]


class AdapterGone(RunError):  # noqa: N818 (it says what happened)
    """The server does not keep this version any more; newer ones are there."""


@dataclass(frozen=True)
class _Watched:
    """The last version of a run that was handled."""

    run: str
    version: int


_WATCHED = Codec(_Watched)


class RegistryClient:
    """One server's registry, over a connection that stands."""

    def __init__(self, channel: grpc.Channel, name: str, *, run: str = "") -> None:
        """Ask for the adapters of a run, by its name; without one for those of the run at present, or else the last."""
        self._stub = RegistryServiceStub(channel)
        self._metadata: Metadata = ((SITE_METADATA, name),)
        self._run = run

    def adapters(self, *, page_size: int = _PAGE_SIZE) -> Iterator[Published]:
        """Yield what is published, newest first.

        Raises:
            grpc.RpcError: the connection broke, or the server refuses.
            RunError: the server describes an adapter that makes no sense.
        """
        token = ""
        while True:
            request = registry_pb2.ListAdaptersRequest(page_size=page_size, page_token=token, run=self._run)
            response = self._stub.ListAdapters(request, metadata=self._metadata, timeout=_SECONDS)
            yield from map(from_message, response.adapters)
            if not (token := response.next_page_token):
                return

    def announced(self, after_version: int) -> Iterator[Published]:
        """Yield each adapter after a version as it is published, until the run is over.

        Raises:
            grpc.RpcError, ConnectionError: the connection broke or ended, or the server refuses.
            RunError: the server describes an adapter that makes no sense.
        """
        request = registry_pb2.WatchAdaptersRequest(after_version=after_version, run=self._run)
        call = self._stub.WatchAdapters(request, metadata=self._metadata)
        try:
            for response in call:
                if response.is_over:
                    return
                yield from_message(response.adapter)
        finally:
            # The server waits for it at the end of a run.
            call.cancel()
        raise ConnectionError("the server ended the connection")

    def download(self, published: Published, out: Path, *, most_bytes: int = MOST_BYTES) -> Path:
        """Return the folder of an adapter in `out`, after fetching what is not there yet.

        Raises:
            grpc.RpcError: the connection broke; calling again goes on.
            AdapterGone: the server does not keep it any more.
            RunError: a file came damaged, three times, or all of it is more than `most_bytes`.
            StoreError: there is no room for it, or another adapter has its name.
        """
        if published.size_bytes > most_bytes:
            raise RunError(
                f"{published.name} takes {published.size_bytes:,} bytes; expected at most {most_bytes:,}; it is not "
                "fetched; if it may be so large, raise --max-megabytes"
            )
        folder, part = out / published.name, out / f".{published.name}.part"
        if folder.exists():
            if not _is_complete(folder, published):
                raise StoreError(
                    f"{folder} holds another adapter, or was changed; move it away, or choose another --out"
                )
            return folder
        try:
            part.mkdir(parents=True, exist_ok=True)
            for path in part.iterdir():
                if path.name not in {file.name for file in published.files}:
                    path.unlink()
            have = sum(path.stat().st_size for path in part.iterdir())
            if shutil.disk_usage(part).free < published.size_bytes - have + LEAST_FREE_BYTES:
                raise StoreError(f"{out}: {published.size_bytes:,} bytes do not fit; free some space")
            for file in published.files:
                self._fetch(published, file, part / file.name)
        except OSError as error:
            require_descriptors(error)
            raise StoreError(f"{part}: cannot be written ({error.strerror}); choose another --out") from error
        except AdapterGone:
            shutil.rmtree(part)
            raise
        write_file(part / METADATA_FILE, CODEC.dump(published) + "\n")
        move_folder(part, folder)
        return folder

    def _fetch(self, published: Published, file: PublishedFile, path: Path) -> None:
        """Fetch what is not there of a file, and check the whole."""

        def read(offset: int) -> Iterator[bytes]:
            request = registry_pb2.ReadFileRequest(
                version=published.version, file=file.name, offset=offset, run=self._run
            )
            return (response.data for response in self._stub.ReadFile(request, metadata=self._metadata))

        blob = messages_pb2.Blob(sha256=bytes.fromhex(file.sha256), size_bytes=file.size_bytes)
        try:
            complete(path, blob, read, what=f"{file.name} of {published.name}")
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            raise AdapterGone(f"{published.name} is not kept any more; take a newer one") from error
        with open(path, "rb") as whole:
            os.fsync(whole.fileno())


def chosen(adapters: Iterable[Published], name: str) -> Published:
    """Return the adapter of that name; `latest` is the newest.

    Raises:
        RunError: there is none.
    """
    kept = list(adapters)
    for published in kept:
        if name in (NEWEST, published.name):
            return published
    names = ", ".join(published.name for published in kept[:5])
    raise RunError(f"there is no adapter {name}; the server has {names or 'none yet'}")


@contextmanager
def connect(address: str, name: str, credentials: Credentials | None, *, run: str = "") -> Iterator[RegistryClient]:
    """Give a client of the registry at `address`; without credentials the caller says its name, on loopback.

    Args:
        run: whose adapters are asked for; "" for the run at present, or else the last.

    Raises:
        ConfigError: no address, or plain text to another machine.
    """
    with open_channel(address, credentials) as channel:
        yield RegistryClient(channel, name, run=run)


@contextmanager
def as_run_errors(address: str) -> Iterator[None]:
    """Turn what gRPC raises into errors for a user.

    Raises:
        RunError: the server refuses, or cannot be reached.
    """
    try:
        yield
    except grpc.RpcError as error:
        raise_if_refused(error)
        raise RunError(f"{address}: {_one_line(error)}; once it is there, the same command goes on") from error


def raise_if_refused(error: grpc.RpcError) -> None:
    """Raise a RunError if waiting does not cure an error."""
    if error.code() is grpc.StatusCode.NOT_FOUND and details_of(error) == _NO_RUN:
        raise RunError("the server has no such run, or has not begun any; look at --run") from error
    refusals = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNIMPLEMENTED)
    if error.code() in refusals:
        code = details_of(error)
        raise RunError(_REFUSALS.get(code, f"the server refuses ({code}); ask whoever runs it")) from error


def watch(
    connects: Callable[[], AbstractContextManager[RegistryClient]],
    out: Path,
    handle: Handle,
    *,
    most_bytes: int = MOST_BYTES,
) -> None:
    """Download each adapter to `out` and `handle` it, in order, until the run is over; connect again as need be.

    What an earlier watch to the same folder has handled is not handled again.

    Raises:
        RunError: the server refuses, for a reason that waiting does not cure, or has an adapter larger than
            `most_bytes`.
        StoreError: the folder cannot be written, or holds adapters of another run.
    """
    backoff, outage = Backoff(_LONGEST_PAUSE_SECONDS), Outage()
    while True:
        began = time.monotonic()
        try:
            with connects() as client:
                _follow(client, out, handle, most_bytes)
                return
        except grpc.RpcError as error:
            raise_if_refused(error)
            what = _one_line(error)
        except ConnectionError as error:
            what = str(error)
        connected_seconds = time.monotonic() - began
        if connected_seconds > _GOOD_CONNECTION_SECONDS:
            outage.over()
        if (attempts := outage.failed()) is not None:
            logger.warning("%s; trying again%s", what, attempts)
        time.sleep(backoff.next_pause(connected_seconds))


def _follow(client: RegistryClient, out: Path, handle: Handle, most_bytes: int) -> None:
    """Handle what one connection brings, to the end of the run."""
    newest = next(client.adapters(page_size=1), None)
    watched = _watched(out)
    # Another run counts its versions from 1 again.
    is_same = watched is not None and newest is not None and newest.run == watched.run
    for published in client.announced(watched.version if watched is not None and is_same else 0):
        try:
            folder = client.download(published, out, most_bytes=most_bytes)
        except AdapterGone as error:
            logger.warning("%s", error)
            continue
        handle(folder, published)
        write_file(out / _WATCHED_FILE, _WATCHED.dump(_Watched(published.run, published.version)) + "\n")


def _watched(out: Path) -> _Watched | None:
    try:
        return _WATCHED.load((out / _WATCHED_FILE).read_bytes())
    except (OSError, ValueError):
        return None


def _is_complete(folder: Path, published: Published) -> bool:
    try:
        return described_files(folder, [file.name for file in published.files]) == published.files
    except OSError:
        return False


def _one_line(error: grpc.RpcError) -> str:
    details = one_line(details_of(error), most=200)
    if details == "drained":
        return "the server has stopped, and its run is not over"
    return f"cannot be reached ({details})" if details else "the connection broke"
