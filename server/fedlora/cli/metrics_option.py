"""`--metrics`, of the commands that run for days."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

MetricsOption = Annotated[
    str | None,
    typer.Option(
        metavar="[HOST:]PORT",
        envvar="FEDLORA_METRICS",
        show_envvar=False,
        help="Answer /metrics (for Prometheus), /health and /ready there, over HTTP; a port alone is one of loopback. "
        "Also the variable FEDLORA_METRICS.",
    ),
]


@contextmanager
def watched(
    address: str,
    collector: "Collector",
    *,
    obstacle: Callable[[], str],
    is_finished: Callable[[], bool] = lambda: False,
) -> Iterator[None]:
    """Show a collector's metrics, and those of the process, at an address while the block lasts.

    Args:
        obstacle: says what keeps the process from being ready, nothing if it is.
        is_finished: says at the end whether all is done, which a last scrape is then to see, so that nobody takes the
            process for one that has failed.

    Raises:
        ConfigError: the address cannot be used.
    """
    from importlib.metadata import version

    from prometheus_client import CollectorRegistry, Info, ProcessCollector

    from fedlora.common.watch_port import WatchPort

    registry = CollectorRegistry()
    registry.register(collector)
    ProcessCollector(registry=registry)
    Info("fedlora_build", "what is running", registry=registry).info({"version": version("fedlora")})
    with WatchPort(address, registry, obstacle=obstacle) as port:
        yield
        if is_finished():
            port.await_scrape()
