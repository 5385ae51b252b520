"""`--track`, of the commands that run rounds."""

from typing import Annotated

import typer

TrackOption = Annotated[
    list[str] | None,
    typer.Option(
        "--track",
        metavar="NAME",
        help="Give each round's numbers to a tracker as they come: tensorboard, mlflow, wandb, or one of a package of "
        "yours; may be repeated.",
    ),
]
