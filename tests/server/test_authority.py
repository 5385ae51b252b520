"""Who may take part: invitations, certificates, and real TLS with Python's and with gRPC's library."""

import socket
import ssl
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from fedlora.common import certificates
from fedlora.common.certificates import parse_token
from fedlora.common.errors import ConfigError, StoreError
from fedlora.server.identity.authority import AccessRefused, Authority

NOW = datetime.now(UTC).replace(microsecond=0)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)

Pair = tuple[bytes, bytes]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.open(tmp_path / "identity", NOW)


def new_request(name: str = "whatever") -> Pair:
    """Return a key and a signing request for it."""
    key = certificates.generate_key()
    return key, certificates.signing_request(key, name)


def invited(authority: Authority, name: str, *runs: str, now: datetime = NOW) -> Pair:
    """Return the pair that an invited site makes from its token."""
    token = authority.invite(name, runs or ("run",), 7 * DAY, now)
    return certificates.invitation_pair(parse_token(token), now=now)


def enrolled(authority: Authority, name: str, *runs: str, now: datetime = NOW) -> Pair:
    _, invitation = invited(authority, name, *runs, now=now)
    record = authority.invited_site(invitation, now)
    assert record is not None
    key, request = new_request()
    return key, authority.enrol(record.name, request, now)


@contextmanager
def refused(code: str) -> Iterator[None]:
    with pytest.raises(AccessRefused) as caught:
        yield
    assert caught.value.code == code


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_keys_are_for_their_owner_alone(authority: Authority, tmp_path: Path) -> None:
    authority.server_pair(NOW)
    folder = tmp_path / "identity"
    assert mode(folder) == 0o700
    assert mode(folder / "ca.key") == mode(folder / "server.key") == 0o600


def test_an_authority_that_was_made_is_opened_again(authority: Authority, tmp_path: Path) -> None:
    again = Authority.open(tmp_path / "identity", NOW)
    assert again.ca_pem == authority.ca_pem
    assert again.server_pair(NOW) == authority.server_pair(NOW)


def test_processes_that_start_at_once_make_one_authority(tmp_path: Path) -> None:
    program = (
        "import sys; from datetime import UTC, datetime; from pathlib import Path\n"
        "from fedlora.server.identity.authority import Authority\n"
        "authority = Authority.open(Path(sys.argv[1]), datetime.now(UTC))\n"
        "print(authority.ca_pem, authority.server_pair(datetime.now(UTC)))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "identity")]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(4)]
    printed = {process.communicate()[0] for process in started}
    assert [process.returncode for process in started] == [0] * 4
    assert len(printed) == 1


@pytest.mark.parametrize("damage", ["no key", "no certificate", "another key", "half a key"])
def test_an_authority_that_is_not_whole_is_said(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "identity"
    before = Authority.open(folder, NOW).ca_pem
    if damage == "no key":
        (folder / "ca.key").unlink()
    elif damage == "no certificate":
        # A crash between the two files leaves this: the certificate is made from the key that is there.
        (folder / "ca.pem").unlink()
        after = Authority.open(folder, NOW).ca_pem
        assert certificates.fingerprint_of(after) == certificates.fingerprint_of(before)
        return
    elif damage == "another key":
        (folder / "ca.key").write_bytes(certificates.generate_key())
    else:
        (folder / "ca.key").write_bytes((folder / "ca.key").read_bytes()[:50])
    with pytest.raises(StoreError, match=r"ca\.key.*restore"):
        Authority.open(folder, NOW)


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be used"):
        Authority.open(tmp_path / "file" / "identity", NOW)


def test_the_servers_certificate_is_renewed_in_the_last_third_of_its_life(authority: Authority) -> None:
    first = authority.server_pair(NOW)
    assert authority.server_pair(NOW + 59 * DAY) == first
    key, chain = authority.server_pair(NOW + 60 * DAY)
    assert chain != first[1]
    assert chain.endswith(authority.ca_pem)
    certificates.check_fits(key, chain)
    assert certificates.is_issued_by(chain, authority.ca_pem)


def test_a_servers_key_without_its_certificate_is_replaced(authority: Authority, tmp_path: Path) -> None:
    authority.server_pair(NOW)
    (tmp_path / "identity" / "server.key").write_bytes(b"damaged")
    certificates.check_fits(*authority.server_pair(NOW))


def test_an_invited_site_enrols_and_may_use_its_runs(authority: Authority) -> None:
    key, certificate = enrolled(authority, "north", "one", "two")
    certificates.check_fits(key, certificate)
    assert certificates.common_name(certificate) == "north"
    assert certificates.expiry(certificate) == NOW + 90 * DAY
    assert authority.allowed(certificate, "two", NOW) == "north"
    assert authority.allowed(certificate, None, NOW) == "north"
    with refused("other_run"):
        authority.allowed(certificate, "three", NOW)
    with refused("expired"):
        authority.allowed(certificate, "two", NOW + 90 * DAY)


def test_nothing_on_the_servers_disk_gives_the_token_away(authority: Authority, tmp_path: Path) -> None:
    text = authority.invite("north", ["run"], DAY, NOW)
    token = parse_token(text)
    stored = b"".join(path.read_bytes() for path in (tmp_path / "identity").rglob("*") if path.is_file())
    for secret in (text.encode(), text[4:24].encode(), token.secret, token.secret.hex().encode()):
        assert secret not in stored


def test_an_invitation_is_taken_up_once(authority: Authority) -> None:
    _, invitation = invited(authority, "north")
    assert len(authority.pending_roots(NOW)) == 1
    authority.enrol("north", new_request()[1], NOW)
    with refused("not_invited"):
        authority.enrol("north", new_request()[1], NOW + MINUTE)
    later = NOW + 10 * MINUTE
    assert authority.pending_roots(later) == []
    assert authority.invited_site(invitation, later) is None
    assert authority.trusted_roots(later) == authority.ca_pem


def test_an_enrolment_whose_answer_was_lost_is_repeated_with_the_same_key(authority: Authority) -> None:
    _, invitation = invited(authority, "north")
    key, request = new_request()
    lost = authority.enrol("north", request, NOW)
    assert authority.invited_site(invitation, NOW + 9 * MINUTE) is not None
    again = authority.enrol("north", request, NOW + 9 * MINUTE)
    certificates.check_fits(key, again)
    for certificate in (lost, again):
        assert authority.allowed(certificate, "run", NOW) == "north"
    with refused("not_invited"):
        authority.enrol("north", request, NOW + 10 * MINUTE)


def test_only_one_of_many_that_enrol_at_once_gets_a_certificate(authority: Authority) -> None:
    invited(authority, "north")
    requests = [new_request()[1] for _ in range(8)]

    def enrol(request: bytes) -> bool:
        try:
            authority.enrol("north", request, NOW)
        except AccessRefused:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(enrol, requests)) == 1


def test_an_invitation_ends(authority: Authority) -> None:
    _, invitation = invited(authority, "north")
    assert authority.invited_site(invitation, NOW + 6 * DAY) is not None
    assert authority.invited_site(invitation, NOW + 7 * DAY) is None
    with refused("not_invited"):
        authority.enrol("north", new_request()[1], NOW + 7 * DAY)


def test_a_new_invitation_to_a_name_ends_the_former_one(authority: Authority) -> None:
    _, former = invited(authority, "north")
    _, newer = invited(authority, "north")
    assert authority.invited_site(former, NOW) is None
    assert authority.invited_site(newer, NOW) is not None


def test_an_enrolled_site_that_is_invited_anew_keeps_its_certificate_until_it_enrols(authority: Authority) -> None:
    _, former = enrolled(authority, "north")
    invited(authority, "north", "run", "more")
    assert authority.allowed(former, "more", NOW) == "north"
    newer = authority.enrol("north", new_request()[1], NOW)
    assert authority.allowed(newer, "more", NOW) == "north"
    with refused("revoked"):
        authority.allowed(former, "run", NOW)


def test_after_a_renewal_the_former_certificate_is_good_until_its_end(authority: Authority) -> None:
    _, former = enrolled(authority, "north")
    later = NOW + 61 * DAY
    key, request = new_request()
    newer = authority.renew("north", request, later)
    certificates.check_fits(key, newer)
    assert authority.allowed(former, "run", later) == authority.allowed(newer, "run", later) == "north"
    with refused("expired"):
        authority.allowed(former, "run", NOW + 90 * DAY)
    (record,) = authority.sites()
    assert record.not_after == later + 90 * DAY
    assert record.invitation == ""


def test_renewals_whose_answers_are_lost_lock_nobody_out(authority: Authority) -> None:
    _, certificate = enrolled(authority, "north")
    for _ in range(5):
        authority.renew("north", new_request()[1], NOW)
    assert authority.allowed(certificate, "run", NOW) == "north"


def test_a_revoked_site_is_out_at_once_and_may_be_invited_anew(authority: Authority) -> None:
    _, certificate = enrolled(authority, "north")
    authority.revoke("north")
    with refused("revoked"):
        authority.allowed(certificate, "run", NOW)
    with refused("revoked"):
        authority.renew("north", new_request()[1], NOW)
    _, newer = enrolled(authority, "north")
    assert authority.allowed(newer, "run", NOW) == "north"
    with refused("revoked"):
        authority.allowed(certificate, "run", NOW)


def test_revoking_ends_an_invitation_too(authority: Authority) -> None:
    _, invitation = invited(authority, "north")
    authority.revoke("north")
    assert authority.invited_site(invitation, NOW) is None
    with refused("not_invited"):
        authority.enrol("north", new_request()[1], NOW)


def test_a_site_that_nobody_knows_cannot_be_revoked(authority: Authority) -> None:
    with pytest.raises(StoreError, match="no site 'south'"):
        authority.revoke("south")


def test_certificates_of_others_are_no_sites(authority: Authority, tmp_path: Path) -> None:
    enrolled(authority, "north")
    other = Authority.open(tmp_path / "other", NOW)
    _, foreign = enrolled(other, "north")
    _, invitation = invited(authority, "south")
    for certificate in (foreign, invitation, authority.ca_pem[:-40], b"nothing"):
        with refused("not_a_site"):
            authority.allowed(certificate, "run", NOW)
    for certificate in (authority.server_pair(NOW)[1], authority.ca_pem):
        with refused("unknown_site"):
            authority.allowed(certificate, "run", NOW)


def test_an_invitation_cannot_be_used_to_sign_for_another_name(authority: Authority) -> None:
    enrolled(authority, "north")
    token = parse_token(authority.invite("south", ["run"], DAY, NOW))
    root_key = certificates._key_pem(certificates._derived_key(token))
    root = authority.pending_roots(NOW)[-1]
    forged = certificates.site_certificate(new_request()[1], "north", authority=(root_key, root), now=NOW)
    assert certificates.is_issued_by(forged, root)
    with refused("not_a_site"):
        authority.allowed(forged, "run", NOW)


def test_a_request_that_will_not_do_leaves_the_invitation_open(authority: Authority) -> None:
    invited(authority, "north")
    with refused("bad_request"):
        authority.enrol("north", b"nothing", NOW)
    authority.enrol("north", new_request()[1], NOW)


def test_a_name_that_will_not_do_is_not_invited(authority: Authority) -> None:
    for name in ("", "../x", ".x", "a\nb", "x" * 61):
        with pytest.raises(ConfigError, match="is no name of a site"):
            authority.invite(name, ["run"], DAY, NOW)
    assert authority.sites() == []


def test_what_another_process_changes_counts_at_once(authority: Authority, tmp_path: Path) -> None:
    _, certificate = enrolled(authority, "north")
    assert authority.allowed(certificate, "run", NOW) == "north"
    command_line = Authority.open(tmp_path / "identity", NOW)
    invited(command_line, "south")
    command_line.revoke("north")
    with refused("revoked"):
        authority.allowed(certificate, "run", NOW)
    assert [(record.name, record.status) for record in authority.sites()] == [
        ("north", "revoked"),
        ("south", "invited"),
    ]
    assert len(authority.pending_roots(NOW)) == 1


def test_a_damaged_record_stops_only_its_own_site(authority: Authority, tmp_path: Path) -> None:
    _, north = enrolled(authority, "north")
    _, south = enrolled(authority, "south")
    (path,) = (tmp_path / "identity" / "sites").glob("south-*.json")
    path.write_text("{")
    assert [record.name for record in authority.sites()] == ["north"]
    assert authority.allowed(north, "run", NOW) == "north"
    with pytest.raises(StoreError, match=r"south.*\.json is damaged; remove it, and invite the site again"):
        authority.allowed(south, "run", NOW)


def test_an_external_authoritys_sites_count_by_their_name(authority: Authority, tmp_path: Path) -> None:
    _, north = enrolled(authority, "north")
    renewed = authority.renew("north", new_request()[1], NOW)
    _, south = enrolled(authority, "south")
    external = Authority.external(tmp_path / "external", authority.ca_pem)
    with refused("unknown_site"):
        external.allowed(north, "run", NOW)
    external.allow("north", ["run"])
    assert external.allowed(north, "run", NOW) == external.allowed(renewed, "run", NOW) == "north"
    with refused("other_run"):
        external.allowed(north, "another", NOW)
    with refused("unknown_site"):
        external.allowed(south, "run", NOW)
    with refused("expired"):
        external.allowed(north, "run", NOW + 90 * DAY)
    external.revoke("north")
    with refused("revoked"):
        external.allowed(north, "run", NOW)


def test_nothing_is_signed_where_the_authority_is_external(authority: Authority, tmp_path: Path) -> None:
    external = Authority.external(tmp_path / "external", authority.ca_pem)
    external.allow("north", ["run"])
    calls: list[Callable[[], object]] = [
        lambda: external.invite("south", ["run"], DAY, NOW),
        lambda: external.renew("north", new_request()[1], NOW),
        lambda: external.server_pair(NOW),
    ]
    for call in calls:
        with refused("external"):
            call()
    assert external.trusted_roots(NOW) == authority.ca_pem
    assert external.invited_site(authority.ca_pem, NOW) is None
    with pytest.raises(ConfigError, match="invite it"):
        authority.allow("north", ["run"])


# Real handshakes. A server says "welcome" to a client that it has let in.


def context_with(folder: Path, pair: Pair, roots: bytes, *, is_server: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if is_server else ssl.PROTOCOL_TLS_CLIENT)
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_verify_locations(cadata=roots.decode())
    folder.joinpath("key").write_bytes(pair[0])
    folder.joinpath("chain").write_bytes(pair[1])
    context.load_cert_chain(folder / "chain", folder / "key")
    return context


def meets_python(authority: Authority, pair: Pair, folder: Path, *, server: Pair | None = None) -> bool:
    """Return whether a client with `pair` is let in by a server with Python's TLS (OpenSSL)."""
    theirs = context_with(folder, server or authority.server_pair(NOW), authority.trusted_roots(NOW), is_server=True)
    ours = context_with(folder, pair, authority.ca_pem, is_server=False)

    def serve(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection:
            try:
                with theirs.wrap_socket(connection, server_side=True) as secured:
                    secured.sendall(b"welcome")
            except (ssl.SSLError, ConnectionError):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor(1) as pool:
        serving = pool.submit(serve, listening)
        try:
            with (
                socket.create_connection(listening.getsockname(), timeout=10) as connection,
                ours.wrap_socket(connection, server_hostname=certificates.SERVER_NAME) as secured,
            ):
                return secured.recv(16) == b"welcome"
        except (ssl.SSLError, ConnectionError):
            return False
        finally:
            serving.result()


def call(port: int, pair: Pair, ca_pem: bytes) -> bytes:
    """Return what a gRPC server answers to a client with `pair`."""
    channel = grpc.secure_channel(
        f"127.0.0.1:{port}",
        grpc.ssl_channel_credentials(ca_pem, *pair),
        [("grpc.ssl_target_name_override", certificates.SERVER_NAME), ("grpc.use_local_subchannel_pool", 1)],
    )
    with channel:
        welcome: Any = channel.unary_unary("/test/Welcome")
        return bytes(welcome(b"", timeout=10))


class Welcome(grpc.GenericRpcHandler):
    """Answers with the common name of the caller's certificate."""

    def service(self, _: grpc.HandlerCallDetails) -> Any:
        def answer(_: bytes, context: grpc.ServicerContext) -> bytes:
            authenticated: Any = context.auth_context()
            (certificate,) = authenticated["x509_pem_cert"]
            return certificates.common_name(certificate).encode()

        return grpc.unary_unary_rpc_method_handler(answer)


@contextmanager
def grpc_server(credentials: grpc.ServerCredentials) -> Iterator[int]:
    """Return the port of a gRPC server (BoringSSL)."""
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool, handlers=[Welcome()])
        port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        try:
            yield port
        finally:
            server.stop(None).wait()


def meets_grpc(authority: Authority, pair: Pair, _: Path, *, server: Pair | None = None) -> bool:
    """Return whether a client with `pair` is let in by a server with gRPC's TLS (BoringSSL)."""
    credentials = grpc.ssl_server_credentials(
        [server or authority.server_pair(NOW)],
        root_certificates=authority.trusted_roots(NOW),
        require_client_auth=True,
    )
    with grpc_server(credentials) as port:
        try:
            return call(port, pair, authority.ca_pem) == certificates.common_name(pair[1]).encode()
        except grpc.RpcError:
            return False


Meets = Callable[..., bool]
both_libraries = pytest.mark.parametrize("meets", [meets_python, meets_grpc])


@both_libraries
def test_an_invited_site_is_let_in_and_so_is_the_enrolled_one(
    authority: Authority, tmp_path: Path, meets: Meets
) -> None:
    invitation = invited(authority, "north")
    assert meets(authority, invitation, tmp_path)
    key, request = new_request()
    certificate = authority.enrol("north", request, NOW)
    assert meets(authority, (key, certificate), tmp_path)


@both_libraries
def test_who_has_another_token_or_another_servers_certificate_is_not_let_in(
    authority: Authority, tmp_path: Path, meets: Meets
) -> None:
    invited(authority, "north")
    stranger = certificates.invitation_pair(parse_token(certificates.new_token(authority.ca_pem)), now=NOW)
    other = Authority.open(tmp_path / "other", NOW)
    assert not meets(authority, stranger, tmp_path)
    assert not meets(authority, enrolled(other, "north"), tmp_path)


@both_libraries
def test_a_forged_certificate_under_the_invitations_name_is_not_let_in(
    authority: Authority, tmp_path: Path, meets: Meets
) -> None:
    invited(authority, "north")
    (root,) = authority.pending_roots(NOW)
    key, request = new_request()
    forged = certificates.site_certificate(request, "north", authority=(certificates.generate_key(), root), now=NOW)
    assert not meets(authority, (key, forged), tmp_path)


@both_libraries
def test_an_expired_certificate_is_not_let_in(authority: Authority, tmp_path: Path, meets: Meets) -> None:
    assert meets(authority, enrolled(authority, "north", now=NOW - 89 * DAY), tmp_path)
    assert not meets(authority, enrolled(authority, "south", now=NOW - 91 * DAY), tmp_path)


@both_libraries
def test_an_invited_site_whose_clock_is_an_hour_off_is_let_in(
    authority: Authority, tmp_path: Path, meets: Meets
) -> None:
    token = parse_token(authority.invite("north", ["run"], 7 * DAY, NOW))
    for now in (NOW - HOUR, NOW + HOUR):
        assert meets(authority, certificates.invitation_pair(token, now=now), tmp_path)


@both_libraries
def test_a_site_cannot_pass_for_the_server(authority: Authority, tmp_path: Path, meets: Meets) -> None:
    site = enrolled(authority, "north")
    assert not meets(authority, site, tmp_path, server=enrolled(authority, certificates.SERVER_NAME))


@both_libraries
def test_many_invitations_may_be_open_at_once(authority: Authority, tmp_path: Path, meets: Meets) -> None:
    pairs = [invited(authority, f"site {number}") for number in range(40)]
    assert meets(authority, pairs[0], tmp_path)
    assert meets(authority, pairs[39], tmp_path)


def test_a_running_grpc_server_learns_of_new_invitations(authority: Authority) -> None:
    def configuration() -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration(
            [authority.server_pair(NOW)], root_certificates=authority.trusted_roots(NOW)
        )

    credentials = grpc.dynamic_ssl_server_credentials(
        configuration(), configuration, require_client_authentication=True
    )
    with grpc_server(credentials) as port:
        invitation = invited(authority, "north")
        assert call(port, invitation, authority.ca_pem) == b"invited site"
        authority.revoke("north")
        with pytest.raises(grpc.RpcError):
            call(port, invitation, authority.ca_pem)
