"""Time the default run on one engine: python timed_simulation.py ENGINE NUM_WORKERS OVERRIDES ANSWER.json

OVERRIDES is a JSON list of `section.key=value`, empty for the default run itself. The phases come from
the run's own events and round reports, the times of the clients from their reports.
"""

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, cast

from progress import progress

if TYPE_CHECKING:
    from fedlora.simulation.simulate import Engine

_STEP = ("forward", "backward", "optimizer")


def main(engine: "Engine", num_workers: int, overrides: list[str], answer: Path) -> None:
    """Write the seconds of each phase, the clients' summed seconds, accuracy and aggregation error."""
    importing = time.perf_counter()
    from fedlora.server.record.events import Event, RoundEnded, RunStarted
    from fedlora.simulation import preset, simulate

    config = preset("digits", *overrides)
    times: dict[str, float] = {}

    def listen(event: Event) -> None:
        now = time.perf_counter()
        if isinstance(event, RunStarted):
            times["started"] = now
        elif isinstance(event, RoundEnded):
            times["rounds_ended"] = now
            progress(f"{engine}: round {event.report.round} of {config.federation.rounds} after {now - called:.1f} s")

    called = time.perf_counter()
    result = simulate(config, out="run", engine=engine, num_workers=num_workers, listener=listen)
    returned = time.perf_counter()

    before, *reports = result.reports
    after = reports[-1]
    if before.held_out is None or after.held_out is None or any(report.refused for report in reports):
        raise RuntimeError(f"not a whole run: {[dict(report.refused) for report in reports]}")
    spent: Counter[str] = Counter()
    clients: Counter[str] = Counter()
    for report in reports:
        spent.update(report.seconds)
        for client in report.clients.values():
            clients.update(client.seconds)
    client_seconds = {
        "step": sum(clients[part] for part in _STEP),
        "training": clients["training"],
        "validation": clients["validation"],
    }
    seconds = {
        "import": called - importing,
        "start": times["started"] - called,
        "rounds": times["rounds_ended"] - times["started"],
        "evaluation_before_training": before.seconds["evaluation"],
        **{phase: spent[phase] for phase in ("training", "evaluation", "aggregation", "storing")},
        "stop": returned - times["rounds_ended"],
        "total": returned - called,
    }
    errors = [report.aggregation for report in (reports[0], after) if report.aggregation is not None]
    answer.write_text(
        json.dumps(
            {
                "seconds": seconds,
                "client_seconds": client_seconds,
                "accuracy": [before.held_out.overall.metric, after.held_out.overall.metric],
                "error_before": [error.error_before for error in errors],
                "error_after": [error.error_after for error in errors],
            }
        )
    )


if __name__ == "__main__":
    main(cast("Engine", sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]), Path(sys.argv[4]))
