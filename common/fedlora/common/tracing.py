"""Traces by OpenTelemetry, of the extra `trace`: where they go, and how one side's spans join the other's.

They are on where a file for them is named or an OTEL_ variable says where they go; else nothing of this is imported.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, TraceFlags, Tracer, set_span_in_context

from fedlora.common.errors import ConfigError

_NAME = "OTEL_SERVICE_NAME"
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


@contextmanager
def traced(service: str, path: Path | None) -> Iterator[Tracer]:
    """Give what makes the spans of a process, which are sent when they end and all of them at the block's end.

    Args:
        service: what the process is called, unless OTEL_SERVICE_NAME says.
        path: a file to which they are appended, a JSON object a line; None for wherever the OTEL_ variables say.

    Raises:
        ConfigError: the file cannot be written, or the exporter is not installed.
    """
    with _exporter(path) as exporter:
        resource = Resource.create({} if os.environ.get(_NAME) else {"service.name": service})
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(exporter))
        try:
            yield provider.get_tracer("fedlora")
        finally:
            provider.shutdown()


def traceparent_of(span: Span) -> str:
    """Return a span's place in its trace, as W3C's trace context writes it; empty for one that is not recorded."""
    found = span.get_span_context()
    return f"00-{found.trace_id:032x}-{found.span_id:016x}-{found.trace_flags:02x}" if found.is_valid else ""


def context_of(traceparent: str) -> Context | None:
    """Return the context of a span on the other side; None where what came is no place in a trace."""
    found = _TRACEPARENT.fullmatch(traceparent)
    if found is None:
        return None
    trace, span, flags = (int(part, 16) for part in found.groups())
    return set_span_in_context(NonRecordingSpan(SpanContext(trace, span, True, TraceFlags(flags))), Context())


@contextmanager
def _exporter(path: Path | None) -> Iterator[SpanExporter]:
    if path is None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        except ImportError as error:
            raise ConfigError("OTEL_ variables ask for traces: pip install 'fedlora[trace]', or unset them") from error
        yield OTLPSpanExporter()
        return
    try:
        file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (it is closed below)
    except OSError as error:
        raise ConfigError(f"--trace {path}: cannot be written ({error.strerror})") from error
    with file:
        yield _lines_to(file)


def _lines_to(file: IO[str]) -> SpanExporter:
    def line(span: ReadableSpan) -> str:
        return f"{span.to_json(indent=None)}\n"

    return ConsoleSpanExporter(out=file, formatter=line)
