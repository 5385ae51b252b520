"""How a site comes to its certificate: from an invitation's token, and a new one before that ends."""

import base64
import hashlib
import http.client
import logging
import os
import ssl
import urllib.parse
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import grpc

from fedlora.client.site.identity import SiteIdentity
from fedlora.common import certificates
from fedlora.common.channels import Credentials, details_of, open_channel, split_address
from fedlora.common.errors import ConfigError, RunError, StoreError, one_line
from fedlora.common.files import open_replacing, write_file
from fedlora.common.open_files import require_descriptors
from fedlora.v1 import enrolment_pb2
from fedlora.v1.enrolment_pb2_grpc import EnrolmentServiceStub

logger = logging.getLogger(__name__)

_SECONDS = 20.0
_KEY_FILE, _TOKEN_FILE = "enrolling.key", "token.sha256"
_REFUSALS = {
    "not_invited": "the invitation is used up or has ended; ask for a new one",
    "bad_request": "the server does not take this key; update fedlora here",
}


def enrol(address: str, token_text: str, *, name: str, state: Path) -> SiteIdentity:
    """Return a site's identity after enrolling with its invitation's token; it is kept in the site's state.

    A token is good once: with one that this site has used, the identity that it gave is returned.

    The key is made here and stays here; the state keeps it until the answer is good, so that an enrolment whose answer
    was lost can be repeated: an invitation is for one key. Neither does the token travel: a certificate made from it
    shows that the site has it, and it holds the fingerprint of the authority that the answer must come from.

    Raises:
        ConfigError: the token is cut, or the invitation is for another name.
        RunError: the server cannot be reached, is another one, or refuses.
        StoreError: the site's state cannot be written.
    """
    token = certificates.parse_token(token_text)
    digest = hashlib.sha256(token_text.strip().encode()).hexdigest()
    if SiteIdentity.exists(state) and _used_token(state) == digest:
        return SiteIdentity.load(state)
    shown = shown_certificate(address)
    key, certificate = certificates.invitation_pair(token, now=datetime.now(UTC))
    own_key = _own_key(state)
    credentials = Credentials(key, certificate, shown, certificates.SERVER_NAME)
    request = enrolment_pb2.EnrolRequest(signing_request=certificates.signing_request(own_key, name))
    try:
        with open_channel(address, credentials) as channel:
            response = EnrolmentServiceStub(channel).Enrol(request, timeout=_SECONDS)
    except grpc.RpcError as error:
        raise RunError(f"{address}: {_REFUSALS.get(details_of(error), _not_taken(error))}") from error
    if not (
        certificates.matches_authority(token, response.authority)
        and certificates.is_issued_by(shown, response.authority)
        and certificates.is_issued_by(response.certificate, response.authority)
    ):
        raise RunError(f"{address} is not the server that this invitation is from; look at the address")
    certificates.check_fits(own_key, response.certificate)
    if response.site != name:
        raise ConfigError(f"the invitation is for {response.site!r}, and the site file names {name!r}; make them agree")
    identity = SiteIdentity(own_key, response.certificate, response.authority)
    identity.save(state)
    write_file(state / _TOKEN_FILE, digest)
    (state / _KEY_FILE).unlink(missing_ok=True)
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
    new = SiteIdentity(own_key, response.certificate, response.authority, identity.server_name)
    new.save(state)
    logger.info("the certificate was renewed; it is good until %s", f"{new.expiry:%Y-%m-%d}")
    return new


def credentials_of(identity: SiteIdentity) -> Credentials:
    """Return what a channel needs of an identity."""
    key, certificate = identity.pair()
    return Credentials(key, certificate, identity.ca_pem, identity.server_name)


def _own_key(state: Path) -> bytes:
    """Return the key that an enrolment broke off with, or else a new one, which is kept until the enrolment is done."""
    path = state / _KEY_FILE
    try:
        kept = path.read_bytes()
        certificates.signing_request(kept, "kept")
    except (OSError, ConfigError):
        kept = certificates.generate_key()
        try:
            state.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            require_descriptors(error)
            raise StoreError(f"{state}: cannot be used ({error.strerror})") from error
        with open_replacing(path, size_bytes=len(kept)) as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(kept)
    return kept


def _used_token(state: Path) -> str:
    """Return the sha256 of the token that the site's identity came from, hex, nothing where that is not known."""
    try:
        return (state / _TOKEN_FILE).read_text()
    except OSError:
        return ""


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
            f"{address} cannot be reached ({error}); is the server running, and the address right?"
        ) from error
    finally:
        connection.close()
    return ssl.DER_cert_to_PEM_cert(cast(bytes, found)).encode()


def proxy_for(host: str) -> str | None:
    """Return the proxy that gRPC takes to `host`, None where none is set or the host is excepted."""
    proxies = urllib.request.getproxies()
    proxy = next((proxies[scheme] for scheme in ("grpc", "https", "http") if proxies.get(scheme)), None)
    return None if urllib.request.proxy_bypass(host) else proxy


def _connection(host: str, port: int, context: ssl.SSLContext, timeout_seconds: float) -> http.client.HTTPSConnection:
    proxy = proxy_for(host)
    if proxy is None:
        return http.client.HTTPSConnection(host, port, context=context, timeout=timeout_seconds)
    parts = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    proxy_host, proxy_port = parts.hostname or "", parts.port or 8080
    connection = http.client.HTTPSConnection(proxy_host, proxy_port, context=context, timeout=timeout_seconds)
    headers = {}
    if parts.username:
        login = urllib.parse.unquote(f"{parts.username}:{parts.password or ''}")
        headers["Proxy-Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    connection.set_tunnel(host, port, headers)
    return connection


def _not_taken(error: grpc.RpcError) -> str:
    return (
        "the server does not take this token: it is another server's, used up, or has ended; ask for a new invitation "
        f"({one_line(details_of(error), most=120)})"
    )
