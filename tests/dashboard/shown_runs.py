"""Run folders to show, and the dashboard on them as a client on loopback has it."""

import http.client
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from report_pages import finished, start

from fedlora.common.config import RunConfig
from fedlora.common.run_file import parse_run, to_toml
from fedlora.dashboard.serving import dashboard_beside
from fedlora.server.record.round_report import CODEC, RoundReport

CONFIG: RunConfig = parse_run({"run": {"name": "clinics"}, "federation": {"rounds": 4}})


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


class Client:
    """Asks a dashboard for things, literally: no path is made nicer on the way."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.url = f"http://{address}"

    def get(self, path: str, *, method: str = "GET", **headers: str) -> Answer:
        """Return the answer to a request; headers have _ for -."""
        connection = http.client.HTTPConnection(self.address, timeout=30)
        try:
            connection.putrequest(method, path, skip_host="Host" in headers)
            for name, value in headers.items():
                connection.putheader(name.replace("_", "-"), value)
            connection.endheaders()
            found = connection.getresponse()
            return Answer(found.status, {name.lower(): value for name, value in found.getheaders()}, found.read())
        finally:
            connection.close()


@contextmanager
def shown(folder: Path) -> Iterator[Client]:
    """Yield a client of a dashboard on a folder."""
    with dashboard_beside(folder, "127.0.0.1:0") as dashboard:
        yield Client(dashboard.address)


def write_run(folder: Path, *reports: RoundReport, config: RunConfig = CONFIG) -> Path:
    """Write a run's folder with these rounds, or the start and two rounds, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.toml").write_text(to_toml(config))
    (folder / "manifest.json").write_text('{"metric": "accuracy"}')
    append(folder, *(reports or (start(), finished(1), finished(2))))
    return folder


def append(folder: Path, *reports: RoundReport) -> None:
    """Add rounds to a run's folder."""
    with open(folder / "rounds.jsonl", "a") as file:
        file.writelines(CODEC.dump(report) + "\n" for report in reports)


def write_adapter(folder: Path, content: bytes = b"tensors") -> None:
    """Write what looks like a PEFT folder from outside."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (folder / "adapter_model.safetensors").write_bytes(content)
