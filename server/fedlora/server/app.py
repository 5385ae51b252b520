"""The ServerApp: Flower's entry to the strategy, the same on every Grid."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedlora.server.strategy import LoraStrategy


def make_server_app(strategy: LoraStrategy) -> ServerApp:
    """Return the ServerApp that runs `strategy` to its end."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, _context: Context) -> None:
        strategy.start(grid)

    return app
