"""Progress lines. Light: worker processes import the timed scripts again, and with them this file."""

import sys


def progress(line: str) -> None:
    """Say on stderr what is being done, so that minutes of measuring are not silent."""
    print(f"  {line}", file=sys.stderr, flush=True)
