"""A run as OpenTelemetry spans: a round, its phases in it, and in these one for each request to a site.

    round                 from the first request to the round's end on disk
        train             until the last update came, or was waited for no more
            request       one for each site; the site's own spans join it
        aggregate         averaging, and writing the new adapter
        evaluate          where it is judged

It listens, and no round goes by it. Attributes are numbers, sites' names as the server knows them, and codes.
"""

import threading
import time
from dataclasses import dataclass, field

from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context

from fedlora.common.reasons import update_reason
from fedlora.common.tracing import traceparent_of
from fedlora.server.record.events import EvaluationStarted, Event, RoundEnded, RoundStarted, UpdateArrived
from fedlora.server.record.running_summary import RunningSummary


@dataclass
class _Round:
    """The spans of a round that is at work, and when its last update came, in nanoseconds since 1970."""

    number: int
    span: Span
    phase_name: str
    phase: Span
    last_answered: int = field(default_factory=time.time_ns)


class RunTraces:
    """Listens to a run's events and its Grid's requests; safe to use from any thread."""

    def __init__(self, tracer: Tracer, *, run: str) -> None:
        """`run` is its name."""
        self._tracer = tracer
        self._run = run
        self._lock = threading.Lock()
        self._round: _Round | None = None
        self._requests: dict[str, Span] = {}

    def show(self, event: Event, _before: RunningSummary, _summary: RunningSummary) -> None:
        """Take an event of the run; a picture of it as the live view is another."""
        with self._lock:
            match event:
                case RoundStarted():
                    self._begin(event)
                case UpdateArrived() if self._round is not None and event.reason:
                    refused = {"fedlora.site": event.client, "fedlora.reason": update_reason(event.reason)}
                    self._round.phase.add_event("refused", refused)
                case EvaluationStarted():
                    self._aggregated(until=time.time_ns())
                    self._enter(event.round, "evaluate")
                case RoundEnded():
                    self._end(event)

    def close(self) -> None:
        """End what is at work: the run stops."""
        with self._lock:
            for span in self._requests.values():
                span.end()
            self._requests.clear()
            if self._round is not None:
                self._round.phase.end()
                self._round.span.end()
                self._round = None

    # -- RequestTraces, for the Grid

    def asked(self, request_id: str, site: str, kind: str) -> str:
        """Begin a request's span, and return its place in the trace."""
        with self._lock:
            parent = None if self._round is None else set_span_in_context(self._round.phase)
            attributes = {"fedlora.run": self._run, "fedlora.site": site, "fedlora.request": kind}
            span = self._tracer.start_span("request", parent, kind=SpanKind.CLIENT, attributes=attributes)
            self._requests[request_id] = span
            return traceparent_of(span)

    def answered(self, request_id: str, code: str) -> None:
        """End a request's span."""
        self._over(request_id, update_reason(code) if code else "")

    def withdrawn(self, request_id: str) -> None:
        """End the span of a request that is waited for no more."""
        self._over(request_id, "withdrawn")

    # -- within, under the lock

    def _over(self, request_id: str, code: str) -> None:
        with self._lock:
            if self._round is not None:
                self._round.last_answered = time.time_ns()
            if (span := self._requests.pop(request_id, None)) is not None:
                if code:
                    span.set_attribute("fedlora.code", code)
                    span.set_status(Status(StatusCode.ERROR))
                span.end()

    def _begin(self, event: RoundStarted) -> None:
        if self._round is None or self._round.number != event.round:
            self._enter(event.round, "train")
        else:  # Begun again for want of a quorum.
            self._round.phase.end()
            self._round.phase = self._phase("train", self._round.span)
        if self._round is not None:
            self._round.span.set_attribute("fedlora.sites", len(event.cohort))

    def _enter(self, number: int, phase: str) -> None:
        if self._round is None:
            span = self._tracer.start_span("round", attributes={"fedlora.run": self._run, "fedlora.round": number})
            self._round = _Round(number, span, phase, self._phase(phase, span))
        else:
            self._round.phase_name, self._round.phase = phase, self._phase(phase, self._round.span)

    def _phase(self, name: str, round: Span, *, begin: int | None = None) -> Span:
        attributes = {"fedlora.run": self._run}
        return self._tracer.start_span(name, set_span_in_context(round), start_time=begin, attributes=attributes)

    def _aggregated(self, *, until: int) -> None:
        """End the training when its last update had come; what has happened since then was averaging."""
        if (known := self._round) is not None and known.phase_name == "train":
            known.phase.end(known.last_answered)
            self._phase("aggregate", known.span, begin=known.last_answered).end(until)

    def _end(self, event: RoundEnded) -> None:
        if (known := self._round) is None:
            return
        report, now = event.report, time.time_ns()
        self._aggregated(until=now)
        if known.phase_name != "train":
            known.phase.end(now)
        known.span.set_attributes({f"fedlora.seconds.{phase}": took for phase, took in report.seconds.items()})
        known.span.set_attributes(
            {"fedlora.updates.accepted": len(report.clients), "fedlora.updates.refused": len(report.refused)}
        )
        known.span.end(now)
        self._round = None
