"""The options that name a server's folder, the same for each verb."""

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_PORT = 8470

Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="The run's folder, or a server's store.")]
Identity = Annotated[
    Path | None,
    typer.Option(
        "--identity", metavar="DIR", help="Authority and sites' records. Default: identity/ in the run's folder."
    ),
]
