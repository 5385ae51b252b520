"""What a terminal shows of a plan."""

from collections.abc import Mapping

from rich import box
from rich.console import Console
from rich.table import Table

from fedlora.planning import Plan, Traffic

_MEGABITS = (10, 100)


def print_plan(plan: Plan, console: Console) -> None:
    """Print the plan: sizes, memory, bytes by method, seconds, and what was assumed."""
    share = 100 * plan.num_trained / plan.num_parameters
    console.print(f"{plan.name}: {plan.model}, planned for {plan.device}", markup=False, highlight=False)
    console.print(
        f"{plan.num_parameters:,} parameters, of which a client trains {plan.num_trained:,} ({share:.2f} %)\n",
        highlight=False,
    )
    for table in (_memory_table(plan), _traffic_table(plan), _time_table(plan)):
        console.print(table)
        console.print()
    for note in plan.notes:
        console.print(f"- {note}", style="yellow" if note.startswith("WARNING") else None, highlight=False)


def bytes_text(size: float) -> str:
    """Return a number of bytes with its unit and three digits or more."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:,.{2 if size < 10 * factor else 1}f} {unit}"
    return f"{size:.0f} B"


def seconds_text(seconds: float | None) -> str:
    """Return a time with its unit, in two digits or so: it is an estimate."""
    if seconds is None:
        return "-"
    if seconds >= 120:
        return f"{seconds / 60:,.0f} min"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"


def _memory_table(plan: Plan) -> Table:
    table = _table("memory", "training", "judging")
    training, evaluation = plan.step.training, plan.step.evaluation
    for part in {**training, **evaluation}:
        table.add_row(part, _part(training, part), _part(evaluation, part))
    table.add_section()
    table.add_row("of a client", bytes_text(sum(training.values())), bytes_text(sum(evaluation.values())), style="bold")
    table.add_section()
    server = plan.server
    held = server.adapters + server.kept + server.working
    table.add_row(f"of the server, {plan.num_clients} clients a round", bytes_text(held), "", style="bold")
    table.add_row("of a simulation's server", bytes_text(held + server.updates), "")
    return table


def _traffic_table(plan: Plan) -> Table:
    last = any(traffic.down_last != traffic.down for traffic in plan.traffic)
    former = any(traffic.former for traffic in plan.traffic)
    headings = [*(["down, last round"] if last else []), *(["more, round missed"] if former else [])]
    table = _table(f"a client's round, {plan.precision}", "up", "down", *headings)
    for traffic in plan.traffic:
        cells = [_up(traffic), bytes_text(traffic.down), *([bytes_text(traffic.down_last)] if last else [])]
        cells += [bytes_text(traffic.former)] if former else []
        is_own = traffic is plan.traffic[0]
        table.add_row(traffic.method, *cells, style="bold" if is_own else None, end_section=is_own)
    return table


def _time_table(plan: Plan) -> Table:
    table = _table("estimated time of a round", "")
    table.add_row("a client's training, here, within a factor of 2", seconds_text(plan.training_seconds))
    own = plan.traffic[0]
    for megabits in _MEGABITS:
        seconds = 8 * (own.up + own.down_last) / (megabits * 1e6)
        table.add_row(f"a client's transfer, at {megabits} Mbit/s", seconds_text(seconds))
    table.add_row("the aggregation, here", seconds_text(plan.server.seconds))
    return table


def _up(traffic: Traffic) -> str:
    if traffic.up == traffic.up_other:
        return bytes_text(traffic.up)
    return f"{bytes_text(traffic.up)} or {bytes_text(traffic.up_other)}"


def _part(parts: Mapping[str, int], part: str) -> str:
    return bytes_text(parts.get(part, 0))


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="right" if place else "left", no_wrap=bool(place))
    return table
