"""The command `fedlora`. What a verb needs is imported inside the verb, so that --help answers at once."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from fedlora.cli.adapters import adapters_app
from fedlora.cli.client import client_app
from fedlora.cli.data import data_app
from fedlora.cli.interrupts import INTERRUPTED, TERMINATED
from fedlora.cli.json_output import Json, is_asked_for, print_error
from fedlora.cli.outlets import prepare_outlets
from fedlora.cli.runs import runs_app
from fedlora.cli.server import server_app
from fedlora.cli.sites import sites_app
from fedlora.cli.track_option import TrackOption
from fedlora.common.method_names import DEFAULT, method_points
from fedlora.models.bitsandbytes_door import bitsandbytes_spared

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a key of the run file; may be repeated."),
]
Preset = Annotated[str | None, typer.Option(metavar="NAME", help="An embedded run: digits (the default) or emoji.")]

app = typer.Typer(
    help="Federated LoRA fine-tuning: train adapters where the data are, average them with LoRA-FAIR's correction.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


app.add_typer(server_app, name="server")
app.add_typer(sites_app, name="sites")
app.add_typer(runs_app, name="runs")
app.add_typer(client_app, name="client")
app.add_typer(adapters_app, name="adapters")
app.add_typer(data_app, name="data")


@app.callback(invoke_without_command=True)
def fedlora(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as version_of

        typer.echo(f"fedlora {version_of('fedlora')}")
        raise typer.Exit


@app.command()
def init(
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Default: run.toml, or NAME.toml of a site.")] = None,
    site: Annotated[str | None, typer.Option(metavar="NAME", help="Write the file of this site, and no run's.")] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="The run's name.")] = None,
    kind: Annotated[str | None, typer.Option(metavar="KIND", help="pictures, texts or conversations.")] = None,
    data: Annotated[str | None, typer.Option(metavar="PATH", help="Where the data lie.")] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="The base model: a folder or a hub id.")] = None,
    clients: Annotated[int | None, typer.Option(min=1, metavar="N", help="Deal the data out to so many.")] = None,
    as_json: Json = False,
) -> None:
    """Write a run file to begin with, or with --site a site file; what is not given is asked for."""
    from fedlora.cli.init import Options, run_init

    run_init(Options(out, site, name, kind, data, model, clients, as_json))


@app.command()
def simulate(
    run: Annotated[
        Path | None,
        typer.Argument(metavar="RUN.toml", help="The run file. Without it: the preset, or with --resume the folder's."),
    ] = None,
    overrides: Overrides = None,
    preset: Preset = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The run's folder. Default: the first free of runs/NAME, runs/NAME-2 ..."),
    ] = None,
    engine: Annotated[str, typer.Option(metavar="NAME", help="inprocess, or ray (Flower's simulation engine).")] = (
        "inprocess"
    ),
    workers: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Worker processes. Default: one per core, or per GPU.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in the folder; --set federation.rounds=20 prolongs it.")
    ] = False,
    track: TrackOption = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Write the run as commented TOML to start from, and exit.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run federated rounds on this machine: every client trains in turn, real models on real data."""
    from fedlora.cli.simulate import Options, run_simulate

    run_simulate(
        Options(run, tuple(overrides or ()), preset, out, engine, workers, resume, tuple(track or ()), as_json),
        only_print_config=print_config,
    )


@app.command()
def compare(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RUN.toml | RUN_DIR ...]",
            help="The run file that all runs have in common; or the folders of finished runs.",
        ),
    ] = None,
    overrides: Overrides = None,
    preset: Preset = None,
    methods: Annotated[
        str,
        typer.Option(
            metavar="A,B",
            help="Aggregation methods; the first is what the others are compared with. Default: the plain average, "
            f"and {DEFAULT}.",
        ),
    ] = "",
    references: Annotated[
        str, typer.Option(metavar="A,B", help="Of centralised, local_only, head_only: for scale.")
    ] = "",
    over: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=V1,V2", help="Compare values of a key of the run file too; may be repeated."),
    ] = None,
    tune: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=V1,V2",
            help="Of these values each method takes what is best on the clients' validation; may be repeated.",
        ),
    ] = None,
    draws: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", show_default="10", help="Runs of each: other partitions and seeds."),
    ] = None,
    tuning_draws: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", show_default="2", help="The draws by which values are chosen (--tune)."),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where runs, tables and the report go.")] = Path(
        "comparison"
    ),
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            show_default="inprocess",
            help="inprocess, or ray (processes of Ray's, with RAY_ADDRESS of a cluster).",
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Runs at a time. Default: one per core, or per GPU.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run methods side by side on the same draws, and say which differences they show; the same command goes on.

    Several commands with one --out share the runs. A key is tuned on the clients' validation examples, never on the
    test set.
    """
    from fedlora.cli.compare import run_compare
    from fedlora.cli.compare_options import Options

    run_compare(
        Options(
            tuple(paths or ()), tuple(overrides or ()), preset, methods, references, tuple(over or ()),
            tuple(tune or ()), draws, tuning_draws, out, engine, workers, as_json,
        )
    )  # fmt: skip


@app.command()
def plan(
    run: Annotated[Path, typer.Argument(metavar="RUN.toml", help="The run file.")],
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Say what a run would take, memory, bytes and seconds, without its weights; and refuse what cannot work.

    Of the model only config.json is read, or fetched; data that lie here are counted. On a machine without CUDA:
    --set train.device=cuda.
    """
    from fedlora.cli.plan import run_plan

    run_plan(run, tuple(overrides or ()), as_json=as_json)


@app.command()
def aggregate(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="ADAPTER_DIR...", help="PEFT folders, as PeftModel.save_pretrained writes them."),
    ],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="The folder to write, which PEFT loads too: a new or an empty one.")
    ],
    method: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help=f"One of {', '.join(method_points())}. `fedlora methods` says what each does.",
        ),
    ] = DEFAULT,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of the method, ridge=0.1 say; may be repeated."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(metavar="W,W,...", help="One weight for each folder, in their order: 3,1,2. Default: all equal."),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(min=1, metavar="R", help="Cut the result to the best of this rank, and say what that loses."),
    ] = None,
    as_json: Json = False,
    base_model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="All adapt this base model, whatever they call it; it is written into the result."
        ),
    ] = None,
) -> None:
    """Average LoRA adapters into one, and measure by layer how far it is from their ideal mean.

    Where a method changes the base weights, the folder holds one adapter of larger rank that acts exactly the same.
    """
    from fedlora.cli.aggregate import Options, run_aggregate

    run_aggregate(Options(tuple(folders), out, method, tuple(settings or ()), weights, rank, as_json, base_model))


@app.command()
def methods(as_json: Json = False) -> None:
    """List the aggregation methods, of other packages too, with their settings and what they allow."""
    from fedlora.cli.methods_view import print_methods

    print_methods(as_json=as_json)


@app.command()
def export(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The folder of a run with a finished round.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write: a new or an empty one.")],
    merge: Annotated[
        bool, typer.Option("--merge", help="Write the whole model, the adapter worked into its weights.")
    ] = False,
    adapter: Annotated[
        str, typer.Option(metavar="WHICH", help="The run's newest adapter, or that of its best round: newest or best.")
    ] = "newest",
    as_json: Json = False,
) -> None:
    """Write a run's adapter as a folder for PEFT, or with --merge the whole model for transformers.

    Tokenizer, chat template and a model card are in it. What is merged is tried against the adapter on
    its base model, and refused if it acts otherwise.
    """
    from fedlora.cli.export import Options, run_export

    run_export(Options(run_folder, out, merge, adapter, as_json))


@app.command()
def doctor(
    path: Annotated[
        Path | None,
        typer.Argument(metavar="[SITE.toml|RUN.toml|RUN_DIR]", help="What this machine is meant for."),
    ] = None,
    server: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Try the way to this server too, as the site of SITE.toml.")
    ] = None,
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where a server would listen here.")] = "[::]:8470",
    as_json: Json = False,
) -> None:
    """Look at what runs need of this machine: packages, GPU, disks, certificates, the way to the server.

    Each finding is one line, and a problem has the command that cures it; with any, the exit status is 1.
    """
    from fedlora.cli.doctor import Options, run_doctor

    run_doctor(Options(path, server, listen, as_json))


@app.command()
def dashboard(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run's folder, or one with runs below it.")],
    address: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where the page is; any but loopback is open to that network.")
    ] = "127.0.0.1:8471",
    as_json: Json = False,
) -> None:
    """Show runs as a page in a browser, as they come: rounds, sites, curves, refusals, the audit log, adapters.

    It reads what lies in the folder, of a run that is at work or over, and changes nothing.
    """
    from fedlora.cli.dashboard import run_dashboard

    run_dashboard(folder, address, as_json=as_json)


@app.command()
def schema(
    command: Annotated[
        list[str] | None, typer.Argument(metavar="[COMMAND]", help="Such as: runs list. Without it: all of them.")
    ] = None,
) -> None:
    """Print the JSON Schema of what a command prints with --json, and of its errors."""
    from fedlora.cli.schema import print_schema

    print_schema(" ".join(command or ()))


def main() -> None:
    """Run the command: exit 1 with one line for what a user can mend, a traceback for a bug.

    With --json an error is an object, too.
    """
    if sys.platform == "win32":
        print("error: fedlora does not run on Windows, where it cannot lock its folders; use WSL 2", file=sys.stderr)
        sys.exit(1)
    prepare_outlets()
    try:
        with bitsandbytes_spared():
            _run()
    except Exception as error:
        from fedlora.common.errors import FedloraError
        from fedlora.common.printable import printable

        if not isinstance(error, FedloraError):
            raise
        if is_asked_for():
            print_error(error.code, printable(" ".join(str(error).splitlines())))
        for line in str(error).splitlines():
            print(f"error: {printable(line)}", file=sys.stderr)
        sys.exit(1)


def _run() -> None:
    """Run what was typed; what is wrong with the words themselves is said in JSON where that was asked for."""
    if not is_asked_for():
        app()
    import click

    try:
        status = typer.main.get_command(app).main(standalone_mode=False)
    except click.UsageError as error:
        print_error("usage", error.format_message())
        error.show()
        status = error.exit_code
    if status in (INTERRUPTED, TERMINATED):
        print_error("interrupted", "interrupted; the same command goes on")
    sys.exit(status if isinstance(status, int) else 0)
