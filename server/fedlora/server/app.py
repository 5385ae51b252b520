"""The ServerApp: Flower's entry to the strategy, the same on every Grid."""

from collections.abc import Callable

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp


def make_server_app(start: Callable[[Grid], None]) -> ServerApp:
    """Return the ServerApp that runs a strategy's `start` to its end."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, _context: Context) -> None:
        start(grid)

    return app
