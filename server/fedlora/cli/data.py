"""`fedlora data`: what a run will learn from. What a verb needs is imported inside it, as in `main`."""

from pathlib import Path
from typing import Annotated

import typer

from fedlora.cli.json_output import Json, print_json

data_app = typer.Typer(
    help="The data of a run, before it runs.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@data_app.callback()
def data() -> None:
    pass


@data_app.command()
def preview(
    run: Annotated[Path, typer.Argument(metavar="RUN.toml", help="The run file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a key of the run file; may be repeated."),
    ] = None,
    client: Annotated[
        str | None, typer.Option(metavar="NAME", help="Whose examples to look at. Default: everyone's.")
    ] = None,
    examples: Annotated[int, typer.Option(min=0, metavar="N", help="How many examples to show.")] = 3,
    as_json: Json = False,
) -> None:
    """Show examples as the model will read them, how long they are, and how many each client has.

    Of a language model's examples it shows which tokens are learned: in colour in a terminal, elsewhere
    between [[ and ]]. Only the tokenizer is loaded.
    """
    from rich.console import Console

    from fedlora.cli.data_view import print_preview
    from fedlora.common.run_file import load_run
    from fedlora.training.data_preview import preview_data

    config = load_run(run, tuple(overrides or ()))
    preview = preview_data(config, client=client, num_examples=examples)
    if as_json:
        print_json(preview)
    else:
        print_preview(Console(highlight=False, soft_wrap=True), preview, client=client)
