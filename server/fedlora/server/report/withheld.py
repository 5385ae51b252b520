"""The report's section on adapters that are not published."""

from collections.abc import Mapping

from fedlora.server.report.content import Columns, Section, table


def not_published(by_round: Mapping[int, str]) -> Section | None:
    """Return by round why its adapter is not published; nothing where all are that could be."""
    if not by_round:
        return None
    columns: Columns[tuple[int, str]] = (("round", lambda each: str(each[0])), ("why", lambda each: each[1]))
    about = "Who follows the run has not been given these adapters. The run went on from them all the same."
    return Section(
        "Not published",
        [[about]],
        table=table("By round", columns, sorted(by_round.items()), num_text_columns=2),
    )
