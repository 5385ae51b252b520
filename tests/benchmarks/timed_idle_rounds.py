"""Time rounds of clients that do nothing: python timed_idle_rounds.py ENGINE NUM_WORKERS NUM_ROUNDS ANSWER.json

Ten clients answer an empty message with an empty one, so that all the time is the engine's own. Neither
this process nor a worker may load torch: that would be timed too, and is checked.
"""

import json
import sys
import time
from functools import partial
from pathlib import Path

from flwr.app import Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

_NUM_CLIENTS = 10
# Ray's Grid answers at once when no reply is there: to ask without a pause would take a core from its workers.
_PAUSE_SECONDS = 0.005


def make_client_app() -> ClientApp:
    """Return the app that does nothing, but says whether its process has loaded torch."""
    app = ClientApp()

    @app.train()
    def train(message: Message, _context: Context) -> Message:
        return Message(RecordDict({"loaded": MetricRecord({"torch": int("torch" in sys.modules)})}), reply_to=message)

    return app


def make_server_app(num_rounds: int, ended: list[float]) -> ServerApp:
    """Return the app that runs the rounds; `ended` gets the times: all clients known, each round over."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, _context: Context) -> None:
        while len(nodes := list(grid.get_node_ids())) < _NUM_CLIENTS:
            time.sleep(_PAUSE_SECONDS)
        ended.append(time.perf_counter())
        for _ in range(num_rounds):
            _round(grid, nodes)
            ended.append(time.perf_counter())

    return app


def _round(grid: Grid, nodes: list[int]) -> None:
    pending = set(grid.push_messages([Message(RecordDict(), node, MessageType.TRAIN) for node in nodes]))
    while pending:
        replies = list(grid.pull_messages(pending))
        for reply in replies:
            if reply.has_error() or reply.content.metric_records["loaded"]["torch"]:
                raise RuntimeError(f"a do-nothing client failed, or loaded torch: {reply}")
            pending.remove(reply.metadata.reply_to_message_id)
        if not replies:
            time.sleep(_PAUSE_SECONDS)


def main(engine: str, num_workers: int, num_rounds: int, answer: Path) -> None:
    """Write the seconds of start, rounds and stop."""
    ended: list[float] = []
    called = time.perf_counter()
    if engine == "ray":
        from fedlora.simulation.ray_engine import run_on_ray

        run = run_on_ray
    else:
        from fedlora.simulation.inprocess import run_in_process

        run = partial(run_in_process, preload=())
    run(make_client_app, partial(make_server_app, num_rounds, ended), num_nodes=_NUM_CLIENTS, num_workers=num_workers)
    returned = time.perf_counter()
    if "torch" in sys.modules:
        raise RuntimeError("torch was loaded in the parent")
    if len(ended) != num_rounds + 1:
        raise RuntimeError(f"{len(ended) - 1} of {num_rounds} rounds ended; see above")
    seconds = {
        "start": ended[0] - called,
        "rounds": ended[-1] - ended[0],
        "round_after_the_first": (ended[-1] - ended[1]) / (num_rounds - 1),
        "stop": returned - ended[-1],
        "total": returned - called,
    }
    answer.write_text(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
