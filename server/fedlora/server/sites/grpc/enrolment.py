"""The enrolment service: a site's first certificate, and the next ones."""

import asyncio
from datetime import UTC, datetime

import grpc

from fedlora.common.errors import StoreError
from fedlora.server.identity.authority import AccessRefused
from fedlora.server.record.events import Enrolled, Listener, ignore
from fedlora.server.sites.grpc.gate import Context, Gate, refuse
from fedlora.server.sites.grpc.refusals import address_of
from fedlora.v1 import enrolment_pb2
from fedlora.v1.enrolment_pb2_grpc import EnrolmentServiceServicer


class EnrolmentService(EnrolmentServiceServicer):
    """Signs what invited sites and enrolled sites ask for."""

    def __init__(self, gate: Gate, listener: Listener = ignore) -> None:
        self._gate = gate
        self._listener = listener

    async def Enrol(self, request: enrolment_pb2.EnrolRequest, context: Context) -> enrolment_pb2.EnrolResponse:
        """Sign the key of the site whose invitation the caller's certificate was made from.

        What can be wrong is looked at first: the invitation is used up by the signature alone.
        """
        authority, record, _ = await self._gate.invited(context)
        await self._gate.require_protocol(context, request.protocol, request.version, site=record.name)
        if request.site != record.name:
            await refuse(context, grpc.StatusCode.PERMISSION_DENIED, f"other_name: {record.name}")
        try:
            certificate = await asyncio.to_thread(
                authority.enrol, record.name, request.signing_request, datetime.now(UTC)
            )
        except AccessRefused as error:
            await self._gate.turn_down(context, grpc.StatusCode.PERMISSION_DENIED, error.code, site=record.name)
        except StoreError:
            await refuse(context, grpc.StatusCode.UNAVAILABLE, "not_stored")
        await self._tell(context, record.name, is_renewal=False)
        return enrolment_pb2.EnrolResponse(certificate=certificate, authority=authority.ca_pem, site=record.name)

    async def Renew(self, request: enrolment_pb2.RenewRequest, context: Context) -> enrolment_pb2.RenewResponse:
        """Sign a new key of the calling site."""
        name = await self._gate.site(context)
        authority = self._gate.authority
        if authority is None or authority.is_external:
            await refuse(context, grpc.StatusCode.FAILED_PRECONDITION, "external")
        try:
            certificate = await asyncio.to_thread(authority.renew, name, request.signing_request, datetime.now(UTC))
        except AccessRefused as error:
            await self._gate.turn_down(context, grpc.StatusCode.PERMISSION_DENIED, error.code, site=name)
        except StoreError:
            await refuse(context, grpc.StatusCode.UNAVAILABLE, "not_stored")
        await self._tell(context, name, is_renewal=True)
        return enrolment_pb2.RenewResponse(certificate=certificate, authority=authority.ca_pem)

    async def _tell(self, context: Context, site: str, *, is_renewal: bool) -> None:
        # Whoever listens may write to the disk.
        await asyncio.to_thread(self._listener, Enrolled(site, address_of(context.peer() or ""), is_renewal))
