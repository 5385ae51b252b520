"""`fedlora methods`: the aggregation methods, one below the other."""

from rich.console import Console
from rich.text import Text

from fedlora.cli.aggregation_options import settings_of, settings_text
from fedlora.cli.json_output import print_json
from fedlora.cli.outputs import MethodsTold, MethodTold
from fedlora.methods import DEFAULT, Method, loadable_methods


def print_methods(*, as_json: bool = False) -> None:
    """Print name, summary, settings and limits of each method."""
    console = Console()
    methods, broken = loadable_methods()
    if as_json:
        print_json(MethodsTold(tuple(_told(name, kind()) for name, kind in methods.items()), dict(broken)))
        return
    for name, kind in methods.items():
        method = kind()
        console.print(Text.assemble((name, "bold"), " (default)" if name == DEFAULT else ""), soft_wrap=True)
        for line in _lines(method):
            console.print(Text(f"    {line}"), soft_wrap=True)
    for reason in broken.values():
        console.print(Text(f"WARNING: {reason}"), soft_wrap=True)


def _lines(method: Method) -> list[str]:
    settings, plans = settings_text(method), [method.plan(number) for number in (1, 2)]
    trains = " and ".join(dict.fromkeys(" and ".join(plan.trains) for plan in plans))
    return [
        line
        for line in (
            method.summary or method.title,
            f"settings: {settings}" if settings else "",
            ""
            if plans[0].trains == plans[1].trains == ("A", "B")
            else f"clients train {trains}" + (" in turn" if plans[0].trains != plans[1].trains else " alone"),
            "changes the base weights" if method.changes_base else "",
            *(f"not with {what}" for what in _not_with(method)),
            "memory of the server: " + ("every client's pair of a layer" if method.needs_every_pair else "a few means"),
        )
        if line
    ]


def _told(name: str, method: Method) -> MethodTold:
    return MethodTold(
        name=name,
        title=method.title,
        summary=method.summary,
        is_default=name == DEFAULT,
        settings=settings_of(method),
        trains=tuple(tuple(method.plan(number).trains) for number in (1, 2)),
        changes_base=method.changes_base,
        needs_every_pair=method.needs_every_pair,
        not_with=tuple(_not_with(method)),
    )


def _not_with(method: Method) -> list[str]:
    allowed = (
        ("lora.client_ranks", method.allows_client_ranks),
        ('federation.late = "next_round"', method.allows_late_updates),
        ("DoRA", method.takes_dora()),
        ("federation.server_optimizer", method.takes_server_optimizer()),
    )
    return [what for what, is_allowed in allowed if not is_allowed]
