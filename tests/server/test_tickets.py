"""Tickets: only the bytes that were issued, whole, and only while their update is waited for."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from open_port import OpenPort, open_port

from fedlora.server.identity.tickets import Ticket, TicketOffice

TICKET = Ticket("run", 3, 1, "north", 1000)


@pytest.fixture
def office(tmp_path: Path) -> TicketOffice:
    return TicketOffice(tmp_path / "exchange" / "ticket.key")


def test_a_ticket_comes_back_as_it_was_issued(office: TicketOffice) -> None:
    strange = Ticket("r\n", 0, 0, 'größer "x"', 2**40)
    assert office.read(office.issue(TICKET)) == TICKET
    assert office.read(office.issue(strange)) == strange


def test_a_restarted_server_knows_its_tickets_and_another_server_does_not(office: TicketOffice, tmp_path: Path) -> None:
    raw = office.issue(TICKET)
    assert TicketOffice(tmp_path / "exchange" / "ticket.key").read(raw) == TICKET
    assert TicketOffice(tmp_path / "other.key").read(raw) is None


def test_the_secret_is_for_its_owner_alone_and_a_damaged_one_is_replaced(office: TicketOffice, tmp_path: Path) -> None:
    path = tmp_path / "exchange" / "ticket.key"
    assert path.stat().st_mode & 0o777 == 0o600
    raw, key = office.issue(TICKET), path.read_bytes()
    path.write_bytes(key[:-1])
    newer = TicketOffice(path)
    assert len(path.read_bytes()) == len(key)
    assert newer.read(raw) is None


def test_no_changed_or_cut_ticket_is_read(office: TicketOffice) -> None:
    raw = office.issue(TICKET)
    for place in range(len(raw)):
        changed = bytearray(raw)
        changed[place] ^= 1
        assert office.read(bytes(changed)) is None
        assert office.read(raw[:place]) is None
    assert office.read(raw + b" ") is None
    assert office.read(b"\0" * 32 + raw[32:]) is None


@pytest.mark.parametrize(
    "change", [{"run": "other"}, {"round": 4}, {"attempt": 2}, {"site": "south"}, {"max_bytes": 10**9}], ids=str
)
def test_a_ticket_cannot_be_made_of_the_mac_of_another(office: TicketOffice, change: dict[str, object]) -> None:
    other = office.issue(replace(TICKET, **change))  # type: ignore[arg-type]
    assert office.read(office.issue(TICKET)[:32] + other[32:]) is None


@pytest.fixture
def port(tmp_path: Path) -> Iterator[OpenPort]:
    with open_port(tmp_path) as port:
        yield port


def test_only_the_update_that_is_waited_for_is_expected(port: OpenPort) -> None:
    port.ask_for_update("north", round=3, attempt=1)
    grid = port.grid
    assert grid.expects(TICKET)
    assert grid.offer_for(TICKET) is not None
    for changed in (
        replace(TICKET, run="other"),
        replace(TICKET, round=2),
        replace(TICKET, round=4),
        replace(TICKET, attempt=0),
        replace(TICKET, attempt=2),
        replace(TICKET, site="south"),
        Ticket("", 0, 0, "north", 1000),
    ):
        assert not grid.expects(changed)
        assert grid.offer_for(changed) is None


def test_an_update_whose_round_is_over_is_not_expected(port: OpenPort) -> None:
    port.ask_for_update("north", round=3, attempt=1)
    assert port.grid.expects(TICKET)
    port.grid.withdraw(port.asked)
    assert not port.grid.expects(TICKET)
