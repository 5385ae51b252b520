"""What a site does as OpenTelemetry spans, which join those of the server that has asked for it.

Attributes are the round's number, seconds by phase and codes: nothing of the site's data, no words of an error.
"""

from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context

from fedlora.client.site.events import REQUESTS, Began, Ended, Event, Trained
from fedlora.common.reasons import update_reason
from fedlora.common.tracing import context_of


class SiteTraces:
    """Listens to what happens at a site; phases begin and end in one thread."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._spans: list[Span] = []

    def __call__(self, event: Event) -> None:
        """Take what has happened."""
        match event:
            case Began():
                self._spans.append(self._begun(event))
            case Ended():
                span = self._spans.pop()
                if event.code:
                    span.set_attribute("fedlora.code", update_reason(event.code))
                    span.set_status(Status(StatusCode.ERROR))
                span.end()
            case Trained() if self._spans:
                seconds = {f"fedlora.seconds.{name}": took for name, took in event.receipt.seconds.items()}
                self._spans[-1].set_attributes(seconds)

    def _begun(self, event: Began) -> Span:
        is_request = event.phase in REQUESTS
        parent = set_span_in_context(self._spans[-1]) if self._spans else context_of(event.traceparent)
        return self._tracer.start_span(
            event.phase,
            parent,
            kind=SpanKind.SERVER if is_request else SpanKind.INTERNAL,
            attributes={"fedlora.round": event.round} if is_request else None,
        )
