"""How a server is watched: its metrics over HTTP, and its traces. Heavy imports stay inside."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from fedlora.cli.metrics_option import watched
from fedlora.cli.trace_option import tracer_for

if TYPE_CHECKING:
    from fedlora.common.config import RunConfig
    from fedlora.server.door import Door
    from fedlora.server.record.running_summary import Picture, RunningSummary
    from fedlora.server.run_traces import RunTraces


def metrics_of(
    address: str | None, config: "RunConfig", door: "Door", out: Path, *, known: "RunningSummary", is_open: Event
) -> "tuple[AbstractContextManager[None], list[Picture]]":
    """Return the port on which the server is watched, and the pictures that must hear of the run for it."""
    if address is None:
        return nullcontext(), []
    from fedlora.server.disk.space import why_not_writable
    from fedlora.server.run_metrics import RunMetrics

    certificate_of = {}
    if door.external_pair is not None:
        certificate_of["server"] = door.external_pair.certificate.read_bytes
    elif not door.is_insecure:
        folder = door.identity_folder(out)
        certificate_of |= {"server": (folder / "server.pem").read_bytes, "authority": (folder / "ca.pem").read_bytes}
    metrics = RunMetrics(config, out, known=known, certificate_of=certificate_of)

    def obstacle() -> str:
        return why_not_writable(out) if is_open.is_set() else "the port for sites is not open yet"

    return watched(address, metrics, obstacle=obstacle), [metrics.show]


@contextmanager
def traces_of(path: Path | None, config: "RunConfig") -> "Iterator[RunTraces | None]":
    """Give what traces a run, to a file or wherever the OTEL_ variables say; None where nobody asks for it."""
    with tracer_for("fedlora-server", path) as tracer:
        if tracer is None:
            yield None
            return
        from fedlora.server.run_traces import RunTraces

        traces = RunTraces(tracer, run=config.run.name)
        try:
            yield traces
        finally:
            traces.close()
