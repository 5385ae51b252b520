"""The report's section on where the time went: wall time by round, and the clients' own time."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from fedlora.server.record.round_report import RoundReport
from fedlora.server.record.totals import round_seconds, run_seconds, trained
from fedlora.server.report.content import Section
from fedlora.server.report.drawing import Colour, amount_axis, draw, paint_bars
from fedlora.server.report.numbers import by_client, client_seconds, wall_seconds
from fedlora.server.report.series_chart import Panel, Series, series_chart
from fedlora.server.report.wording import duration_text, list_text, share_text, size_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = {
    "training": Colour.BLUE,
    "aggregation": Colour.ORANGE,
    "evaluation": Colour.GREEN,
    "storing": Colour.PURPLE,
}
_OUTSIDE = "outside of rounds"
_LEAST_SHARE_OUTSIDE = 0.005
_PHASE_WORDS = {
    "forward": "forward pass",
    "backward": "backward pass",
    "optimizer": "optimiser",
    "other": "rest of training",
}


def times(reports: Sequence[RoundReport], worked: float) -> Section | None:
    """Return where the time went; nothing where none was measured. `worked` is the seconds of all processes."""
    phases = wall_seconds(reports)
    if not trained(reports) or not phases:
        return None
    about = _about(reports, phases, worked)
    unit, unit_name = _unit(max(map(round_seconds, reports)))
    bars = [
        Series(
            phase,
            {report.round: report.seconds.get(phase, 0.0) / unit for report in reports},
            _COLOURS.get(phase, Colour.GREY),
        )
        for phase in phases
    ]
    panel = Panel(bars, amount_axis, name=unit_name, is_bars=True)
    charts = [series_chart("Wall time by round", panel, description=about[0])]
    if in_clients := client_seconds(reports):
        paint = partial(_paint_phases, phases=in_clients)
        charts.append(draw(paint, title="Inside the clients", description=about[-1], height=300))
    down, up = sum(report.bytes_down for report in reports), sum(report.bytes_up for report in reports)
    traffic = f"{size_text(down)} of adapters went to the clients, {size_text(up)} came back."
    return Section("Where the time went", [about, [traffic]], charts)


def _about(reports: Sequence[RoundReport], phases: Mapping[str, float], worked: float) -> list[str]:
    """Return where the wall time went, and how far the clients' training times lie apart."""
    total = run_seconds(reports, worked)
    outside = total - sum(phases.values())
    if outside >= _LEAST_SHARE_OUTSIDE * total:
        phases = {**phases, _OUTSIDE: outside}
    parts = [f"{phase} {duration_text(seconds)} ({share_text(seconds / total)})" for phase, seconds in phases.items()]
    sentences = [f"The run took {duration_text(total)}: {list_text(parts, limit=6)}."]
    if _OUTSIDE in phases:
        sentences.append("Outside of rounds it started up, and waited for its clients.")
    if "interrupted" in phases:
        sentences.append("Interrupted is what processes had spent on a round that a later one finished.")
    training = by_client(reports, lambda client: client.seconds.get("training"))
    clients = {name: sum(by_round.values()) / len(by_round) for name, by_round in training.items()}
    if len(clients) > 1:
        slow, fast = max(clients, key=clients.__getitem__), min(clients, key=clients.__getitem__)
        sentences.append(
            f"A round's training took {duration_text(clients[slow])} on average at {slow}, the slowest, and "
            f"{duration_text(clients[fast])} at {fast}, the fastest."
        )
    if client_seconds(reports):
        sentences.append("Clients may train side by side, so their summed time can exceed the wall time.")
    return sentences


def _paint_phases(figure: "Figure", *, phases: Mapping[str, float]) -> None:
    axes = figure.subplots()
    total, most = sum(phases.values()), max(phases.values())
    unit, unit_name = _unit(most)
    names = [_PHASE_WORDS.get(phase, phase) for phase in phases]
    words = [f"{duration_text(seconds)}  ({share_text(seconds / total)})" for seconds in phases.values()]
    paint_bars(axes, names, {Colour.BLUE: [seconds / unit for seconds in phases.values()]}, words, least=3)
    axes.set_xlim(0, 1.45 * most / unit)
    axes.set_xlabel(f"{unit_name}, summed over clients and rounds")


def _unit(most_seconds: float) -> tuple[int, str]:
    """Return the unit in which an axis up to so many seconds reads best: its length in seconds and its name."""
    if most_seconds >= 3 * 3600:
        return 3600, "hours"
    return (60, "minutes") if most_seconds >= 300 else (1, "seconds")
