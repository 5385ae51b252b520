"""The way to a server: proxy, name, port, TLS, certificate, clock, health; and whether a port is free for one."""

import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import grpc
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fedlora.client.site.identity import SiteIdentity
from fedlora.client.site.joining import credentials_of, shown_certificate
from fedlora.common import certificates
from fedlora.common.addresses import require_loopback, split_address
from fedlora.common.channels import SITE_METADATA, Credentials, details_of, open_channel
from fedlora.common.errors import ConfigError, FedloraError, RunError, one_line
from fedlora.common.proxies import Proxy, proxy_for
from fedlora.doctor.finding import Finding, ok, problem, warning
from fedlora.doctor.subject import Subject

_SECONDS = 5.0
# Our own authority dates its certificates back by a day, so that a clock that is a little behind does no harm.
_DATED_BACK = timedelta(days=1)
_CLOCK = "sudo timedatectl set-ntp true"


def listening(address: str) -> Iterator[Finding]:
    """Find out whether a server could listen at `address`."""
    host, port = split_address(address, listens=True)
    # Every address, where there is no IPv6, is every one of IPv4.
    host = "0.0.0.0" if host == "::" and not socket.has_dualstack_ipv6() else host
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family, dualstack_ipv6=host == "::").close()
    except OSError as error:
        other = f"{address.rpartition(':')[0]}:{port + 1}"
        remedy = f"ss -ltnp 'sport = :{port}'; or fedlora server start ... --listen '{other}'"
        yield problem("port", f"{address} cannot be listened at ({error.strerror})", remedy)
    else:
        yield ok("port", f"{address} is free")


def reach(address: str, subject: Subject) -> Iterator[Finding]:
    """Find out how far one gets towards the server: each step is a finding, and the first that fails is the last."""
    host, port = split_address(address)
    try:
        proxy = proxy_for(host)
    except ConfigError as error:
        yield problem("proxy", str(error), f"export https_proxy=http://PROXY:PORT; or export no_proxy={host}")
        return
    if proxy is not None:
        yield ok("proxy", f"the way to {host} leads through {proxy.address}; no_proxy excepts hosts")
        host, port = proxy.host, proxy.port
    try:
        socket.create_connection((host, port), timeout=_SECONDS).close()
    except socket.gaierror:
        yield problem("server", f"{host} has no address; look at the spelling", f"getent hosts {host}")
        return
    except OSError as error:
        words = "did not answer within 5 s; a firewall?" if isinstance(error, TimeoutError) else error.strerror
        remedy = f"export no_proxy={split_address(address)[0]}" if proxy else f"nc -vz {host} {port}"
        yield problem("server", f"{host}:{port}: {words}", remedy)
        return
    yield ok("server", f"{host}:{port} takes connections")
    try:
        shown = shown_certificate(address, timeout_seconds=_SECONDS)
    except RunError as error:
        yield from _without_tls(address, subject, proxy=proxy, reason=str(error))
        return
    identity = _identity(subject, address)
    yield from _whose(shown, identity)
    yield from clock(shown, datetime.now(UTC))
    if identity is None:
        yield ok("health", "not asked: that takes a site's certificate; give SITE.toml of a site that has enrolled")
    else:
        yield _health(address, credentials_of(identity), identity.name)


def clock(shown: bytes, now: datetime) -> Iterator[Finding]:
    """Find out whether this machine's clock fits the dates of a server's certificate."""
    certificate = x509.load_pem_x509_certificate(shown)
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    made = begin + _DATED_BACK if certificates.common_name(shown) == certificates.SERVER_NAME else begin
    here = f"{now:%Y-%m-%d %H:%M} UTC here"
    if now < begin:
        yield problem("clock", f"{here}; the server's certificate begins on {begin:%Y-%m-%d %H:%M}", _CLOCK)
    elif now > end:
        found = f"{here}; the server's certificate ended on {end:%Y-%m-%d %H:%M}"
        yield problem("clock", found, f"{_CLOCK}; if the clock is right, start the server again, which renews it")
    elif now < made:
        found = f"{here}; the server's certificate was made on {made:%Y-%m-%d %H:%M}, so one of the clocks is wrong"
        yield warning("clock", found, _CLOCK)
    else:
        yield ok("clock", f"{here}, within the server's certificate ({begin:%Y-%m-%d} to {end:%Y-%m-%d})")


def _whose(shown: bytes, identity: SiteIdentity | None) -> Iterator[Finding]:
    name = certificates.common_name(shown)
    if identity is None:
        yield ok("tls", f"a handshake succeeds; the certificate is for {name!r}")
    elif certificates.is_issued_by(shown, identity.ca_pem):
        yield ok("tls", f"a handshake succeeds; the certificate is for {name!r}, signed by the site's own authority")
    else:
        found = f"the certificate shown, for {name!r}, is not signed by the authority that the site has enrolled with"
        yield problem(
            "tls", f"{found}: another server, or something between", "fedlora sites invite, and enrol here anew"
        )


def _without_tls(address: str, subject: Subject, *, proxy: Proxy | None, reason: str) -> Iterator[Finding]:
    """Find out whether a server on this machine speaks plain text, as with --insecure."""
    try:
        require_loopback(address)
        name = "doctor" if subject.site is None else subject.site.site.name
        health = _health(address, None, name)
    except ConfigError:
        health = None
    if health is not None and health.status == "ok":
        yield warning("tls", "the server speaks plain text (--insecure), which is for loopback alone")
        yield health
        return
    remedy = (
        f"export no_proxy={split_address(address)[0]}" if proxy else f"openssl s_client -connect {address} -alpn h2"
    )
    yield problem("tls", f"no handshake: {reason.splitlines()[0]}", remedy)


def _health(address: str, credentials: Credentials | None, name: str) -> Finding:
    try:
        with open_channel(address, credentials) as channel:
            request = health_pb2.HealthCheckRequest()
            stub = health_pb2_grpc.HealthStub(channel)
            answer = stub.Check(request, metadata=((SITE_METADATA, name),), timeout=_SECONDS)
    except grpc.RpcError as error:
        words = details_of(error) or str(error.code())
        refused = {
            "revoked": "this site was revoked",
            "expired": "the site's certificate has expired",
            "unknown_site": "the server does not know this site",
            "other_run": "the site is not invited to this server's run",
        }
        invite, retry = f"at the server: fedlora sites invite {name} --out DIR", f"curl -v telnet://{address}"
        remedy = invite if words in refused else retry
        return problem("health", refused.get(words, one_line(words, most=150)), remedy)
    if answer.status == health_pb2.HealthCheckResponse.SERVING:
        return ok("health", f"the server serves, and lets {name} in")
    remedy = "at the server: fedlora server status --out DIR"
    return problem("health", "the server does not serve at the moment", remedy)


def _identity(subject: Subject, address: str) -> SiteIdentity | None:
    if subject.state is None:
        return None
    try:
        return SiteIdentity.load(subject.state, address)
    except FedloraError:
        return None  # what is wrong with it is a finding of its own
