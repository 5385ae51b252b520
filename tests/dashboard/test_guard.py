"""Who may ask the dashboard for what, and what it never gives."""

import os
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import pytest

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "server")]

from shown_runs import Client, shown, write_adapter, write_run

from fedlora.common.errors import ConfigError
from fedlora.dashboard.guard import own_names
from fedlora.dashboard.serving import Dashboard

SECRET = "nobody should see this"
PAGES = ("/runs/a", "/parts/a?part=now", "/events/a", "/audit/a", "/adapters/a?name=newest", "/static/page.css", "/")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a run, beside which lies what is not to be shown."""
    (tmp_path / "secret").write_text(SECRET)
    write_run(tmp_path / "other" / "run")
    write_adapter(tmp_path / "other" / "run" / "adapter", SECRET.encode())
    run = write_run(tmp_path / "shown" / "a")
    write_adapter(run / "adapter")
    return tmp_path / "shown"


def test_only_reading_is_allowed(folder: Path) -> None:
    with shown(folder) as client:
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"):
            for path in ("/", "/runs/a", "/adapters/a?name=newest"):
                answer = client.get(path, method=method, Content_Length="0")
                assert answer.status == 405
                assert answer.headers["allow"] == "GET, HEAD"


def test_a_name_that_is_not_this_machines_is_refused(folder: Path) -> None:
    """A page that lets its own name point here after it was loaded reads nothing."""
    suffixed = ("127.0.0.1.evil.example", "localhost.evil.example", "127.0.0.1/x")
    with shown(folder) as client:
        for host in ("evil.example", "evil.example:8471", "", "a b", *suffixed):
            for path in PAGES:
                answer = client.get(path, Host=host)
                assert answer.status in (400, 421), (host, path)
                assert b"clinics" not in answer.body


def test_addresses_and_this_machines_names_are_taken(folder: Path) -> None:
    with shown(folder) as client:
        for host in ("127.0.0.1", "localhost:1", "LOCALHOST.", "[::1]:8471", "192.0.2.7", socket.gethostname()):
            assert client.get("/runs/a", Host=host).status == 200, host
    assert "runs.example.org" in own_names("runs.example.org:80")


def test_a_page_from_elsewhere_loads_nothing_and_links_here(folder: Path) -> None:
    with shown(folder) as client:
        for path in PAGES:
            assert client.get(path, Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors").status == 403
        assert client.get("/runs/a", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate").status == 200
        assert client.get("/runs/a", Sec_Fetch_Site="same-origin", Sec_Fetch_Mode="cors").status == 200


def test_every_answer_forbids_what_a_page_does_not_need(folder: Path) -> None:
    with shown(folder) as client:
        for path in ("/", "/runs/a", "/nothing", "/adapters/a?name=newest", "/static/dashboard.js"):
            headers = client.get(path).headers
            policy = headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "script-src 'self';" in policy
            assert "unsafe" not in policy
            assert "frame-ancestors 'none'" in policy
            assert headers["x-content-type-options"] == "nosniff"
            assert "access-control-allow-origin" not in headers
        page = client.get("/runs/a").text
    assert "<script>" not in page
    assert " onclick" not in page
    assert " style=" not in page


WAYS_OUT = ("../other/run", "..", "a/../../other/run", "/other/run", "a/", ".", "./a", "a\0", "%2e%2e/other/run")


@pytest.mark.parametrize("kind", ["runs", "parts", "events", "audit", "adapters", "reports", "static"])
def test_nothing_outside_of_the_folder_is_reached(folder: Path, kind: str) -> None:
    with shown(folder) as client:
        for way in WAYS_OUT:
            for said in (quote(way), quote(way, safe=""), quote(quote(way, safe=""), safe="")):
                for query in ("?part=now", "?name=newest"):
                    answer = client.get(f"/{kind}/{said}{query}")
                    assert answer.status == 404, said
                    assert SECRET not in answer.text
            for path in (f"/{kind}/../{kind}/{quote(way, safe='')}", "/static/..%2f..%2fapp.py", "//etc/passwd"):
                assert client.get(path).status == 404


def test_no_adapters_name_leads_elsewhere(folder: Path) -> None:
    with shown(folder) as client:
        for name in ("../../../secret", "..%2F..%2Fother%2Frun%2Fadapter", "newest/../../..", "", "%00"):
            assert client.get(f"/adapters/a?name={name}").status == 404


def test_links_are_not_followed(folder: Path) -> None:
    run, other = folder / "a", folder.parent / "other" / "run"
    (folder / "linked").symlink_to(other)
    for name in ("adapter", "published", "quarantine"):
        if (run / name).exists():
            for file in (run / name).iterdir():
                file.unlink()
            (run / name).rmdir()
        (run / name).symlink_to(other / "adapter")
    for name in ("report.html", "audit.jsonl", "status.json", "sites.json"):
        (run / name).symlink_to(folder.parent / "secret")
    with shown(folder) as client:
        assert client.get("/runs/linked").status == 404
        page = client.get("/runs/a").text
        assert "newest" not in page
        assert SECRET not in page
        for path in ("/reports/a", "/audit/a", "/adapters/a?name=newest"):
            answer = client.get(path)
            assert SECRET not in answer.text, path
            assert answer.status == 404 or path == "/audit/a"


def test_a_pipe_in_the_place_of_a_file_is_waited_for_by_nobody(folder: Path) -> None:
    run = folder / "a"
    for name in ("run.toml", "rounds.jsonl", "manifest.json"):
        (run / name).unlink()
    for name in ("run.toml", "rounds.jsonl", "manifest.json", "status.json", "report.html", ".lock", "audit.jsonl"):
        os.mkfifo(run / name)
    with shown(folder) as client:
        assert client.get("/").status == 200
        assert client.get("/runs/a").status == 404


def test_an_address_that_is_too_long_is_refused(folder: Path) -> None:
    with shown(folder) as client:
        assert client.get(f"/runs/{'a' * 5000}").status == 414
        assert client.get(f"/parts/a?part={'a' * 5000}").status == 414


def test_a_head_has_the_headers_alone(folder: Path) -> None:
    with shown(folder) as client:
        for path in ("/", "/runs/a", "/events/a", "/adapters/a?name=newest", "/static/page.css"):
            answer = client.get(path, method="HEAD")
            assert (answer.status, answer.body) == (200, b""), path


def test_a_port_that_is_taken_is_said_in_a_line(tmp_path: Path) -> None:
    with shown(tmp_path) as client, pytest.raises(ConfigError, match=r"is taken by another program; choose another"):
        Dashboard(tmp_path, client.address)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("8471", "it has no port"),
        ("127.0.0.1:x", "the port is no number"),
        ("http://127.0.0.1:1", "leave out http"),
        ("192.0.2.1:0", r"192\.0\.2\.1:0 cannot be had"),
    ],
)
def test_an_address_that_cannot_be_is_said_in_a_line(tmp_path: Path, address: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Dashboard(tmp_path, address)


def test_any_address_but_loopback_is_said_with_what_it_means(tmp_path: Path) -> None:
    for address, is_open in (("127.0.0.1:0", False), ("localhost:0", False), ("0.0.0.0:0", True)):
        dashboard = Dashboard(tmp_path, address)
        dashboard.close()
        assert any("no sign-in" in note for note in dashboard.notes) == is_open
        assert dashboard.url.startswith("http://127.0.0.1:" if is_open else f"http://{address[:-2]}")


def test_no_more_connections_are_taken_than_so_many(folder: Path) -> None:
    with shown(folder) as client:
        host, _, port = client.address.partition(":")
        held = [socket.create_connection((host, int(port))) for _ in range(140)]
        try:
            refused = Client(client.address).get("/runs/a")
            assert refused.status == 503
        finally:
            for each in held:
                each.close()


def test_connections_on_which_nothing_is_asked_for_end_and_the_page_answers_again(folder: Path) -> None:
    """Some send nothing, one a head that never ends, and one a body for what has been answered."""
    with shown(folder) as client:
        host, _, port = client.address.partition(":")
        held = [socket.create_connection((host, int(port)), timeout=60) for _ in range(140)]
        slow, chatty = held[:2]
        slow.sendall(b"GET / HTTP/1.1\r\n")
        chatty.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n")
        try:
            deadline = time.monotonic() + 60
            while client.get("/runs/a").status == 503 and time.monotonic() < deadline:
                for each in (slow, chatty):
                    # Who is cut off here learns so from its next word.
                    with suppress(OSError):
                        each.sendall(b"x")
                time.sleep(0.2)
            assert client.get("/runs/a").status == 200
            for each in held[2:]:
                assert each.recv(1) == b""
            for each in (slow, chatty):
                assert is_ended(each)
        finally:
            for each in held:
                each.close()


def is_ended(connection: socket.socket) -> bool:
    """Return whether the other side ends a connection within a minute, whatever it has sent before."""
    try:
        while connection.recv(1 << 16):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


def test_a_connection_whose_answer_nobody_reads_ends(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedlora.dashboard.prompt_connections._ANSWER_SECONDS", 0.5)
    write_adapter(folder / "a" / "adapter", bytes(64 << 20))
    tensors = (folder / "a" / "adapter" / "adapter_model.safetensors").resolve()
    with shown(folder) as client:
        host, _, port = client.address.partition(":")
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(b"GET /adapters/a?name=newest HTTP/1.1\r\nHost: localhost\r\n\r\n")
            head = connection.recv(100)
            deadline = time.monotonic() + 60
            while is_open_here(tensors) and time.monotonic() < deadline:
                time.sleep(0.1)
            assert head.startswith(b"HTTP/1.1 200")
            assert not is_open_here(tensors)
            assert is_ended(connection)


def is_open_here(path: Path) -> bool:
    """Return whether this process, in which the dashboard is too, has a file open."""
    return any(os.path.realpath(each) == str(path) for each in Path("/proc/self/fd").iterdir())
