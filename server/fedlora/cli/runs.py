"""`fedlora runs submit | list | show | stop`: the runs of a server's store. Heavy imports stay inside."""

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlora.cli.json_output import Json, print_json
from fedlora.cli.outputs import RunShown, RunsTold, RunTold, Submitted
from fedlora.common.errors import StoreError
from fedlora.common.printable import printable

if TYPE_CHECKING:
    from fedlora.server.run_queue.queue import QueuedRun
    from fedlora.server.run_queue.store import RunStore

runs_app = typer.Typer(
    help="The runs of a server that lasts (server start --store): submit, list, show, stop.", no_args_is_help=True
)

Store = Annotated[Path, typer.Option("--store", metavar="DIR", help="The folder given to server start --store.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The run's name, as its file has it.")]

_STOP_SECONDS, _LOOK_SECONDS = 60.0, 0.1


@runs_app.command()
def submit(
    run: Annotated[Path, typer.Argument(metavar="RUN.toml", help="The run file.")],
    store: Store,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a key of the run file; may be repeated."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Put a run at the end of the queue; it begins once those before it are over.

    One that was stopped or has failed goes on where it stood, and with more rounds one that is finished.
    """
    from fedlora.common.config import Occasion, idle_settings
    from fedlora.common.run_file import load_run
    from fedlora.server.run_queue.store import RunStore

    config = load_run(run, overrides or ())
    found = RunStore.existing(store)
    queue, changed = found.submit(config)
    notes = (*changed, *idle_settings(config, Occasion("server")))
    before = sum(run.state in ("running", "waiting") for run in queue.runs if run.name != config.run.name)
    if as_json:
        print_json(Submitted(config.run.name, before, found.is_served, notes))
        return
    for note in notes:
        print(f"note: {printable(note)}")
    print(f"{config.run.name} is submitted; {before} before it" if before else f"{config.run.name} is submitted")
    if not found.is_served:
        print(f"no server is at work there; to start one: fedlora server start --store {shlex.quote(str(store))}")


@runs_app.command("list")
def list_runs(store: Store, as_json: Json = False) -> None:
    """List the runs: what waits, what runs, what is over and how it ended."""
    print_runs(store, as_json=as_json)


@runs_app.command()
def show(name: Name, store: Store, as_json: Json = False) -> None:
    """Say how a run is doing, or how it ended, and where its results lie."""
    from fedlora.cli.server_view import status_lines
    from fedlora.common.run_folder import STATUS_FILE
    from fedlora.server.disk.status_file import read_status
    from fedlora.server.run_queue.store import RunStore

    found = RunStore.existing(store)
    run, folder = found.queue().find(name), found.run_folder(name)
    status = read_status(folder) if (folder / STATUS_FILE).exists() else None
    if as_json:
        print_json(RunShown(_told(run), str(folder), status))
        return
    print(printable(_line(run)))
    to_go_on = to_go_on_with(name, found)
    for line in status_lines(status, to_go_on=to_go_on) if status is not None else ():
        print(printable(line))
    if folder.is_dir():
        print(f"  folder    {folder}")


@runs_app.command()
def stop(name: Name, store: Store, as_json: Json = False) -> None:
    """End a run in good order, or take it out of the queue; submitted again, it goes on. The next one begins."""
    from fedlora.common.folder_version import RUN_FOLDER, version_of
    from fedlora.common.locks import is_held
    from fedlora.common.run_folder import LOCK_FILE, STOP_FILE
    from fedlora.server.run_queue.queue import RunQueue
    from fedlora.server.run_queue.store import RunStore

    found = RunStore.existing(store)
    folder = found.run_folder(name)
    version_of(folder, RUN_FOLDER)

    def stopped(queue: RunQueue) -> RunQueue:
        # One at which a server works is that one's to note.
        is_at_work = queue.find(name).state == "running" and found.is_served
        is_left = queue.find(name).state in ("waiting", "running") and not is_at_work
        return queue.with_state(name, "stopped") if is_left else queue

    if (state := found.queue().find(name).state) not in ("waiting", "running"):
        raise StoreError(f"{name} is {state} already")
    deadline = time.monotonic() + _STOP_SECONDS
    while found.change(stopped).find(name).state == "running":
        if is_held(folder / LOCK_FILE):
            try:
                (folder / STOP_FILE).touch()
            except FileNotFoundError:
                pass  # A run that could not begin has given its folder back.
            except OSError as error:
                raise StoreError(f"{folder}: the run cannot be asked to stop ({error.strerror})") from error
        if time.monotonic() > deadline:
            raise StoreError(f"{name}: asked to stop, it has not ended in {_STOP_SECONDS:.0f} s; it will when it can")
        time.sleep(_LOOK_SECONDS)
    run = found.queue().find(name)
    if as_json:
        print_json(_told(run))
    else:
        print(f"{name} is {run.state}")


def print_runs(store: Path, *, as_json: bool) -> None:
    """Print the runs of a store and who serves it."""
    from fedlora.server.run_queue.store import RunStore

    found = RunStore.existing(store)
    runs, server, is_served = found.queue().runs, found.server(), found.is_served
    if as_json:
        print_json(RunsTold(is_served, server, tuple(map(_told, runs))))
        return
    where = f"served at {server.get('address', '')}, process {server.get('pid', '')}"
    print(printable(where) if is_served else "no server is at work")
    if not runs:
        print(f"no run yet; to submit one: fedlora runs submit RUN.toml --store {shlex.quote(str(store))}")
    for run in runs:
        print(printable(_line(run)))


def to_go_on_with(name: str, store: "RunStore") -> str:
    """Return the command that has a run of a store go on, which is not over; nothing where it does by itself.

    Raises:
        StoreError: the store cannot be read.
    """
    from fedlora.common.run_folder import RUN_FILE

    folder = shlex.quote(str(store.folder))
    states = {run.name: run.state for run in store.queue().runs}
    if states.get(name) in ("waiting", "running"):
        return "" if store.is_served else f"fedlora server start --store {folder}"
    run_file = store.run_folder(name) / RUN_FILE
    return f"fedlora runs submit {shlex.quote(str(run_file))} --store {folder}"


def _line(run: "QueuedRun") -> str:
    why = f": {run.detail}" if run.detail else ""
    return f"{run.name}: {run.state}{why}, submitted {run.submitted}"


def _told(run: "QueuedRun") -> RunTold:
    return RunTold(run.name, run.state, run.detail, run.submitted)
