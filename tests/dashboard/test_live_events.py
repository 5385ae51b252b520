"""Who watches a page hears of each change once, by parts; and so many may watch at a time."""

import http.client
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "server")]

from report_pages import finished, start
from shown_runs import Client, append, shown, write_adapter, write_run

from fedlora.dashboard.live_events import MOST_STREAMS


class Stream:
    """An open stream of events."""

    def __init__(self, answer: http.client.HTTPResponse) -> None:
        self.answer = answer

    def next(self) -> tuple[str, dict[str, str]]:
        """Return the id of the next event, and what it says."""
        state = ""
        while line := self.answer.readline().decode():
            if line.startswith("id: "):
                state = line[4:].strip()
            elif line.startswith("data: "):
                return state, json.loads(line[6:])
        raise AssertionError("the stream is over")


@contextmanager
def watching(client: Client, path: str, **headers: str) -> Iterator[Stream]:
    connection = http.client.HTTPConnection(client.address, timeout=30)
    connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    try:
        yield Stream(answer)
    finally:
        answer.close()
        connection.close()


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {part for part in before if before[part] != after[part]}


def test_a_change_is_told_by_the_parts_that_it_concerns(tmp_path: Path) -> None:
    run = write_run(tmp_path, start())
    with shown(run) as client, watching(client, "/events/") as stream:
        assert stream.answer.headers["content-type"].startswith("text/event-stream")
        _, first = stream.next()
        assert client.get("/parts/?part=rounds").headers["x-part-state"] == first["rounds"]
        append(run, finished(1))
        _, second = stream.next()
        assert changed(first, second) == {"now", "rounds"}
        write_adapter(run / "adapter")
        _, third = stream.next()
        assert changed(second, third) == {"files"}


def test_who_comes_back_hears_only_what_is_new(tmp_path: Path) -> None:
    run = write_run(tmp_path, start())
    with shown(run) as client:
        with watching(client, "/events/") as stream:
            known, first = stream.next()
        with watching(client, "/events/", Last_Event_ID=known) as stream:
            append(run, finished(1))
            state, second = stream.next()
        assert state != known
        assert changed(first, second) == {"now", "rounds"}
        with watching(client, "/events/", Last_Event_ID=known) as stream:
            assert stream.next() == (state, second)


def test_the_list_of_runs_is_followed_too(tmp_path: Path) -> None:
    with shown(tmp_path) as client, watching(client, "/events") as stream:
        _, first = stream.next()
        write_run(tmp_path / "new")
        _, second = stream.next()
        assert first["list"] != second["list"]
        answer = client.get("/parts")
        assert answer.headers["x-part-state"] == second["list"]
        assert b"/runs/new" in answer.body


def test_no_more_than_so_many_watch_and_who_leaves_makes_room(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    with shown(run) as client:
        with ExitStack() as stack:
            for _ in range(MOST_STREAMS):
                stack.enter_context(watching(client, "/events/")).next()
            late = stack.enter_context(watching(client, "/events/"))
            assert late.answer.status == 503
            assert late.answer.headers["retry-after"] == "30"
            assert client.get("/runs/").status == 200
        status = 503
        while status == 503:  # Until the server has seen that they are gone.
            with watching(client, "/events/") as stream:
                status = stream.answer.status
        assert status == 200


def test_open_streams_do_not_hold_up_the_end(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    with ExitStack() as stack:
        with shown(run) as client:
            stream = stack.enter_context(watching(client, "/events/"))
            stream.next()
        assert stream.answer.read().strip() == b""
