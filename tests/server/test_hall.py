"""What a site meets at a server with many runs, between them and at their ends."""

import math
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest

sys.path.append(str(Path(__file__).parent))

from open_port import (
    ADAPTER,
    DAY,
    Conversation,
    OpenPort,
    blob_of,
    enrolled,
    exchange_of,
    named,
    open_port,
    packed,
    refusal,
    wait_until,
)

from fedlora.common.channels import open_channel
from fedlora.common.wire import PROTOCOL
from fedlora.server.identity.authority import Authority
from fedlora.server.identity.site_records import ANY_RUN
from fedlora.server.sites.grpc.hall import Hall
from fedlora.v1 import exchange_pb2, session_pb2

DENIED = grpc.StatusCode.PERMISSION_DENIED


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.open(tmp_path / "identity", datetime.now(UTC))


@pytest.fixture
def port(authority: Authority, tmp_path: Path) -> Iterator[OpenPort]:
    with open_port(tmp_path, authority, has_hall=True) as port:
        yield port


def hall_of(port: OpenPort) -> Hall:
    assert port.hall is not None
    return port.hall


def test_a_site_that_comes_between_runs_waits_and_is_welcomed_over_the_same_connection(
    port: OpenPort, authority: Authority
) -> None:
    hall_of(port).present = None
    credentials = enrolled(authority, "north", ANY_RUN)
    with open_channel(port.address, credentials) as channel, Conversation(channel) as conversation:
        conversation.hear("no_run")
        assert port.grid.counts() == (0, 0)
        hall_of(port).present = port.present
        assert 'name = "digits"' in conversation.hear("welcome").welcome.run_toml


def test_of_two_connections_of_a_site_that_wait_the_newer_gets_the_run(port: OpenPort, authority: Authority) -> None:
    hall_of(port).present = None
    credentials = enrolled(authority, "north", ANY_RUN)
    with open_channel(port.address, credentials) as channel, Conversation(channel) as stale:
        stale.hear("no_run")
        with open_channel(port.address, credentials) as other, Conversation(other) as live:
            live.hear("no_run")
            assert stale.hear_end() == (grpc.StatusCode.ABORTED, "replaced")
            hall_of(port).present = port.present
            live.hear("welcome")
            assert port.grid.counts() == (0, 1)


def test_a_site_of_another_run_waits_while_this_one_goes_on(port: OpenPort, authority: Authority) -> None:
    credentials = enrolled(authority, "elsewhere", "another run")
    with open_channel(port.address, credentials) as channel, Conversation(channel) as conversation:
        conversation.hear("no_run")
        # Invited to this run as well, it need not come back for it.
        authority.invite("elsewhere", ["digits"], DAY, datetime.now(UTC))
        conversation.hear("welcome")


def test_of_a_site_that_is_not_invited_to_the_run_at_work_the_log_says_once_how_to_let_it_in(
    port: OpenPort, authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    credentials = enrolled(authority, "the north", "another run", "a third")
    with open_channel(port.address, credentials) as channel:
        for _ in range(2):
            with Conversation(channel) as conversation:
                conversation.hear("no_run")
        # Who comes between runs is told of as soon as there is one.
        late = enrolled(authority, "south", "another run")
        here, hall_of(port).present = hall_of(port).present, None
        with open_channel(port.address, late) as other, Conversation(other) as conversation:
            conversation.hear("no_run")
            hall_of(port).present = here
            wait_until(lambda: "south is there" in caplog.text)
            authority.invite("south", ["digits"], DAY, datetime.now(UTC))
            conversation.hear("welcome")
    said = [record.getMessage() for record in caplog.records if "is there and waits" in record.getMessage()]
    assert said == [
        f"{site} is there and waits: it is invited to {runs}, and not to digits, which is at work; fedlora sites "
        f"invite {typed} --out {tmp_path} --run digits lets it in, at once and without the token"
        for site, typed, runs in (
            ("the north", "'the north'", "another run, a third"),
            ("south", "south", "another run"),
        )
    ]


@pytest.mark.parametrize("has_run", [False, True])
def test_a_site_of_another_protocol_need_not_wait_to_hear_of_it(
    port: OpenPort, authority: Authority, has_run: bool
) -> None:
    if not has_run:
        hall_of(port).present = None
    credentials = enrolled(authority, "north")
    with (
        open_channel(port.address, credentials) as channel,
        Conversation(channel, protocol=PROTOCOL - 1) as conversation,
    ):
        status, words = conversation.hear_end()
    assert status is grpc.StatusCode.FAILED_PRECONDITION
    assert f"protocol {PROTOCOL}, the site fedlora 0.1 with protocol {PROTOCOL - 1}" in words


def test_a_site_that_is_revoked_while_it_waits_waits_no_more(
    port: OpenPort, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedlora.server.sites.grpc.hall._STANDING_SECONDS", 0.0)
    hall_of(port).present = None
    credentials = enrolled(authority, "leaving", ANY_RUN)
    with open_channel(port.address, credentials) as channel, Conversation(channel) as conversation:
        conversation.hear("no_run")
        authority.revoke("leaving")
        assert conversation.hear_end() == (DENIED, "revoked")


def test_a_site_that_is_revoked_while_it_is_away_is_waited_for_no_more_and_said(
    port: OpenPort, authority: Authority
) -> None:
    for name, code in (("leaving", "revoked"), ("staying", "")):
        with open_channel(port.address, enrolled(authority, name)) as channel, Conversation(channel) as conversation:
            conversation.hear("welcome")
        wait_until(lambda: "away" in port.states.values())
        if code:
            authority.revoke(name)
        port.grid.look()
        assert (port.states.pop(name), port.details[name]) == ("away", code)
    away = port.grid.seconds_away()
    assert (away["leaving"], away["staying"] < math.inf) == (math.inf, True)


def test_nothing_is_exchanged_between_runs(port: OpenPort, authority: Authority) -> None:
    content = packed(ADAPTER)
    credentials = enrolled(authority, "north", ANY_RUN)
    with open_channel(port.address, credentials) as channel, Conversation(channel) as conversation:
        conversation.hear("welcome")
        ticket = port.ask_for_update("north")
        hall_of(port).present = None
        with exchange_of(port.address, credentials) as exchange:
            query = exchange_pb2.QueryWriteStatusRequest(ticket=ticket, blob=blob_of(content))
            assert refusal(lambda: exchange.QueryWriteStatus(query))[1] == "not_expected"
            write = exchange_pb2.WriteRequest(ticket=ticket, blob=blob_of(content), data=content)
            assert refusal(lambda: exchange.Write(iter([write])))[1] == "not_expected"
            assert refusal(lambda: list(exchange.Read(exchange_pb2.ReadRequest())))[1] == "not_expected"
        authority.revoke("north")
        with exchange_of(port.address, credentials) as exchange:
            assert refusal(lambda: exchange.QueryWriteStatus(query)) == (DENIED, "revoked")


def test_who_comes_as_a_run_ends_is_sent_on_as_those_who_are_there(port: OpenPort, authority: Authority) -> None:
    def ends(conversation: Conversation) -> session_pb2.Drain:
        heard = [conversation.hear_any() for _ in range(2)]
        assert [each.WhichOneof("content") for each in heard] in (["welcome", "drain"], ["drain", "welcome"])
        return next(each.drain for each in heard if each.HasField("drain"))

    there, late = enrolled(authority, "there"), enrolled(authority, "late")
    with open_channel(port.address, there) as channel, Conversation(channel) as conversation:
        wait_until(lambda: port.grid.counts()[1] == 1)
        port.grid.stop(is_finished=True, more_to_come=True)
        expected = session_pb2.Drain(is_finished=True, more_to_come=True)
        assert ends(conversation) == expected
    with open_channel(port.address, late) as channel, Conversation(channel) as conversation:
        assert ends(conversation) == expected


def test_without_certificates_sites_wait_as_well(tmp_path: Path) -> None:
    with open_port(tmp_path, has_hall=True) as port, open_channel(port.address, None) as channel:
        hall_of(port).present = None
        with Conversation(channel, named("north")) as conversation:
            conversation.hear("no_run")
            hall_of(port).present = port.present
            conversation.hear("welcome")
