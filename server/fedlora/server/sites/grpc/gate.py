"""Who calls: every rpc asks here first, and nobody else looks at a certificate."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NoReturn

import grpc
from grpc.aio import ServicerContext

from fedlora.common import certificates
from fedlora.common.channels import SITE_METADATA
from fedlora.common.errors import ConfigError, StoreError
from fedlora.common.versions import own_version, protocol_misfit
from fedlora.common.wire import PROTOCOL
from fedlora.server.identity.authority import AccessRefused, Authority
from fedlora.server.identity.site_records import SiteRecord
from fedlora.server.sites.grpc.calls import Calls
from fedlora.server.sites.grpc.refusals import Refusals

Context = ServicerContext[Any, Any]

_DAMAGED = "damaged_record"


class Gate:
    """Tells a caller's name by its certificate; without an authority, on loopback, by what it says.

    Attributes:
        calls: those in progress of callers that are known by name.
    """

    def __init__(
        self,
        authority: Authority | None,
        *,
        run: str | None,
        refusals: Refusals | None = None,
        calls: Calls | None = None,
    ) -> None:
        """Without a `run` all who may use any are let in; `refusals` are told of whoever is not."""
        self._authority = authority
        self._run = run
        self.calls = calls or Calls()
        self._refusals = refusals or Refusals()

    @property
    def run(self) -> str | None:
        """The run that it is of; None of all."""
        return self._run

    def for_run(self, run: str) -> "Gate":
        """Return the same gate to one run."""
        return Gate(self._authority, run=run, refusals=self._refusals, calls=self.calls)

    async def site(self, context: Context) -> str:
        """Return the name of the calling site, which may use this run; anybody else's call ends here.

        So does one of a site that has too many in progress.
        """
        name = await self._named(context)
        if not self.calls.take(context, name):
            await refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "too_many_calls")
        return name

    async def _named(self, context: Context) -> str:
        if self._authority is None:
            found = dict(context.invocation_metadata() or ()).get(SITE_METADATA, "")
            name = found.decode(errors="replace") if isinstance(found, bytes) else found
            if not 0 < len(name) <= 60 or not name.isprintable():
                await self.turn_down(context, grpc.StatusCode.UNAUTHENTICATED, "no_name", site=name)
            return name
        certificate = await self._certificate(context)
        try:
            return self._authority.allowed(certificate, self._run, datetime.now(UTC))
        except AccessRefused as error:
            await self.turn_down(context, grpc.StatusCode.PERMISSION_DENIED, error.code, site=_claimed(certificate))
        except StoreError as error:
            self.note(context, _DAMAGED, site=_claimed(certificate), why=error)
            await refuse(context, grpc.StatusCode.UNAVAILABLE, _DAMAGED)

    def standing(self, context: Context) -> Callable[[], str]:
        """Return a function that says what speaks against the caller now, nothing while its certificate is good.

        A connection lasts for days, and the certificate it began with may end or be revoked meanwhile.
        """
        certificate = _pem(context)

        def ask() -> str:
            if self._authority is None:
                return ""
            if certificate is None:
                return "no_certificate"
            try:
                self._authority.allowed(certificate, self._run, datetime.now(UTC))
            except AccessRefused as error:
                return error.code
            except StoreError:
                return _DAMAGED
            return ""

        return ask

    def still_allowed(self, context: Context) -> Callable[[], bool]:
        """Return a function that says whether the caller's certificate is still good."""
        ask = self.standing(context)
        return lambda: not ask()

    async def invited(self, context: Context) -> tuple[Authority, SiteRecord, bytes]:
        """Return the invitation that the caller's certificate was made from, and the certificate."""
        if self._authority is None:
            await refuse(context, grpc.StatusCode.FAILED_PRECONDITION, "insecure")
        certificate = await self._certificate(context)
        record = self._authority.invited_site(certificate, datetime.now(UTC))
        if record is None:
            await self.turn_down(context, grpc.StatusCode.PERMISSION_DENIED, "not_invited", site=_claimed(certificate))
        if self._run is not None and not record.may_use(self._run):
            await self.turn_down(context, grpc.StatusCode.PERMISSION_DENIED, "other_run", site=record.name)
        return self._authority, record, certificate

    async def require_protocol(self, context: Context, protocol: int, version: str, *, site: str) -> None:
        """End the call of a site whose protocol is another, and say on both sides what is to be installed."""
        if protocol != PROTOCOL:
            why = protocol_misfit(server=(own_version(), PROTOCOL), site=(version, protocol))
            self.note(context, "version", site=site, why=why)
            await refuse(context, grpc.StatusCode.FAILED_PRECONDITION, f"version: {why}")

    async def turn_down(self, context: Context, status: grpc.StatusCode, code: str, *, site: str = "") -> NoReturn:
        """End a call that the operator should know of: of a stranger, or of a site that does what it may not."""
        self.note(context, code, site=site)
        await refuse(context, status, code)

    async def send_away(self, context: Context, code: str, *, site: str) -> NoReturn:
        """End the call of a site whose certificate is good no more; `code` is what speaks against it."""
        if code == "expired":
            # The site may have renewed it long ago: it comes back with the one that it has now.
            await refuse(context, grpc.StatusCode.ABORTED, "connect_again")
        await self.turn_down(context, grpc.StatusCode.PERMISSION_DENIED, code, site=site)

    def note(self, context: Context, code: str, *, site: str = "", why: object = "") -> None:
        """Tell of a caller that is not let in or not listened to; `why` says more than the code."""
        self._refusals.note(code, peer=context.peer() or "", site=site, why=why)

    async def _certificate(self, context: Context) -> bytes:
        certificate = _pem(context)
        if certificate is None:
            await self.turn_down(context, grpc.StatusCode.UNAUTHENTICATED, "no_certificate")
        return certificate

    @property
    def authority(self) -> Authority | None:
        """Who signs the sites' certificates; None on loopback without any."""
        return self._authority


async def refuse(context: Context, status: grpc.StatusCode, code: str) -> NoReturn:
    """End the call with a status and a typed code."""
    await context.abort(status, code)
    raise AssertionError("abort has raised")


def _pem(context: Context) -> bytes | None:
    found = (context.auth_context() or {}).get("x509_pem_cert", ())
    return next(iter(found), None)


def _claimed(certificate: bytes) -> str:
    """Return the name in a certificate, whoever has signed it; nothing where there is none."""
    try:
        return certificates.common_name(certificate)
    except ConfigError:
        return ""
