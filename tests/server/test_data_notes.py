"""What the clients' data are not used for, in lines: one for each client and part, of many for the most affected."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from report_pages import render, start

from fedlora.common.errors import RunError
from fedlora.common.fates import checked, fate_line
from fedlora.common.messages import SiteDescription
from fedlora.server.report import Holding, Holdings
from fedlora.server.report.data_notes import data_notes, left_out_parts
from fedlora.server.rounds.federation import _require_test

PLAIN = SiteDescription("a", 10, 2, 4, "token accuracy", (), "base", "sha256:0", "d", "0.1.0", 2)


def site(name: str, *, own: bool = False, held_out: int = 4, **fates: Mapping[str, int]) -> SiteDescription:
    return replace(PLAIN, client=name, fates=fates, has_own_held_out=own, num_held_out=held_out)


@pytest.mark.parametrize(
    ("fates", "num_used", "line"),
    [
        ({}, 5, ""),
        ({"too_long": 3}, 7, "3 of 10 test examples are left out (longer than task.max_length)"),
        ({"too_long": 1}, 0, "all 1 test example is left out (longer than task.max_length)"),
        ({"cut": 2}, 5, "2 of 5 test examples are cut at task.max_length"),
        (
            {"no_answer": 1, "too_long": 2, "cut": 1},
            5,
            "3 of 8 test examples are left out (1 nothing to learn in them, 2 longer than task.max_length), "
            "1 is cut at task.max_length",
        ),
        ({"missing_label": 2}, 1, "2 of 3 test examples are left out (missing label)"),
    ],
)
def test_a_part_is_told_in_a_line(fates: dict[str, int], num_used: int, line: str) -> None:
    assert fate_line("test", fates, num_used=num_used) == line


def test_what_a_task_leaves_out_without_a_reason_is_counted_too() -> None:
    assert checked({}, num_left_out=3) == {"unusable": 3}
    assert checked({"too_long": 2, "cut": 5, "Bad Code": 1}, num_left_out=3) == {"too_long": 2, "cut": 5, "unusable": 1}


def test_a_test_set_that_all_share_has_one_line_and_own_ones_have_theirs() -> None:
    shared = {name: site(name, test={"cut": 1}, validation={"too_long": 2}) for name in "ab"}
    validation = "all 4 validation examples are left out"
    assert data_notes(shared)[0] == "test set: 1 of 4 test examples is cut at task.max_length"
    assert [line[:9] for line in data_notes(shared)] == ["test set:", "a: 2 of 4", "b: 2 of 4"]
    own = {"a": site("a", own=True, held_out=0, test={"too_long": 3}), "b": site("b", own=True)}
    assert data_notes(own) == ("a: all 3 test examples are left out (longer than task.max_length)",)
    assert validation not in data_notes(own)
    assert [(part.holder, part.part) for part in left_out_parts(shared)] == [
        ("all", "test"), ("a", "validation"), ("b", "validation")
    ]  # fmt: skip


def test_of_many_clients_the_most_affected_are_named_and_the_others_added_up() -> None:
    sites = {f"c{number:02}": site(f"c{number:02}", training={"too_long": number}) for number in range(1, 21)}
    lines = data_notes(sites)
    assert len(lines) == 13
    assert lines[0].startswith("c09: 9 of 19 training examples")
    assert lines[-1] == ("8 more clients: 36 of 116 training examples are left out (longer than task.max_length)")


def test_notes_on_the_data_are_told_once() -> None:
    noted = replace(PLAIN, notes=("the column 'x' is left aside, in 3 rows",))
    assert data_notes({"a": noted, "b": noted}) == noted.notes


def test_sites_whose_test_sets_are_all_emptied_do_not_begin() -> None:
    emptied = site("a", own=True, held_out=0, test={"too_long": 3})
    with pytest.raises(RunError, match=r"all 6 test examples of the sites \(a, b\) are left out; raise"):
        _require_test([emptied, replace(emptied, client="b")])
    _require_test([emptied, site("b", own=True)])
    _require_test([site("a", own=True, held_out=0)])


def test_the_report_shows_what_is_left_out_by_client() -> None:
    sites = {"<a>": site("<a>", training={"too_long": 2, "cut": 1}), "b": site("b")}
    clients = [Holding(name, 12, 2) for name in sites]
    page = render(start(), holdings=Holdings(clients, left_out=left_out_parts(sites), unread=("the column '<x>' ...",)))
    assert "2 examples of 12 in these sets are left out. 1 example is cut." in page
    assert "&lt;a&gt;</td>" in page
    assert "&lt;x&gt;" in page
    assert "Left out and cut" not in render(start(), holdings=Holdings(clients))
