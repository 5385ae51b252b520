"""The server of a do-nothing run: python idle_server.py RUN.toml FOLDER EVENTS

The process that `fedlora server start` is, without its terminal view and its report: `whole_run` over `serve` with a
StatusFile, with mTLS, on a port of its own choice. EVENTS gets the port, each event of the run and its time.
"""

import dataclasses
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from event_log import EventLog

from fedlora.common.run_file import load_run
from fedlora.finished.resident_check import ResidentCheck
from fedlora.server.deployment import serve
from fedlora.server.disk.status_file import StatusFile
from fedlora.server.door import Door
from fedlora.server.record.events import Event, Listener, RoundEnded
from fedlora.server.record.running_summary import Summarised
from fedlora.server.whole_run import Run, whole_run


def main(run: Path, folder: Path, log: EventLog) -> None:
    """Serve the run to its end."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    config = load_run(run)

    def listen(event: Event) -> None:
        summarised(event)
        if isinstance(event, RoundEnded):
            report = event.report
            log.say(
                "RoundEnded",
                round=report.round,
                seconds=dict(report.seconds),
                num_updates=len(report.clients),
                refused=dict(report.refused),
                bytes_down=report.bytes_down,
                bytes_up=report.bytes_up,
            )
        else:
            facts = {field.name: getattr(event, field.name) for field in dataclasses.fields(event)}
            log.say(type(event).__name__, **{key: facts[key] for key in facts.keys() - {"reports", "sites"}})

    def opened(port: int) -> None:
        status_file.listening(port)
        log.say("opened", port=port)

    status_file = StatusFile(folder, config)
    summarised = Summarised([status_file.show])

    @contextmanager
    def shown() -> Iterator[Listener]:
        with status_file:
            yield listen

    with ResidentCheck() as check:
        whole_run(
            Run(config, folder, config.federation.sites, shlex.join(sys.argv)),
            lambda rounds: serve(rounds, Door("127.0.0.1:0"), check=check, opened=opened),
            shown=shown(),
            resume=False,
            write_report=lambda *_given: None,
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), EventLog(Path(sys.argv[3])))
