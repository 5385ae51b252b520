"""The report of a simulation: that of any run, and examples of what was learned."""

import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from fedlora.common.config import RunConfig
from fedlora.common.messages import SiteDescription
from fedlora.server.disk.store import RunFolder
from fedlora.server.record.round_report import RoundReport
from fedlora.server.report import ShownAnswer, ShownExample
from fedlora.server.run_report import write_report
from fedlora.simulation.holdings import holdings_of
from fedlora.training.data import Examples, FederatedData
from fedlora.training.data.examples import Conversation, Row, Turn

_SHOWN_OF_A_KIND = 8


def write_simulation_report(
    folder: RunFolder,
    config: RunConfig,
    data: FederatedData,
    reports: Sequence[RoundReport],
    *,
    sites: Mapping[str, SiteDescription] | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Write report.html over the rounds so far, with who holds what and some of the held-out examples.

    Args:
        sites: what the clients said of themselves.
        notes: on the run file.
    """
    examples = _gallery(data, before=folder.predictions(0), after=folder.predictions(reports[-1].round))
    last = reports[-1].round
    write_report(
        folder,
        config,
        reports,
        num_clients=len(data.clients),
        examples=examples,
        shown_answers=_answers(data, before=folder.answers(0), after=folder.answers(last) if last else {}),
        holdings=holdings_of(data, config, sites),
        notes=notes,
    )


def _gallery(data: FederatedData, *, before: Mapping[int, int], after: Mapping[int, int]) -> list[ShownExample]:
    """Return some held-out examples that were learned and some that are still wrong, of varied labels and groups.

    Without labels there is no right or wrong, and nothing to show.
    """
    if not data.labels:
        return []
    judged = sorted(before.keys() & after.keys())
    labels = data.test.labels
    learned = [place for place in judged if before[place] != labels[place] == after[place]]
    wrong = [place for place in judged if after[place] != labels[place]]
    chosen = [place for places in (learned, wrong) for place in _varied(data.test, places)]
    return [_shown(data, place, before=before[place], after=after[place]) for place in chosen]


def _answers(data: FederatedData, *, before: Mapping[int, str], after: Mapping[int, str]) -> list[ShownAnswer]:
    """Return some of the held-out prompts with what was answered to them, of varied groups."""
    shown = []
    for place in _varied(data.test, sorted(before.keys() | after.keys())):
        given = data.test.inputs[place]
        if isinstance(given, Conversation):
            group, reference = str(data.test.groups[place]), _said(given.last_answer)
            shown.append(ShownAnswer(group, _text(given), reference, before.get(place), after.get(place)))
    return shown


def _said(turn: Turn) -> str:
    """Return what the assistant says, its calls of tools as JSON."""
    calls = [json.dumps(call["function"], ensure_ascii=False) for call in turn.tool_calls]
    return "\n".join(part for part in (turn.content, *calls) if part)


def _varied(test: Examples, places: Sequence[int]) -> list[int]:
    """Return a few of `places`, in which labels and then groups repeat as late as they can."""
    label_of, group_of = test.labels.tolist(), test.groups.tolist()
    left = list(places)
    chosen: list[int] = []
    labels: Counter[int] = Counter()
    groups: Counter[str] = Counter()
    while left and len(chosen) < _SHOWN_OF_A_KIND:
        place = min(left, key=lambda place: (labels[label_of[place]], groups[group_of[place]], place))
        left.remove(place)
        chosen.append(place)
        labels[label_of[place]] += 1
        groups[group_of[place]] += 1
    return chosen


def _shown(data: FederatedData, place: int, *, before: int, after: int) -> ShownExample:
    given = data.test.inputs[place]
    return ShownExample(
        group=str(data.test.groups[place]),
        label=data.labels[data.test.labels[place]],
        before=data.labels[before],
        after=data.labels[after],
        picture_png=_png(given) if isinstance(given, np.ndarray) else None,
        text=None if isinstance(given, np.ndarray) else _text(given),
    )


def _text(given: str | Conversation | Row) -> str:
    """Return what was given as text: of a conversation the last prompt."""
    if isinstance(given, Conversation):
        prompts = [turn.content for turn in given.turns if turn.role == "user"]
        return prompts[-1] if prompts else ""
    return given if isinstance(given, str) else str(dict(given))


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()
