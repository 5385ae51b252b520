"""How a site comes to its certificate: from an invitation's token, and a new one before that ends."""

import hashlib
import http.client
import logging
import ssl
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import cast

import grpc

from fedlora.client.site.identity import SiteIdentity
from fedlora.common import certificates
from fedlora.common.addresses import split_address
from fedlora.common.channels import Credentials, details_of, open_channel
from fedlora.common.errors import ConfigError, FedloraError, RunError, StoreError, one_line
from fedlora.common.files import write_private_file
from fedlora.common.open_files import require_descriptors
from fedlora.common.proxies import proxy_for
from fedlora.common.wire import PROTOCOL
from fedlora.v1 import enrolment_pb2
from fedlora.v1.enrolment_pb2_grpc import EnrolmentServiceStub

logger = logging.getLogger(__name__)

_SECONDS = 20.0
_SHOWN_CHARACTERS = 60
_REFUSALS = {
    "not_invited": "the invitation is used up or has ended; ask for a new one",
    "bad_request": "the server does not take this key; update fedlora here",
    "other_run": "the invitation is to another run than this server's; look at the address, or ask for a new one",
}


def enrol(address: str, token_text: str, *, name: str, state: Path) -> SiteIdentity:
    """Return a site's identity after enrolling with its invitation's token; it is kept in the site's state.

    A token is good once: with one that this site has used, the identity that it gave is returned. What can be known to
    be wrong is refused before it is used, here or at the server.

    The key is made here and stays here; the state keeps it until the answer is good, so that an enrolment whose answer
    was lost can be repeated: an invitation is for one key. Neither does the token travel: a certificate made from it
    shows that the site has it, and it holds the fingerprint of the authority that the answer must come from.

    Raises:
        ConfigError: the token is cut, or it or the site's state is for another name.
        RunError: the server cannot be reached, is another one, or refuses; or a clock is wrong.
        StoreError: the site's state cannot be written.
    """
    token = certificates.parse_token(token_text)
    digest = hashlib.sha256(token_text.strip().encode()).hexdigest()
    # One that is damaged is what a new enrolment is for.
    enrolled, _ = SiteIdentity.found_in(state)
    if used := next((identity for identity in enrolled if identity.token_sha256 == digest), None):
        return used
    if other := next((identity.name for identity in enrolled if identity.name != name), ""):
        raise ConfigError(
            f"{state} holds the identity of {other!r}, and the site file names {name!r}; choose another [site] state"
        )
    shown = shown_certificate(address)
    now = datetime.now(UTC)
    if trouble := certificates.clock_trouble(shown, now, whose="the server's"):
        raise RunError(f"{address}: {trouble}; the token is not used up")
    key, certificate = certificates.invitation_pair(token, now=now)
    key_file = state / f"enrolling-{digest[:16]}.key"
    own_key = _own_key(key_file)
    credentials = Credentials(key, certificate, shown, certificates.SERVER_NAME)
    request = enrolment_pb2.EnrolRequest(
        signing_request=certificates.signing_request(own_key, name),
        site=name,
        protocol=PROTOCOL,
        version=version("fedlora"),
    )
    try:
        with open_channel(address, credentials) as channel:
            response = EnrolmentServiceStub(channel).Enrol(request, timeout=_SECONDS)
    except grpc.RpcError as error:
        raise _refusal(address, name, error) from error
    if not (
        certificates.matches_authority(token, response.authority)
        and certificates.is_issued_by(shown, response.authority)
        and certificates.is_issued_by(response.certificate, response.authority)
    ):
        raise RunError(f"{address} is not the server that this invitation is from; look at the address")
    certificates.check_fits(own_key, response.certificate)
    identity = SiteIdentity(own_key, response.certificate, response.authority, address=address, token_sha256=digest)
    if identity.name != name:
        raise RunError(f"{address}: the server gave a certificate for {identity.name!r}, and not for {name!r}")
    identity.save(state)
    key_file.unlink(missing_ok=True)
    logger.info("enrolled as %s; the certificate is good until %s", name, f"{identity.expiry:%Y-%m-%d}")
    return identity


def renewed(address: str, identity: SiteIdentity, *, state: Path) -> SiteIdentity:
    """Return a site's identity with a new key and certificate, which take the place of the former.

    Raises:
        RunError: the server cannot be reached, or refuses; the former are good until they end.
    """
    own_key = certificates.generate_key()
    request = enrolment_pb2.RenewRequest(signing_request=certificates.signing_request(own_key, identity.name))
    try:
        with open_channel(address, credentials_of(identity)) as channel:
            response = EnrolmentServiceStub(channel).Renew(request, timeout=_SECONDS)
    except grpc.RpcError as error:
        raise RunError(f"the certificate ends on {identity.expiry:%Y-%m-%d}: {details_of(error)}") from error
    new = replace(
        identity,
        key_pem=own_key,
        certificate_pem=response.certificate,
        ca_pem=response.authority,
        address=address,
    )
    new.save(state)
    logger.info("the certificate was renewed; it is good until %s", f"{new.expiry:%Y-%m-%d}")
    return new


def credentials_of(identity: SiteIdentity) -> Credentials:
    """Return what a channel needs of an identity."""
    key, certificate = identity.pair()
    return Credentials(key, certificate, identity.ca_pem, identity.server_name)


def _own_key(path: Path) -> bytes:
    """Return the key that an enrolment broke off with, or else a new one, which is kept until the enrolment is done."""
    try:
        kept = path.read_bytes()
        certificates.signing_request(kept, "kept")
    except (OSError, ConfigError):
        kept = certificates.generate_key()
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            require_descriptors(error)
            raise StoreError(f"{path.parent}: cannot be used ({error.strerror})") from error
        write_private_file(path, kept)
    return kept


def shown_certificate(address: str, *, timeout_seconds: float = _SECONDS) -> bytes:
    """Return the certificate that the server shows, PEM; whose it is, the token's fingerprint says afterwards.

    Raises:
        RunError: nobody answers there, or not in TLS.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    # With 1.3 the server shows its certificate before it asks for ours, which we do not have yet.
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    host, port = split_address(address)
    connection = _connection(host, port, context, timeout_seconds)
    try:
        connection.connect()
        found = connection.sock.getpeercert(binary_form=True)
    except (OSError, http.client.HTTPException) as error:
        raise RunError(
            f"{address} cannot be reached ({one_line(error)}); is the server running, and the address right?"
        ) from error
    finally:
        connection.close()
    return ssl.DER_cert_to_PEM_cert(cast(bytes, found)).encode()


def _connection(host: str, port: int, context: ssl.SSLContext, timeout_seconds: float) -> http.client.HTTPSConnection:
    proxy = proxy_for(host)
    if proxy is None:
        return http.client.HTTPSConnection(host, port, context=context, timeout=timeout_seconds)
    connection = http.client.HTTPSConnection(proxy.host, proxy.port, context=context, timeout=timeout_seconds)
    connection.set_tunnel(host, port, {"Proxy-Authorization": proxy.authorization} if proxy.authorization else {})
    return connection


def _refusal(address: str, name: str, error: grpc.RpcError) -> FedloraError:
    """Return why an enrolment was refused, in words for whoever has the invitation."""
    details = details_of(error)
    if details.startswith("other_name: "):
        invited = details.removeprefix("other_name: ")[:_SHOWN_CHARACTERS]
        return ConfigError(
            f"the invitation is for {invited!r}, and the site file names {name!r}; make them agree, "
            "the token is not used up"
        )
    if details.startswith("version: "):
        return RunError(f"{address}: {one_line(details.removeprefix('version: '))}; the token is not used up")
    if details in _REFUSALS:
        return RunError(f"{address}: {_REFUSALS[details]}")
    return RunError(
        f"{address}: the server does not take this token: it is another server's, used up, or has ended; ask for a new "
        f"invitation ({one_line(details, most=120)})"
    )
