"""`fedlora plan`: what a run would take, printed."""

from pathlib import Path

from rich.console import Console

from fedlora.cli.json_output import print_json
from fedlora.cli.plan_view import print_plan
from fedlora.common.run_file import load_run
from fedlora.planning import plan_of


def run_plan(run: Path, overrides: tuple[str, ...], *, as_json: bool) -> None:
    """Print what the run in a file would take.

    Raises:
        FedloraError: it cannot work; the caller prints why.
    """
    plan = plan_of(load_run(run, overrides))
    if as_json:
        print_json(plan)
    else:
        print_plan(plan, Console())
