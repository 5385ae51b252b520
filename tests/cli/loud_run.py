"""Shows a run in the live view while a real worker writes to its terminal by every way: run by test_loud_workers.py."""

import os
import sys
import time

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from rich.console import Console

NUM_LINES = 12


def make_app() -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, _context: Context) -> Message:
        for number in range(NUM_LINES):
            os.write(2, f"library {number:02}\n".encode())
            print(f"printed {number:02} {'long ' * 30}end {number:02}")
            time.sleep(0.1)
        return Message(RecordDict(), reply_to=message)

    return app


def main() -> None:
    from fedlora.cli.live import progress_view
    from fedlora.cli.logs import log_to
    from fedlora.cli.outlets import prepare_outlets
    from fedlora.server.record.events import RoundStarted, RunStarted
    from fedlora.server.record.running_summary import Summarised
    from fedlora.simulation.inprocess import InProcessGrid

    prepare_outlets()
    console = Console()
    log_to(console)
    with progress_view(title="a run", metric_name="accuracy", console=console) as picture:
        listen = Summarised([picture])
        listen(RunStarted(("north", "south"), 2, 0, ()))
        listen(RoundStarted(1, ("north", "south"), ()))
        with InProcessGrid(make_app, num_nodes=1, environments=[{}]) as grid:
            list(grid.send_and_receive([Message(RecordDict(), 1, "train")], timeout=60))
        if "--parent" in sys.argv:
            os.write(2, b"the command's own library\n")
            time.sleep(0.6)


if __name__ == "__main__":
    main()
