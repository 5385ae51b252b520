"""Where warnings go: above the live view where there is one, else to stderr."""

import logging

from rich.console import Console
from rich.logging import RichHandler


def log_to(console: Console, *, level: int = logging.WARNING) -> None:
    """Show what is logged."""
    handler = RichHandler(console=console, show_time=False, show_path=False) if console.is_terminal else None
    logging.basicConfig(level=level, format="%(message)s", handlers=[handler] if handler else None)
