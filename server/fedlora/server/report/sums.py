"""The report's section on secure sums: who was in them, and how exact they are."""

from collections.abc import Sequence

from fedlora.server.record.round_report import RoundReport
from fedlora.server.report.content import Columns, Section, table

_ABOUT = (
    "The server has seen sums over the clients alone, and no single client's update: it could not compare updates, nor "
    "measure the error of the average. Scores, losses and numbers of examples are each client's own, and seen."
)


def secure_sums(reports: Sequence[RoundReport]) -> Section | None:
    """Return what is known of the sums of each round; nothing where updates were sent themselves."""
    found = [report for report in reports if report.sums]
    if not found:
        return None
    columns: Columns[RoundReport] = (
        ("round", lambda report: str(report.round)),
        ("sums", lambda report: "; ".join(report.sums)),
    )
    return Section("Secure sums", [[_ABOUT]], table=table("By round", columns, found, num_text_columns=2))
