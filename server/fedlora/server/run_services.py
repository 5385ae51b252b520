"""What a server has of one run: its Grid, its files, its services, and the ServerApp over them."""

from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, RecordDict

from fedlora.common.run_folder import EXCHANGE_FOLDER
from fedlora.server.disk.exchange import ExchangeStore
from fedlora.server.disk.registry import LINGER_SECONDS, Registry
from fedlora.server.disk.space import LEAST_FREE_BYTES, DiskWatch
from fedlora.server.identity.tickets import TicketOffice
from fedlora.server.sites.grpc.gate import Gate
from fedlora.server.sites.grpc.grid import GrpcGrid, RunStopped
from fedlora.server.sites.grpc.request_traces import RequestTraces
from fedlora.server.sites.grpc.session import SessionService
from fedlora.server.sites.grpc.transfer import TransferService
from fedlora.server.whole_run import Rounds

# Sites that are told to go are gone at once; one that reads nothing is not waited for.
_PART_SECONDS = 5.0

Check = Callable[[Path], str]
"""Says what is wrong with the PEFT folder of an adapter that is to be published, nothing if all is well."""


class RunServices:
    """One run at a server; its folder is held meanwhile.

    Attributes:
        gate: to this run.
        disk: looks after the room in the run's folder.
    """

    def __init__(self, rounds: Rounds, gate: Gate, *, check: Check, traces: RequestTraces | None = None) -> None:
        """`traces` hear of each request to a site."""
        config, folder = rounds.run.config, rounds.run.folder
        num_moments = len(config.train.shared_moments)
        self.gate = gate
        self._exchange = exchange = ExchangeStore(folder / EXCHANGE_FOLDER, precision=config.wire_precision)
        tickets = TicketOffice(exchange.ticket_key_file)
        self._grid = grid = GrpcGrid(
            exchange,
            tickets,
            max_start_bytes=config.exchange.max_start_megabytes * 10**6,
            num_moments=num_moments,
            listener=rounds.listener,
            traces=traces,
        )
        self.registry = Registry(
            folder,
            check=check,
            keep=config.exchange.published,
            margin=config.exchange.publish_margin,
            listener=rounds.listener,
        )
        self.disk = DiskWatch(
            folder,
            rounds.listener,
            # An update of each site as it came and made whole, and the journal's adapters.
            needed_bytes=lambda: (
                LEAST_FREE_BYTES + exchange.newest_bytes * (2 * max(1, grid.counts()[1]) + 3) * (1 + num_moments)
            ),
        )
        self.session = SessionService(grid, exchange, gate, config)
        self.transfer = TransferService(exchange, tickets, grid, gate, full=self.disk.look)
        self._app = rounds.server_app(first=self.registry.heard)

    def do_rounds(self, *, at_end: Callable[[], bool] = lambda: False) -> None:
        """Do the rounds that are left, and let the sites go.

        Args:
            at_end: called before they hear of the end; returns whether the server stays for other runs.

        Raises:
            RunStopped: it was asked to stop, also where the last adapter alone is left to be published.
            FedloraError: the run cannot go on.
        """
        is_finished = is_published = False
        try:
            self._app(self._grid, Context(1, 0, {}, RecordDict(), {}))
            is_finished = True
        finally:
            stays = at_end()
            try:
                linger = 0.0 if stays else LINGER_SECONDS
                is_published = self.registry.close(is_finished=is_finished, linger_seconds=linger)
            finally:
                self._grid.stop(is_finished=is_finished, more_to_come=stays)
                if stays:
                    # What a site does after that is no event of this run.
                    self._grid.part(_PART_SECONDS)
                    self.registry.part()
        if not is_published:
            raise RunStopped("the last adapter is not published yet; the same command goes on with that")

    def look(self) -> None:
        """Look after the room on the disk, and after the sites that are away."""
        self.disk.look()
        self._grid.look()

    def clear(self) -> None:
        """Remove what was exchanged: of a run that is over, nobody asks for it."""
        self._exchange.clear()

    def stop(self, *, more_to_come: bool = False) -> None:
        """Let the rounds end at their next look; what was accepted is on disk."""
        self._grid.stop(is_finished=False, more_to_come=more_to_come)
        self.registry.stop()
