"""`--trace`, of the commands that run for days."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlora.common.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

    from fedlora.common.config import RunConfig
    from fedlora.server.run_traces import RunTraces

TraceOption = Annotated[
    Path | None,
    typer.Option(
        "--trace",
        metavar="FILE",
        help="Append OpenTelemetry spans to this file, a JSON object a line. They go elsewhere by OTEL_ variables, "
        "such as OTEL_EXPORTER_OTLP_ENDPOINT.",
    ),
]
# Any of these says where traces go.
_VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


@contextmanager
def tracer_for(service: str, path: Path | None) -> "Iterator[Tracer | None]":
    """Give what makes the spans of this process; None where nobody asks for any.

    Raises:
        ConfigError: what they need is not installed, or the file cannot be written.
    """
    has_destination = any(map(os.environ.get, _VARIABLES)) and os.environ.get("OTEL_TRACES_EXPORTER") != "none"
    is_installed = find_spec("opentelemetry") is not None and find_spec("opentelemetry.sdk") is not None
    if path is not None and not is_installed:
        raise ConfigError("--trace needs OpenTelemetry: pip install 'fedlora[trace]'")
    # The variables may be meant for other programs of this machine.
    if path is None and not (has_destination and is_installed):
        yield None
        return
    from fedlora.common.tracing import traced

    with traced(service, path) as tracer:
        yield tracer


def traces_of(tracer: "Tracer | None", config: "RunConfig") -> "RunTraces | None":
    """Return what traces a run; None where nobody asks for it. Whoever shows the run closes it at the run's end."""
    if tracer is None:
        return None
    from fedlora.server.run_traces import RunTraces

    return RunTraces(tracer, run=config.run.name)
