"""The registry service: finished adapters for whoever serves them."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable

import grpc

from fedlora.adapters.peft_format import TENSOR_FILE
from fedlora.common.channels import CHUNK_BYTES
from fedlora.common.published import to_message
from fedlora.server.disk.registry import LINGER_SECONDS, Registry
from fedlora.server.record.events import AdapterFetched, Listener, ignore
from fedlora.server.sites.grpc.gate import Context, Gate, refuse
from fedlora.v1 import registry_pb2
from fedlora.v1.registry_pb2_grpc import RegistryServiceServicer

_PAGE_SIZE, _MAX_PAGE_SIZE = 100, 1_000
_TOKEN = re.compile(r"before-(\d{1,9})")
_LOOK_SECONDS = 5.0
_KEPT_TOLD = 100


Shelf = Callable[[str], tuple[Registry, Gate] | None]
"""Gives by a run's name, empty for the one at present or else the last, its registry and who may use it."""


class RegistryService(RegistryServiceServicer):
    """Lists the adapters of runs, sends their files, and tells watchers of new ones."""

    def __init__(self, shelf: Shelf, gate: Gate, listener: Listener = ignore) -> None:
        """`gate` lets in whoever asks for a run that there is not."""
        self._shelf = shelf
        self._gate = gate
        self._listener = listener
        self._told: set[tuple[str, str, int]] = set()

    async def ListAdapters(
        self, request: registry_pb2.ListAdaptersRequest, context: Context
    ) -> registry_pb2.ListAdaptersResponse:
        """Send one page of the adapters."""
        _, registry, _ = await self._at(request.run, context)
        left = registry.adapters()
        if request.page_token:
            token = _TOKEN.fullmatch(request.page_token)
            if token is None:
                await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "page_token")
            left = tuple(published for published in left if published.version < int(token[1]))
        page = left[: min(request.page_size or _PAGE_SIZE, _MAX_PAGE_SIZE)]
        return registry_pb2.ListAdaptersResponse(
            adapters=map(to_message, page),
            next_page_token=f"before-{page[-1].version}" if len(page) < len(left) else "",
        )

    async def ReadFile(
        self, request: registry_pb2.ReadFileRequest, context: Context
    ) -> AsyncIterator[registry_pb2.ReadFileResponse]:
        """Send a file of an adapter from an offset on; one that is removed meanwhile is sent to its end."""
        site, registry, _ = await self._at(request.run, context)
        path = registry.find(request.version, request.file)
        if path is None:
            await refuse(context, grpc.StatusCode.NOT_FOUND, "not_published")
        try:
            file = open(path, "rb", buffering=0)  # noqa: SIM115 (a file that is gone is another matter than the rest)
        except FileNotFoundError:
            await refuse(context, grpc.StatusCode.NOT_FOUND, "not_published")
        with file:
            if request.offset > file.seek(0, 2):
                await refuse(context, grpc.StatusCode.OUT_OF_RANGE, "offset")
            file.seek(request.offset)
            told = request.run, site, request.version
            if request.file == TENSOR_FILE and told not in self._told:
                # Of one that is read in many pieces, once; of versions long gone nothing is kept.
                self._told = {each for each in self._told if each[2] > request.version - _KEPT_TOLD}
                self._told.add(told)
                await asyncio.to_thread(self._listener, AdapterFetched(site, path.parent.name))
            while chunk := file.read(CHUNK_BYTES):
                yield registry_pb2.ReadFileResponse(data=chunk)

    async def WatchAdapters(
        self, request: registry_pb2.WatchAdaptersRequest, context: Context
    ) -> AsyncIterator[registry_pb2.WatchAdaptersResponse]:
        """Send each adapter after a version as long as the run lasts, and at its end that it is over.

        Where the version is withdrawn, an earlier one comes after it.
        """
        _, registry, gate = await self._at(request.run, context)
        is_allowed = gate.still_allowed(context)
        loop, changed, sent = asyncio.get_running_loop(), asyncio.Event(), request.after_version

        def wake() -> None:
            loop.call_soon_threadsafe(changed.set)

        with registry.watching(wake):
            while is_allowed():
                changed.clear()
                # Asked in this order: after the close nothing is published.
                is_finished = registry.is_finished
                offered = registry.adapters()
                # Whoever has one that an operator has gone back from gets the one that he has gone back to.
                back = offered[:1] if registry.is_withdrawn(sent) else ()
                newer = tuple(published for published in reversed(offered) if published.version > sent)
                for published in back or newer:
                    yield registry_pb2.WatchAdaptersResponse(adapter=to_message(published))
                    sent = published.version
                if is_finished is not None:
                    break
                try:
                    await asyncio.wait_for(changed.wait(), _LOOK_SECONDS)
                except TimeoutError:
                    continue
            else:
                await refuse(context, grpc.StatusCode.PERMISSION_DENIED, "revoked")
            if not is_finished:
                await refuse(context, grpc.StatusCode.UNAVAILABLE, "drained")
            yield registry_pb2.WatchAdaptersResponse(is_over=True)
            # The watcher may still fetch what it was told of, and then hangs up.
            await asyncio.sleep(LINGER_SECONDS)

    async def _at(self, run: str, context: Context) -> tuple[str, Registry, Gate]:
        """Return who calls, and the registry of a run and its gate, through which the caller has come."""
        if (found := self._shelf(run)) is None:
            await self._gate.site(context)
            await refuse(context, grpc.StatusCode.NOT_FOUND, "no_run")
        registry, gate = found
        site = await gate.site(context)
        # What an operator has withdrawn is not offered from the moment on at which the command says so.
        await asyncio.to_thread(registry.look)
        return site, registry, gate


def one_run(registry: Registry, gate: Gate, *, run: str) -> Shelf:
    """Return the shelf of a server that has one run alone."""
    return lambda name: (registry, gate) if name in ("", run) else None
