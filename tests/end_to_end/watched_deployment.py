"""A deployment of one server and two sites with their metrics on, scraped while it runs and where a test wants it."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployment import Deployment, Process
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from small_run import write_run_file
from test_deployment import SITES, site_file


@dataclass(frozen=True)
class Watched:
    """A deployment that has done some rounds and goes on, and what its processes said of themselves then.

    Attributes:
        server, site: what /metrics of the server and of one site gave.
    """

    deployment: Deployment
    server: str
    site: str


def address_of(process: Process) -> str:
    """Return where a process is watched."""
    return process.wait_for(r"watched on (http://[^/]+)/metrics")[1]


def page(process: Process, path: str) -> tuple[int, str]:
    """Return the status and the content of a page of a process's watch port."""
    try:
        with urllib.request.urlopen(f"{address_of(process)}{path}", timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def families(scrape: str) -> dict[str, Metric]:
    """Return the metrics of a scrape by name."""
    return {family.name: family for family in text_string_to_metric_families(scrape)}


def value(scrape: str, name: str, **labels: str) -> float:
    """Return the value of a sample."""
    (found,) = [
        sample.value
        for family in families(scrape).values()
        for sample in family.samples
        if sample.name == name and sample.labels == labels
    ]
    return float(found)


@contextmanager
def watched_deployment(folder: Path, model: Path, digits: Path) -> Iterator[Watched]:
    """Yield a deployment of very many rounds after the first ones."""
    overrides = ("federation.sites=2", 'data.labels=["0","1","2"]', "federation.rounds=500")
    run = write_run_file(folder, model, digits, *overrides)
    with Deployment(folder, run) as deployment:
        _watch(deployment.server)
        deployment.server.start()
        deployment.server.wait_for("listening on")
        for name in SITES:
            site = deployment.add_site(name, site_file(folder, name, digits), token=deployment.invite(name))
            _watch(site)
            site.start()
        deployment.server.wait_for(r"round +3/500", 200)
        first = deployment.sites[SITES[0]]
        yield Watched(deployment, page(deployment.server, "/metrics")[1], page(first, "/metrics")[1])


def traced(process: Process) -> list[dict[str, Any]]:
    """Return the spans that a process has written so far."""
    path = process.cwd / f"{process.name}.spans"
    whole, _, _ = path.read_text().rpartition("\n") if path.exists() else ("", "", "")
    return [json.loads(line) for line in whole.splitlines()]


def _watch(process: Process) -> None:
    process.arguments = [*process.arguments, "--metrics", "0", "--trace", f"{process.name}.spans"]
    process.environment = {"OTEL_BSP_SCHEDULE_DELAY": "100"}  # Milliseconds.


def sampled(*scrapes: str) -> set[str]:
    """Return the names of all samples, as a query uses them, and of what may have none at the moment."""
    found = {family for scrape in scrapes for family in families(scrape)}
    return found | {sample.name for scrape in scrapes for each in families(scrape).values() for sample in each.samples}
