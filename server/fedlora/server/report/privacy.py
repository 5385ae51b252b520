"""The report's section on a privacy budget: what is spent by round, and what of this page it says nothing of."""

from collections.abc import Sequence

from fedlora.server.record.round_report import RoundReport
from fedlora.server.record.totals import trained
from fedlora.server.report.content import Columns, Section, table
from fedlora.server.report.wording import list_text

_NOT_COVERED = (
    "It is of the global adapters alone. What else stands in this report is not noised, and epsilon says nothing of "
    "it: scores and losses, which round was the best, who took part, who was refused, and how many terms were clipped. "
    "Who is to know of a client no more than epsilon allows gets the adapters, and not this page."
)


def privacy(reports: Sequence[RoundReport]) -> Section | None:
    """Return what the run's adapters tell of one client; nothing where no noise was added."""
    rounds = [report for report in trained(reports) if report.epsilon is not None]
    if not rounds:
        return None
    columns: Columns[RoundReport] = (
        ("round", lambda at: str(at.round)),
        ("epsilon so far", lambda at: f"{at.epsilon:.3f}"),
        ("terms clipped", lambda at: list_text([f"{count} of {len(at.clients)}" for count in at.num_clipped])),
    )
    last = rounds[-1]
    about = (
        f"All global adapters up to round {last.round} together have an epsilon of {last.epsilon:.2f} for each client, "
        "at privacy.delta of the run file: whether anything that one client has sent counts in them cannot be told "
        "with more certainty than that."
    )
    numbers = table("By round", columns, rounds, num_text_columns=1)
    return Section("Privacy", [[about], [_NOT_COVERED]], table=numbers)
