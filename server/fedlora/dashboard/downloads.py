"""An adapter as a tar stream: the files that were there when it was asked for, whatever the run does meanwhile."""

import os
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import BinaryIO
from urllib.parse import quote

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from fedlora.dashboard.files import OfferedAdapter
from fedlora.dashboard.plain_folder import PlainFolder

_BLOCK = 512
_CHUNK = 1 << 20
_NUM_TRIES = 5
# A round that ends replaces an adapter's files one after the other, within moments.
_SETTLED_SECONDS = 0.2


class TarStream:
    """Files of one folder as a tar archive, whose size is known before a byte is read. It holds them open till closed.

    Attributes:
        size_bytes: of the archive.
    """

    def __init__(self, name: str, files: Sequence[tuple[str, BinaryIO]]) -> None:
        """`name` is the folder's in the archive; `files` are closed with this object."""
        self._files = [
            (_header(f"{name}/{file}", os.fstat(opened.fileno())), os.fstat(opened.fileno()).st_size, opened)
            for file, opened in files
        ]
        self.size_bytes = sum(len(header) + _padded(size) for header, size, _ in self._files) + 2 * _BLOCK

    def __iter__(self) -> Iterator[bytes]:
        try:
            for header, size, file in self._files:
                yield header
                left = size
                while left and (chunk := file.read(min(left, _CHUNK))):
                    left -= len(chunk)
                    yield chunk
                # Of a file that was cut meanwhile the rest is zeros: the archive says so large a file.
                left += _padded(size) - size
                while left:
                    zeros = bytes(min(left, _CHUNK))
                    left -= len(zeros)
                    yield zeros
            yield bytes(2 * _BLOCK)
        finally:
            self.close()

    def close(self) -> None:
        """Close the files."""
        for _, _, file in self._files:
            file.close()


class AdapterResponse(StreamingResponse):
    """An archive as a download; its files are closed when it is over, however it ends."""

    def __init__(self, archive: TarStream, name: str, *, has_body: bool) -> None:
        file_name = f"{name}.tar"
        headers = {
            "Content-Length": str(archive.size_bytes),
            "Content-Disposition": f"attachment; filename*=UTF-8''{quote(file_name, safe='')}",
        }
        super().__init__(archive if has_body else (), media_type="application/x-tar", headers=headers)
        self._archive = archive

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._archive.close()


def tar_of(
    folder: PlainFolder, adapter: OfferedAdapter, *, name: str, wait: Callable[[float], None] = time.sleep
) -> TarStream | None:
    """Return an adapter's files as an archive with one folder `name`; None where they are gone.

    The files are of one moment: where one was replaced while they were opened, all are opened again. `wait` passes the
    seconds in which that would show.
    """
    place = folder.below(*adapter.place)
    for _ in range(_NUM_TRIES):
        marks = [place.mark(file) for file in adapter.files]
        with ExitStack() as stack:
            try:
                opened = [(file, stack.enter_context(place.open(file))) for file in adapter.files]
            except OSError:
                return None
            wait(_SETTLED_SECONDS)
            if marks == [place.mark(file) for file in adapter.files]:
                stack.pop_all()
                return TarStream(name, opened)
    return None


def _header(name: str, found: os.stat_result) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mtime, entry.mode = found.st_size, int(found.st_mtime), 0o644
    return entry.tobuf(tarfile.PAX_FORMAT)


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK
