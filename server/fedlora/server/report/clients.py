"""The report's section by group and by client: scores before and after, local training by round, what was used."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from fedlora.server.record.round_report import ClientReport, RoundReport
from fedlora.server.record.totals import is_of_tokens, trained
from fedlora.server.report.content import Chart, Columns, Section, Table, table
from fedlora.server.report.drawing import Colour, score_axis
from fedlora.server.report.gains import about_gains, gains_chart, gains_table
from fedlora.server.report.local_training import LocalTraining, local_trainings, mean_local_trainings, tokens_by_client
from fedlora.server.report.numbers import (
    Gain,
    by_client,
    by_measure,
    client_gains,
    group_gains,
    loss_of,
    mean_gain,
    metric_of,
    perplexity,
    perplexity_text,
    total_gains,
)
from fedlora.server.report.series_chart import Panel, Series, series_chart
from fedlora.server.report.wording import (
    PERPLEXITY,
    UNKNOWN,
    is_percentage,
    list_text,
    loss_text,
    ranges_text,
    score_text,
)

# More clients are drawn by their mean.
_MOST_CLIENTS_DRAWN = 12
_MOST_ROWS = 500
_NARROW = 300
_RINGS_AND_DOTS = (
    "From a ring to its dot is what the client's local training changes; from a dot to the next ring, what averaging "
    "with the others does to it."
)


@dataclass(frozen=True)
class _Part:
    """A client's part in a round."""

    client: str
    round: int
    report: ClientReport


def _columns(metric_name: str) -> Columns[_Part]:
    """Return what is shown of a client's part in a round: a line for each number, left out where nobody has it."""

    def metric(part: _Part, *, is_after: bool) -> str:
        score = part.report.after if is_after else part.report.before
        return score_text(score.metric if score else None, metric_name)

    return (
        ("client", lambda part: part.client),
        ("round", lambda part: str(part.round)),
        ("steps", lambda part: f"{part.report.num_steps:,}"),
        ("training loss", lambda part: loss_text(part.report.loss)),
        (f"{metric_name} before", partial(metric, is_after=False)),
        ("after", partial(metric, is_after=True)),
        (f"{PERPLEXITY} before", lambda part: perplexity_text(part.report.before)),
        ("after", lambda part: perplexity_text(part.report.after)),
        ("answer tokens", lambda part: f"{part.report.num_tokens:,}" if part.report.num_tokens else UNKNOWN),
    )


def groups_and_clients(reports: Sequence[RoundReport], metric_name: str) -> Section | None:
    """Return the held-out score by group and the clients' own validation, and what local training did to it."""
    groups = by_measure(reports, metric_name, partial(group_gains, reports))
    clients = by_measure(reports, metric_name, partial(client_gains, reports))
    held_out = Section()
    if len(groups[metric_name]) > 1:
        totals = by_measure(reports, metric_name, partial(total_gains, reports))
        held_out = _before_and_after("Held-out {} by group", groups, totals, noun="group")
    parts = []
    if len(clients[metric_name]) > 1:
        totals = by_measure(reports, metric_name, lambda of: [mean_gain(client_gains(reports, of), noun="client")])
        own = _before_and_after("Own validation {} by client", clients, totals, noun="client")
        meaning = "Before its first local training and after its last one: the client's own adapter, before averaging."
        about = [[meaning, about_gains(clients[metric_name], metric_name)]]
        parts.append(replace(own, title="Each client on its own validation examples", paragraphs=about))
    parts += [part for part in (_by_round(reports, metric_name), _in_use(reports)) if part]
    if not parts and not held_out.charts:
        return None
    return replace(held_out, title="By group and client" if held_out.charts else "By client", parts=parts)


def _before_and_after(
    title: str, gains: Mapping[str, Sequence[Gain]], totals: Mapping[str, Sequence[Gain]], *, noun: str
) -> Section:
    """Return gains as a chart for each measure and a table; the title has a place for the measure's name."""
    main = next(iter(gains))
    names = " and ".join(gains)
    return Section(
        paragraphs=[[about_gains(gains[main], main)]],
        charts=[gains_chart(title.format(name), each, name, noun=noun) for name, each in gains.items()],
        table=gains_table(f"{title.format(names)}, in numbers", gains, totals, noun=noun),
    )


def _by_round(reports: Sequence[RoundReport], metric_name: str) -> Section | None:
    """Return what local training did to each client's own validation in each round, charts and a table."""
    of_tokens = is_of_tokens(reports)
    found = local_trainings(reports, loss_of if of_tokens else metric_of)
    if max((len(trainings) for trainings in found.values()), default=0) < 2:
        return None
    drawn, width = found, _NARROW
    if len(found) == 1 or len(found) > _MOST_CLIENTS_DRAWN:
        name = f"Mean of {len(found)} clients" if len(found) > 1 else next(iter(found))
        drawn, width = {name: mean_local_trainings(found)}, 2 * _NARROW
    shown_name = metric_name
    if of_tokens:
        shown_name = PERPLEXITY
        drawn = {name: [_in_perplexity(each) for each in trainings] for name, trainings in drawn.items()}
    limits = [value for trainings in drawn.values() for each in trainings for value in (each.before, each.after)]
    rounds = trained(reports)
    shown = rounds
    while len(shown) > 1 and sum(len(report.clients) for report in shown) > _MOST_ROWS:
        shown = shown[1:]
    parts = [_Part(name, at.round, client) for at in shown for name, client in sorted(at.clients.items())]
    caption = "Local training" if len(shown) == len(rounds) else f"Local training, the last {len(shown)} rounds"
    return Section(
        f"Local training by round: {shown_name} on the client's own validation examples",
        [[_RINGS_AND_DOTS]],
        [_training_chart(name, each, shown_name, limits=limits, width=width) for name, each in drawn.items()],
        layout="many",
        has_one_legend=True,
        table=table(caption, _columns(metric_name), parts),
        summary="Every client and round in numbers",
    )


def _in_perplexity(training: LocalTraining) -> LocalTraining:
    return replace(training, before=perplexity(training.before), after=perplexity(training.after))


def _training_chart(
    name: str, trainings: Sequence[LocalTraining], metric_name: str, *, limits: Sequence[float], width: int
) -> Chart:
    last = trainings[-1]
    before = Series(
        "the averaged adapter, before local training",
        {training.round: training.before for training in trainings},
        Colour.GREY,
        width=1.6,
        dot=4.8,
        rings=[training.round for training in trainings],
    )
    after = Series(
        "the client's own adapter, after it",
        {training.round: training.after for training in trainings},
        Colour.BLUE,
        width=0,
        dot=4.8,
    )
    axis = partial(score_axis, metric_name=metric_name)
    return series_chart(
        name,
        Panel((before, after), axis, limits=limits, stems=Colour.BLUE, is_percentage=is_percentage(metric_name)),
        description=f"{name}: {metric_name} before and after local training in {len(trainings)} rounds; in round "
        f"{last.round} from {score_text(last.before, metric_name)} to {score_text(last.after, metric_name)}.",
        height=190,
        width=width,
    )


def _in_use(reports: Sequence[RoundReport]) -> Section | None:
    """Return where memory was short, and the answer tokens that each client has trained on, also by the second."""
    memory, tokens = _about_memory(reports), tokens_by_client(reports)
    if not tokens:
        return Section(paragraphs=[[memory]]) if memory else None
    seconds = {
        name: sum(by_round.values())
        for name, by_round in by_client(reports, lambda client: client.seconds.get("training")).items()
    }
    total = sum(tokens.values())
    rows = [
        [
            name,
            f"{count:,}",
            f"{100 * count / total:.1f} %",
            f"{count / seconds[name]:,.0f}" if seconds.get(name, 0.0) > 0 else UNKNOWN,
        ]
        for name, count in tokens.items()
    ]
    head = ("client", "answer tokens", "share", "per second of training")
    totals = [["all clients", f"{total:,}", "100.0 %", ""]]
    caption = "Answer tokens trained on, by client"
    return Section(paragraphs=[[memory]], table=Table(caption, head, rows, totals, is_narrow=True))


def _about_memory(reports: Sequence[RoundReport]) -> str:
    """Return where want of memory made forward passes narrower than asked for; nothing where it did not."""
    narrowed = by_client(reports, lambda client: client.micro_batch_size or None)
    if not narrowed:
        return ""
    cases = []
    for name, sizes in narrowed.items():
        taken = list_text(map(str, sorted(set(sizes.values()))))
        cases.append(f"{name} in round{'s' if len(sizes) > 1 else ''} {ranges_text(sizes)} ({taken} a forward pass)")
    return (
        f"Memory did not suffice for as many examples a forward pass as asked for, and fewer were taken: "
        f"{list_text(cases)}. Their gradients add up to the same step, but not to the last bit: another run of this "
        "run file may differ in its last digits."
    )
