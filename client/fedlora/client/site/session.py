"""A site's lasting connection: it comes back by itself, for ever, and says what it waits for."""

import logging
import queue
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from enum import Enum, auto

import grpc

from fedlora.client.site.backoff import Backoff
from fedlora.client.site.events import Connected, Disconnected, Finished, Idle, Listener, ignore
from fedlora.client.site.joining import shown_certificate
from fedlora.client.site.line import Line
from fedlora.client.site.outage import Outage
from fedlora.client.site.participation import Participation
from fedlora.client.site.transfer import Metadata
from fedlora.common import certificates
from fedlora.common.channels import SITE_METADATA, Credentials, details_of, open_channel
from fedlora.common.config import RunConfig
from fedlora.common.errors import RunError, one_line
from fedlora.common.run_file import parse_toml
from fedlora.common.versions import own_version, protocol_misfit
from fedlora.common.wire import PROTOCOL
from fedlora.v1 import session_pb2
from fedlora.v1.exchange_pb2_grpc import AdapterExchangeServiceStub
from fedlora.v1.session_pb2_grpc import SessionServiceStub

logger = logging.getLogger(__name__)

_LONGEST_PAUSE_SECONDS = 5.0
_LOOK_SECONDS = 1.0
_EXPLAIN_SECONDS = 5.0
_CLOCKS_APART_SECONDS = 300.0
# A certificate is renewed when a connection is made, which must be long before it ends.
_LONGEST_CONNECTION_SECONDS = 86_400.0
_MOST_RUN_FILE_CHARACTERS = 1 << 20
_FINAL = {
    "replaced": "another client has joined as this site; only one may: end it, and join again",
    "revoked": "this site was revoked; ask for a new invitation",
    "unknown_site": "the server does not know this site; ask for an invitation",
    "other_run": "this site is not enrolled in this run; ask for an invitation to it",
    "expired": "this site's certificate has expired; ask for a new invitation",
    "not_a_site": "this certificate is no site's; ask for an invitation",
    "no_certificate": "the server asks for a certificate; leave out --insecure",
}


class _End(Enum):
    """What has ended with a connection."""

    CONNECTION = auto()
    RUN_OVER = auto()
    ALL_OVER = auto()


Outgoing = queue.SimpleQueue[session_pb2.ConnectRequest | None]


class Session:
    """Keeps one site connected to one server."""

    def __init__(
        self,
        address: str,
        name: str,
        *,
        credentials: Callable[[], Credentials | None],
        make_site: Callable[[RunConfig], Participation],
        leaves: Callable[[], bool] = lambda: False,
        listener: Listener = ignore,
    ) -> None:
        """Make a session, which `run` begins.

        Args:
            credentials: asked for at each connection.
            make_site: asked for each run.
            leaves: says when to end.
            listener: hears of connections.
        """
        self._address = address
        self._name = name
        self._credentials = credentials
        self._make_site = make_site
        self._leaves = leaves
        self._listener = listener
        self._site: Participation | None = None
        self._run: RunConfig | None = None
        self._latest: Credentials | None = None
        self._welcomed: float | None = None

    def run(self) -> None:
        """Stay connected until the run is over, at a server that has no others, or the site leaves.

        Raises:
            RunError: the server refuses this site, for a reason that waiting does not cure.
        """
        backoff, outage = Backoff(_LONGEST_PAUSE_SECONDS), Outage()
        try:
            while not self._leaves():
                began = time.monotonic()
                try:
                    end = self._connection()
                except grpc.RpcError as error:
                    _raise_if_final(error)
                    what = _one_line(error)
                else:
                    if end is _End.ALL_OVER:
                        self._listener(Finished())
                        return
                    if end is _End.RUN_OVER:
                        outage.over()
                        self._wait(backoff.next_pause(time.monotonic() - began))
                        continue
                    what = "the connection ended"
                if self._welcomed is not None and time.monotonic() - self._welcomed > _LONGEST_PAUSE_SECONDS:
                    outage.over()
                if (attempts := outage.failed()) is not None:
                    logger.warning("%s: %s; trying again%s", self._address, self._explained(what), attempts)
                self._wait(backoff.next_pause(time.monotonic() - began))
        finally:
            if self._site is not None:
                self._site.close()

    def _connection(self) -> "_End":
        """Serve one connection to its end, and return what has ended."""
        metadata: Metadata = ((SITE_METADATA, self._name),)
        outgoing: Outgoing = queue.SimpleQueue()
        hello = session_pb2.Hello(protocol=PROTOCOL, version=own_version())
        outgoing.put(session_pb2.ConnectRequest(hello=hello))
        is_over, is_welcome = threading.Event(), False
        end = time.monotonic() + _LONGEST_CONNECTION_SECONDS
        self._latest, self._welcomed = self._credentials(), None
        with open_channel(self._address, self._latest) as channel:
            call = SessionServiceStub(channel).Connect(iter(outgoing.get, None), metadata=metadata)
            watching = threading.Thread(target=self._watch, args=(call, is_over, end), daemon=True)
            watching.start()
            try:
                for response in call:
                    match response.WhichOneof("content"):
                        case "welcome" if is_welcome:
                            raise RunError("the server has sent a second run over one connection; ask who runs it")
                        case "welcome":
                            is_welcome = True
                            self._welcome(
                                response.welcome,
                                Line(outgoing.put, AdapterExchangeServiceStub(channel), metadata),
                            )
                        case "no_run":
                            self._welcomed = time.monotonic()
                            _compare_clocks(response.no_run.unix_seconds)
                            logger.info(
                                "connected to %s: no run there for this site at present; waiting for one", self._address
                            )
                            self._listener(Idle())
                        case "drain" if response.drain.more_to_come:
                            self._leave_run(is_finished=response.drain.is_finished)
                            return _End.RUN_OVER
                        case "drain" if response.drain.is_finished:
                            logger.info("the run is over")
                            return _End.ALL_OVER
                        case "drain":
                            logger.info("the server goes away")
                        case _:
                            if self._site is not None:
                                self._site.take(response)
            except grpc.RpcError:
                if not self._leaves() and time.monotonic() < end:
                    raise
            finally:
                is_over.set()
                outgoing.put(None)
                if self._site is not None:
                    self._site.disconnected()
                self._listener(Disconnected())
                call.cancel()
        return _End.CONNECTION

    def _leave_run(self, *, is_finished: bool) -> None:
        """Give up the worker of a run that is over, at a server that stays for others."""
        what = "is over" if is_finished else "was stopped"
        logger.info("the run %s; waiting for the server's next one", what)
        if self._site is not None:
            self._site.disconnected()
            self._site.close()
        self._site = self._run = None

    def _watch(self, call: "grpc.Future[object]", is_over: threading.Event, end: float) -> None:
        """Look after the site's standing while a connection stands, and end it in time or when the site leaves."""
        while not is_over.wait(_LOOK_SECONDS):
            if self._leaves() or time.monotonic() >= end:
                call.cancel()
            elif (site := self._site) is not None:
                site.look()

    def _welcome(self, welcome: session_pb2.Welcome, line: Line) -> None:
        if welcome.protocol != PROTOCOL:
            raise RunError(protocol_misfit(server=(welcome.version, welcome.protocol), site=(own_version(), PROTOCOL)))
        self._welcomed = time.monotonic()
        _compare_clocks(welcome.unix_seconds)
        if (size := len(welcome.run_toml)) > _MOST_RUN_FILE_CHARACTERS:
            raise RunError(
                f"the server's run file has {size:,} characters; expected at most {_MOST_RUN_FILE_CHARACTERS:,}"
            )
        run = parse_toml(welcome.run_toml, origin="the server's run", aggregates_elsewhere=True)
        if is_new := run != self._run:
            if self._site is not None:
                self._site.close()
            self._site, self._run = self._make_site(run), run
        logger.info(
            "connected to %s (fedlora %s): run %s, %d of %d sites are ready",
            self._address, welcome.version, run.run.name, welcome.num_ready, welcome.num_expected,
        )  # fmt: skip
        self._listener(Connected(run.federation.rounds, is_new))
        if self._site is not None:
            self._site.connected(line)

    def _explained(self, what: str) -> str:
        """Return why a connection failed, with what the certificates show of it."""
        if self._latest is None:
            return what
        now = datetime.now(UTC)
        trouble = certificates.clock_trouble(self._latest.certificate, now, whose="this site's")
        if not trouble and self._latest.server_name:
            trouble = certificates.clock_trouble(self._latest.authority, now, whose="its server's authority's")
        if not trouble and any(word in what.lower() for word in ("handshake", "ssl", "certificate")):
            try:
                shown = shown_certificate(self._address, timeout_seconds=_EXPLAIN_SECONDS)
            except RunError:
                return what
            trouble = certificates.clock_trouble(shown, now, whose="the server's")
            # An authority of one's own may sign through others.
            if (
                not trouble
                and self._latest.server_name
                and not certificates.is_issued_by(shown, self._latest.authority)
            ):
                trouble = "it shows the certificate of another authority than this site has enrolled with"
        return f"{what}; {trouble}" if trouble else what

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self._leaves():
            time.sleep(min(0.1, seconds))


def _raise_if_final(error: grpc.RpcError) -> None:
    details = details_of(error)
    if details in _FINAL:
        raise RunError(_FINAL[details]) from error
    if details.startswith("version: "):
        raise RunError(details.removeprefix("version: ")) from error


def _compare_clocks(unix_seconds: int) -> None:
    ahead = time.time() - unix_seconds
    if abs(ahead) > _CLOCKS_APART_SECONDS:
        found = f"{abs(ahead) / 3600:.1f} h {'ahead of' if ahead > 0 else 'behind'} the server's"
        logger.warning("this machine's clock is %s; set the wrong one: certificates have a begin and an end", found)


def _one_line(error: grpc.RpcError) -> str:
    details = details_of(error)
    if details == "drained":
        return "waiting for the server"
    return f"cannot be reached ({one_line(details, most=200)})" if details else "the connection broke"
