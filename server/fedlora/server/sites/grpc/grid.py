"""Flower's Grid over lasting connections: requests wait for their site, answers for the rounds.

It knows no gRPC: a connection is a function that sends, given by the session service. Every request
stays outstanding until it is answered or withdrawn, and is sent again at each new connection.
"""

import secrets
import threading
from collections.abc import Callable, Iterable

from flwr.app import Message
from google.protobuf.message import Message as Proto

from fedlora.common.errors import DiskFull, RunError
from fedlora.common.flower_privates import assume_identity, give_id
from fedlora.common.messages import SiteDescription
from fedlora.common.packed_file import Packed
from fedlora.common.records import adapter_in, carried, carrying, kind_of, put_adapter
from fedlora.common.schema import FORMER, MOMENTS
from fedlora.common.wire import put
from fedlora.server.disk.exchange import ExchangeStore, Offer
from fedlora.server.identity.tickets import Ticket, TicketOffice
from fedlora.server.record.events import Listener, SiteChanged, Waiting, ignore
from fedlora.server.sites.contract import Traffic
from fedlora.server.sites.grpc.flowers_words import reply_to, request_in
from fedlora.server.sites.grpc.known_site import (
    KnownSite,
    Outstanding,
    Send,
    acknowledgement,
    node_of,
    offered,
    place,
    taken_back,
)
from fedlora.server.sites.grpc.request_traces import RequestTraces, Untraced
from fedlora.server.sites.polled_grid import PolledGrid
from fedlora.v1 import messages_pb2, session_pb2

_POLL_SECONDS = 0.2
_FULL_PAUSE_SECONDS = 2.0
_WITHDRAWN = "withdrawn"
# Of a vector for a sum.
_BYTES_OF_A_NUMBER, _HEADER_BYTES = 4, 4096
# What speaks against a certificate for good; of one that has expired its site may have the next.
_FOR_GOOD = ("revoked", "unknown_site", "other_run")


class RunStopped(RunError):  # noqa: N818 (no error: it was asked for)
    """The run was asked to stop; the same command goes on with it."""

    code = "stopped"


class GrpcGrid(PolledGrid):
    """The Grid of a deployment; all methods may be called from any thread."""

    def __init__(
        self,
        exchange: ExchangeStore,
        tickets: TicketOffice,
        *,
        max_start_bytes: int,
        num_moments: int = 0,
        listener: Listener = ignore,
        traces: RequestTraces | None = None,
    ) -> None:
        """Take in who may connect to the exchange's run.

        Args:
            max_start_bytes: what the run's first adapter, which a site makes, may take at most.
            num_moments: how many numbers may come beside each one of an update.
            traces: hears of each request.
        """
        super().__init__()
        self._exchange = exchange
        self._tickets = tickets
        self._max_start_bytes = max_start_bytes
        self._num_moments = num_moments
        self._listener = listener
        self._traces = traces or Untraced()
        self._changed = threading.Condition()
        self._sites: dict[str, KnownSite] = {}
        self._names: dict[int, str] = {}
        self._replies: dict[str, Message] = {}
        self._answered: dict[str, str] = {}
        self._told: dict[str, tuple[str, str]] = {}
        self._bytes_down = self._bytes_up = 0
        self._is_stopping = False
        self._drain = session_pb2.Drain()
        self._prefix = secrets.token_hex(4)
        self._num_messages = 0
        assume_identity()

    # -- for the session service

    def connect(self, site: str, send: Send, standing: Callable[[], str] = lambda: "") -> None:
        """Take a site's new connection; an older one ends.

        `standing` says what speaks against the certificate that the site has shown, nothing while that is good.
        """
        with self._changed:
            known = self._site(site)
            if known.send is not None:
                known.send("replaced")
                known.leave()
            known.send, known.description, known.reason, known.shut_out = send, None, "", ""
            known.standing = standing
            for outstanding in known.outstanding.values():
                outstanding.is_delivered = False
            self._send_taken_back(known)
            if self._is_stopping:
                self._send_away(send)
            self._tell(known)

    def disconnect(self, site: str, send: Send) -> None:
        """Note that a connection is gone, unless the site has a newer one."""
        with self._changed:
            known = self._site(site)
            if known.send == send:
                known.leave()
                known.send = None
                self._tell(known)
                self._changed.notify_all()

    def shut_out(self, site: str, code: str) -> None:
        """Note that a site was sent away for good: the rounds do without it."""
        with self._changed:
            known = self._site(site)
            known.shut_out = code
            self._tell(known)
            self._changed.notify_all()

    def look(self) -> None:
        """Look after the sites that are away: one whose certificate is good no more will not be back."""
        with self._changed:
            away = {name: site.standing for name, site in self._sites.items() if site.is_away}
        for name, standing in away.items():
            if (code := standing()) in _FOR_GOOD:
                with self._changed:
                    if self._site(name).is_away:
                        self.shut_out(name, code)

    def ready(self, site: str, description: SiteDescription) -> None:
        """Take a site that has rehearsed as ready, and send it what is outstanding."""
        with self._changed:
            known = self._site(site)
            known.description, known.reason = description, ""
            for outstanding in known.outstanding.values():
                self._deliver(known, outstanding)
            self._tell(known)
            self._changed.notify_all()

    def not_ready(self, site: str, reason: str) -> None:
        """Note the code of what keeps a site from taking part."""
        with self._changed:
            known = self._site(site)
            known.leave()
            known.description, known.reason = None, reason
            self._tell(known)
            self._changed.notify_all()

    def outstanding(self, site: str, request_id: str) -> Outstanding | None:
        """Return a site's request that has no answer; where it is none, the site is told to forget it."""
        with self._changed:
            known = self._site(site)
            found = known.outstanding.get(request_id)
            if found is None and known.send is not None and request_id not in self._answered:
                known.send(acknowledgement(request_id, _WITHDRAWN))
            return found

    def expects(self, ticket: Ticket) -> bool:
        """Return whether the update that a ticket is for is still waited for."""
        return self._awaited(ticket) is not None

    def offer_for(self, ticket: Ticket) -> Offer | None:
        """Return the adapter that the update of a ticket is a difference to, None where it is whole."""
        awaited = self._awaited(ticket)
        return None if awaited is None else awaited.offer

    def answer(self, site: str, request_id: str, receipt: Proto, adapter: Packed) -> None:
        """Give a site's answer to the rounds, as it came."""
        with self._changed:
            known = self._site(site)
            outstanding = known.outstanding.pop(request_id, None)
            if outstanding is None:
                return
            content = carrying(receipt)
            put_adapter(content, adapter)
            asked = outstanding.message
            is_ours = bool(kind_of(asked.content))
            self._replies[request_id] = Message(content, reply_to=asked) if is_ours else reply_to(asked, content)
            self._answered[request_id] = site
            self._traces.answered(request_id, receipt.code if isinstance(receipt, messages_pb2.Failure) else "")
            # Of ours the rounds say when an update is on disk.
            if not (is_ours and outstanding.request.HasField("train")):
                self._settle(request_id, "")
            self._tell(known)
            self._changed.notify_all()

    def count(self, *, down: int = 0, up: int = 0) -> None:
        """Count adapter bytes that have moved."""
        with self._changed:
            self._bytes_down += down
            self._bytes_up += up

    def counts(self) -> tuple[int, int]:
        """Return how many sites are ready or at work, and how many are known."""
        with self._changed:
            return sum(site.is_ready for site in self._sites.values()), len(self._sites)

    def stop(self, *, is_finished: bool, more_to_come: bool = False) -> None:
        """Let the run stop at its next look, and tell all sites, also whether the server stays for other runs."""
        with self._changed:
            self._is_stopping = True
            self._drain = session_pb2.Drain(is_finished=is_finished, more_to_come=more_to_come)
            for site in self._sites.values():
                if site.send is not None:
                    self._send_away(site.send)
            self._changed.notify_all()

    def part(self, seconds: float) -> None:
        """Wait until all sites are gone, so long at most; after that nobody hears of any."""
        with self._changed:
            self._changed.wait_for(lambda: all(site.send is None for site in self._sites.values()), seconds)
            self._listener = ignore

    # -- LastingGrid, for the rounds

    def node_of(self, site: str) -> int:
        with self._changed:
            self._site(site)
        return node_of(site)

    def descriptions(self) -> dict[str, SiteDescription]:
        with self._changed:
            self._refuse_to_go_on()
            return {
                name: site.description
                for name, site in self._sites.items()
                if site.is_ready and site.description is not None
            }

    def turn_away(self, site: str, code: str) -> None:
        with self._changed:
            if (send := self._site(site).send) is not None:
                send(session_pb2.ConnectResponse(turned_away=session_pb2.TurnedAway(reason=code)))
            self.not_ready(site, code)

    def seconds_away(self) -> dict[str, float]:
        with self._changed:
            return {name: site.seconds_away for name, site in self._sites.items()}

    def acknowledge(self, message_id: str, refusal: str) -> None:
        with self._changed:
            self._settle(message_id, refusal)

    def take_back(self, site: str, round: int, refusal: str) -> None:
        with self._changed:
            known = self._site(site)
            known.taken_back = taken_back(round, refusal)
            self._send_taken_back(known)

    def withdraw(self, message_ids: Iterable[str]) -> None:
        with self._changed:
            for message_id in message_ids:
                for site in self._sites.values():
                    if site.outstanding.pop(message_id, None) is not None:
                        self._traces.withdrawn(message_id)
                        if site.send is not None:
                            cancellation = session_pb2.Cancellation(request_id=message_id)
                            site.send(session_pb2.ConnectResponse(cancellation=cancellation))
                        self._tell(site)

    def traffic(self) -> Traffic:
        with self._changed:
            return Traffic(self._bytes_down, self._bytes_up)

    def pause(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._is_stopping, seconds)
            self._refuse_to_go_on()

    # -- Grid

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes of the sites that are ready."""
        with self._changed:
            self._refuse_to_go_on()
            return [node_of(name) for name, site in sorted(self._sites.items()) if site.is_ready]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        message_ids = []
        for message in messages:
            with self._changed:
                self._refuse_to_go_on()
                self._num_messages += 1
                message_id = f"{self._prefix}-{self._num_messages}"
            give_id(message, message_id)
            site = self._names[message.metadata.dst_node_id]
            self._send_request(message, site)
            message_ids.append(message_id)
        return message_ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there; where none is, after a short wait for one."""
        wanted = list(message_ids)
        with self._changed:
            self._changed.wait_for(
                lambda: self._is_stopping or any(message_id in self._replies for message_id in wanted), _POLL_SECONDS
            )
            self._refuse_to_go_on()
            return [self._replies.pop(message_id) for message_id in wanted if message_id in self._replies]

    # -- within

    def _awaited(self, ticket: Ticket) -> Outstanding | None:
        wanted = (ticket.run, ticket.round, ticket.attempt)
        with self._changed:
            known = self._site(ticket.site).outstanding.values()
            return next((outstanding for outstanding in known if place(outstanding.request) == wanted), None)

    def _send_request(self, message: Message, site: str) -> None:
        request_id = message.metadata.message_id
        request = session_pb2.Request(request_id=request_id, precision=self._exchange.precision)
        content = message.content if kind_of(message.content) else request_in(message)
        put(carried(content), request)
        offer: Offer | None = None
        # First, so that what sites hold of it is what the other is a difference to.
        if former := adapter_in(content, name=FORMER, with_files=True):
            request.former.CopyFrom(offered(self._offer(former)))
        if moments := adapter_in(content, name=MOMENTS, with_files=True):
            request.moments.CopyFrom(offered(self._offer(moments)))
        packed = adapter_in(content, with_files=True)
        if request.HasField("sum"):
            # Numbers of the sum before, which are no adapter that an answer could be a difference to.
            if packed:
                request.adapter.CopyFrom(offered(self._offer(packed)))
            most = _BYTES_OF_A_NUMBER * request.sum.num_numbers + _HEADER_BYTES
            request.ticket = self._tickets.issue(Ticket(*place(request), site, most))
        elif not request.HasField("initialise"):
            offer = self._offer(packed)
            request.adapter.CopyFrom(offered(offer))
        if request.HasField("train"):
            most = self._exchange.max_upload_bytes(offer) * (1 + self._num_moments) if offer is not None else 0
            request.ticket = self._tickets.issue(Ticket(*place(request), site, most))
        elif request.HasField("initialise"):
            request.precision = "float32"
            request.ticket = self._tickets.issue(Ticket("", 0, 0, site, self._max_start_bytes))
        with self._changed:
            known = self._site(site)
            request.traceparent = self._traces.asked(request_id, site, request.WhichOneof("content") or "")
            outstanding = Outstanding(message, site, request, offer)
            known.outstanding[request_id] = outstanding
            self._deliver(known, outstanding)
            self._tell(known)

    def _offer(self, packed: Packed) -> Offer:
        """Return an adapter on offer, once there is room for it on the disk."""
        waits_for = ""
        while True:
            try:
                offer = self._exchange.offer(packed)
            except DiskFull as error:
                if (what := f"there is no room on the disk: {error}") != waits_for:
                    waits_for = what
                    self._listener(Waiting(what))
                self.pause(_FULL_PAUSE_SECONDS)
            else:
                if waits_for:
                    self._listener(Waiting(""))
                return offer

    def _deliver(self, site: KnownSite, outstanding: Outstanding) -> None:
        if site.send is not None and site.description is not None:
            outstanding.is_delivered = True
            site.send(session_pb2.ConnectResponse(request=outstanding.request))

    def _settle(self, message_id: str, refusal: str) -> None:
        name = self._answered.pop(message_id, None)
        if name is not None and (send := self._site(name).send) is not None:
            send(acknowledgement(message_id, refusal))

    def _send_away(self, send: Send) -> None:
        send(session_pb2.ConnectResponse(drain=self._drain))
        send("drained")

    def _send_taken_back(self, site: KnownSite) -> None:
        if site.send is not None and site.taken_back is not None:
            site.send(site.taken_back)
            site.taken_back = None

    def _site(self, name: str) -> KnownSite:
        if name not in self._sites:
            self._sites[name] = KnownSite(name)
            self._names[node_of(name)] = name
        return self._sites[name]

    def _tell(self, site: KnownSite) -> None:
        if self._told.get(site.name) != site.state:
            self._told[site.name] = site.state
            self._listener(SiteChanged(site.name, *site.state))

    def _refuse_to_go_on(self) -> None:
        if self._is_stopping:
            raise RunStopped("the run was stopped; the same command goes on with it")
