"""How a server is watched: its metrics over HTTP. Heavy imports stay inside."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from fedlora.cli.metrics_option import watched

if TYPE_CHECKING:
    from fedlora.common.config import RunConfig
    from fedlora.server.door import Door
    from fedlora.server.record.round_report import RoundReport
    from fedlora.server.run_metrics import RunMetrics
    from fedlora.server.run_queue.metrics import StoreMetrics
    from fedlora.server.run_queue.store import RunStore


def metrics_of(
    address: str | None,
    config: "RunConfig",
    door: "Door",
    out: Path,
    *,
    reports: "Sequence[RoundReport]",
    is_open: Event,
) -> "tuple[AbstractContextManager[None], RunMetrics | None]":
    """Return the port on which the server is watched, and what must hear of the run for it."""
    if address is None:
        return nullcontext(), None
    from fedlora.server.run_metrics import RunMetrics

    metrics = RunMetrics(config, out, reports=reports, certificate_of=_certificates(door, out))
    obstacle = _obstacle(out, is_open)
    return watched(address, metrics, obstacle=obstacle, is_finished=lambda: metrics.is_finished), metrics


def metrics_of_store(
    address: str | None, store: "RunStore", door: "Door", *, is_open: Event
) -> "tuple[AbstractContextManager[None], StoreMetrics | None]":
    """Return the port on which a store's server is watched, and what must hear of each run that begins for it."""
    if address is None:
        return nullcontext(), None
    from fedlora.server.run_queue.metrics import StoreMetrics

    metrics = StoreMetrics(store, certificate_of=_certificates(door, store.folder))
    return watched(address, metrics, obstacle=_obstacle(store.folder, is_open)), metrics


def _certificates(door: "Door", out: Path) -> dict[str, Callable[[], bytes]]:
    """Return what reads the certificates of a server, by whose they are."""
    if door.external_pair is not None:
        return {"server": door.external_pair.certificate.read_bytes}
    if door.is_insecure:
        return {}
    folder = door.identity_folder(out)
    return {"server": (folder / "server.pem").read_bytes, "authority": (folder / "ca.pem").read_bytes}


def _obstacle(out: Path, is_open: Event) -> Callable[[], str]:
    """Return what says why a server is not ready."""
    from fedlora.server.disk.space import why_not_writable

    return lambda: why_not_writable(out) if is_open.is_set() else "the port for sites is not open yet"
