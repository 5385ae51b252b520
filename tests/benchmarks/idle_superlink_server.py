"""The ServerApp of the yardstick, as a SuperLink starts it, and what its run config names is timed.

`rounds` above 0: so many whole rounds of a FederatedRun, adapters inside the messages. Otherwise one round trip
of `num_arrays` float32 arrays that take `size_bytes` together, which the clients send back; neither side looks at them.
`events` is the file that gets the times, `out` the run's folder.
"""

import time
from pathlib import Path

import numpy as np
from event_log import EventLog
from flwr.app import Array, ArrayRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp
from idle_federation import idle_run

from fedlora.server.app import server_app_for
from fedlora.server.record.events import Event, RoundEnded, RoundStarted

_POLL_SECONDS = 0.05

app = ServerApp()  # Flower looks for this very assignment in the source.


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Do what the run config says."""
    given = context.run_config
    log, num_sites = EventLog(Path(str(given["events"]))), int(given["num_sites"])
    if num_rounds := int(given["rounds"]):

        def listen(event: Event) -> None:
            if isinstance(event, RoundStarted):
                log.say("RoundStarted", round=event.round)
            elif isinstance(event, RoundEnded):
                log.say("RoundEnded", round=event.report.round, num_updates=len(event.report.clients))

        config, out = idle_run(num_rounds=num_rounds, num_sites=num_sites), Path(str(given["out"]))
        rounds = server_app_for(config, out, num_sites=num_sites, command="", listener=listen)
        rounds(grid, context)
    else:
        while len(nodes := list(grid.get_node_ids())) < num_sites:
            time.sleep(_POLL_SECONDS)
        arrays = _arrays(int(given["num_arrays"]), int(given["size_bytes"]))
        log.say("RoundStarted", round=1)
        messages = [Message(RecordDict({"arrays": arrays}), node, MessageType.TRAIN) for node in nodes]
        pending, num_updates = set(grid.push_messages(messages)), 0
        while pending:
            for reply in grid.pull_messages(pending):
                if reply.has_error():
                    raise RuntimeError(f"a do-nothing client failed: {reply.error}")
                num_updates += len(reply.content.array_records["arrays"]) == len(arrays)
                pending.remove(reply.metadata.reply_to_message_id)
            time.sleep(_POLL_SECONDS)
        log.say("RoundEnded", round=1, num_updates=num_updates)


def _arrays(num_arrays: int, size_bytes: int) -> ArrayRecord:
    generator = np.random.default_rng(0)
    sizes = np.diff(np.linspace(0, size_bytes // 4, num_arrays + 1).astype(int))
    drawn = (generator.standard_normal(size, dtype=np.float32) for size in sizes)
    return ArrayRecord({f"array-{number}": Array(array) for number, array in enumerate(drawn)})
