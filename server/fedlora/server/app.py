"""The ServerApp: Flower's entry to a run, the same on every Grid."""

from pathlib import Path

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedlora.aggregation import Robust
from fedlora.common.config import RunConfig
from fedlora.methods import Method
from fedlora.server.disk.account import Account
from fedlora.server.disk.store import RunFolder
from fedlora.server.record.events import Listener
from fedlora.server.rounds.federated_run import FederatedRun
from fedlora.server.run_method import method_of
from fedlora.server.run_optimizer import server_optimizer_of
from fedlora.server.run_privacy import client_privacy_of
from fedlora.server.sites import sites_behind


def server_app_for(
    config: RunConfig,
    folder: Path,
    *,
    num_sites: int,
    command: str,
    listener: Listener,
    account: Account | None = None,
    method: Method | None = None,
) -> ServerApp:
    """Return the ServerApp that does the rounds of a run which are left.

    Args:
        folder: the run's.
        num_sites: these are waited for at the start.
        command: goes into the manifest.
        account: keeps the time of this process.
        method: in place of the run's.
    """
    robust = Robust(**config.robust.model_dump())
    method = method or method_of(config)
    run = FederatedRun(
        config,
        method,
        RunFolder(folder),
        robust=None if robust == Robust() else robust,
        server_optimizer=server_optimizer_of(config.federation),
        privacy=client_privacy_of(config, method),
        num_sites=num_sites,
        command=command,
        listener=listener,
        account=account,
    )
    app = ServerApp()

    @app.main()
    def main(grid: Grid, _context: Context) -> None:
        # Two threads would wait for each other, and for the workers, at matrices as small as these.
        num_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            run.start(sites_behind(grid, num_sites=num_sites))
        finally:
            torch.set_num_threads(num_threads)

    return app
