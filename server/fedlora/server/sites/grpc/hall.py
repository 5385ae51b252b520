"""Where sites wait between runs: a server that lasts holds their connections, and hands them to whichever run is there.

Each run has services of its own, which know nothing of others; the hall is in front of them. What it holds of a run it
lets go of at the run's end, whatever its callers do.
"""

import asyncio
import logging
import shlex
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from fedlora.common.errors import StoreError
from fedlora.server.sites.grpc.gate import Context, Gate, refuse
from fedlora.server.sites.grpc.run_calls import RunCalls
from fedlora.server.sites.grpc.session import SessionService, greet, told
from fedlora.server.sites.grpc.transfer import TransferService
from fedlora.v1 import exchange_pb2, session_pb2
from fedlora.v1.exchange_pb2_grpc import AdapterExchangeServiceServicer
from fedlora.v1.session_pb2_grpc import SessionServiceServicer

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.2
# Of what belongs to no run that is there.
_NOT_EXPECTED = grpc.StatusCode.FAILED_PRECONDITION, "not_expected"
# Between looks at the certificate of a site that waits.
_STANDING_SECONDS = 5.0


@dataclass(frozen=True)
class PresentRun:
    """The services of the run that a server is at, who may use it, and the calls that it answers."""

    gate: Gate
    session: SessionService
    transfer: TransferService
    calls: RunCalls = field(default_factory=RunCalls)


class Hall(SessionServiceServicer):
    """The session service of a server with runs one after another.

    Attributes:
        present: the run that the server is at; None between runs. It may be set from any thread.
    """

    def __init__(self, gate: Gate, *, store: Path) -> None:
        """`gate` lets in who may use any run; `store` is the folder of the runs, for words."""
        self._gate = gate
        self._store = store
        self.present: PresentRun | None = None
        self._newest: dict[str, object] = {}
        self._uninvited: set[tuple[str, str]] = set()
        self.exchange = HallExchange(self, gate)

    async def Connect(
        self, request_iterator: AsyncIterator[session_pb2.ConnectRequest], context: Context
    ) -> AsyncIterator[session_pb2.ConnectResponse]:
        """Hold the connection of a site until there is a run that it may take part in, and hand it over."""
        site = await self._gate.site(context)
        await greet(self._gate, site, request_iterator, context)
        # Of several connections of a site the newest counts, whichever of them notices first that there is a run.
        place = self._newest[site] = object()
        try:
            responses = None
            async for waited in self._waiting(site, request_iterator, context):
                if self._newest.get(site) is not place:
                    await refuse(context, grpc.StatusCode.ABORTED, "replaced")
                if isinstance(waited, session_pb2.ConnectResponse):
                    yield waited
                else:
                    responses = waited
        finally:
            if self._newest.get(site) is place:
                del self._newest[site]
        if responses is not None:
            async for response in responses:
                yield response

    async def _waiting(
        self, site: str, request_iterator: AsyncIterator[session_pb2.ConnectRequest], context: Context
    ) -> AsyncIterator[session_pb2.ConnectResponse | AsyncIterator[session_pb2.ConnectResponse] | None]:
        """Yield from time to time what a site is to hear or nothing, and at last what it hears of a run it may join."""
        standing, is_told, looked = self._gate.standing(context), False, time.monotonic()
        while (present := self._open_to(context, site)) is None:
            yield (
                None
                if is_told
                else session_pb2.ConnectResponse(no_run=session_pb2.NoRun(unix_seconds=int(time.time())))
            )
            is_told = True
            await asyncio.sleep(_LOOK_SECONDS)
            if time.monotonic() - looked > _STANDING_SECONDS:
                looked = time.monotonic()
                if code := standing():
                    await self._gate.send_away(context, code, site=site)
        serving = present.calls.stream(present.session.serve(site, request_iterator, context))
        yield told(present.gate, site, serving, context)

    def _open_to(self, context: Context, site: str) -> PresentRun | None:
        """Return the run at present if the caller may take part in it; say so if only the invitation is wanting."""
        if (present := self.present) is None:
            return None
        if not (code := present.gate.standing(context)()):
            return present
        if code == "other_run":
            self._say_uninvited(site, str(present.gate.run))
        return None

    def _say_uninvited(self, site: str, run: str) -> None:
        """Say once of a site and a run that the site is there and waits, as it is invited to others alone."""
        authority = self._gate.authority
        if authority is None or (site, run) in self._uninvited:
            return
        self._uninvited.add((site, run))
        try:
            invited_to = ", ".join(authority.runs_of(site))
        except StoreError:
            return  # Its connection ends with that.
        invite = ["fedlora", "sites", "invite", site, "--out", str(self._store), "--run", run]
        logger.warning(
            "%s is there and waits: it is invited to %s, and not to %s, which is at work; %s lets it in, at once and "
            "without the token",
            site, invited_to, run, shlex.join(invite),
        )  # fmt: skip


class HallExchange(AdapterExchangeServiceServicer):
    """The exchange of the run that is there."""

    def __init__(self, hall: "Hall", gate: Gate) -> None:
        self._hall = hall
        self._gate = gate

    async def Read(
        self, request: exchange_pb2.ReadRequest, context: Context
    ) -> AsyncIterator[exchange_pb2.ReadResponse]:
        calls, responses = await self._reading(request, context)
        async for response in responses:
            yield response
        if calls.is_over:
            await refuse(context, *_NOT_EXPECTED)

    async def QueryWriteStatus(
        self, request: exchange_pb2.QueryWriteStatusRequest, context: Context
    ) -> exchange_pb2.QueryWriteStatusResponse:
        return await (await self._at_present(context)).transfer.QueryWriteStatus(request, context)

    async def Write(
        self, request_iterator: AsyncIterator[exchange_pb2.WriteRequest], context: Context
    ) -> exchange_pb2.WriteResponse:
        response = await (await self._writing(request_iterator, context))
        if response is None:
            await refuse(context, *_NOT_EXPECTED)
        return response

    # What answers a call is found apart from the call, which would keep the run.

    async def _reading(
        self, request: exchange_pb2.ReadRequest, context: Context
    ) -> tuple[RunCalls, AsyncGenerator[exchange_pb2.ReadResponse, None]]:
        present = await self._at_present(context)
        return present.calls, present.calls.stream(present.transfer.Read(request, context))

    async def _writing(
        self, request_iterator: AsyncIterator[exchange_pb2.WriteRequest], context: Context
    ) -> Coroutine[Any, Any, exchange_pb2.WriteResponse | None]:
        present = await self._at_present(context)
        return present.calls.answer(present.transfer.Write(request_iterator, context))

    async def _at_present(self, context: Context) -> PresentRun:
        present = self._hall.present
        if present is None:
            await self._gate.site(context)
            await refuse(context, *_NOT_EXPECTED)
        return present
