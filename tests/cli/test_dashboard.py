"""`fedlora dashboard`, and the page beside a server: what the commands say, and how they end."""

import http.client
import signal
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from deployment import Deployment, free_port
from warm_start import start_warm

from fedlora.common.run_file import parse_run, to_toml


@contextmanager
def taken_port() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as held:
        yield f"127.0.0.1:{held.getsockname()[1]}"


def test_what_cannot_be_is_said_in_a_line(tmp_path: Path, fedlora: Callable[..., object]) -> None:
    def error_of(*arguments: str | Path) -> str:
        done = fedlora("dashboard", *arguments)
        assert (done.code, done.out) == (1, "")  # type: ignore[attr-defined]
        (line,) = done.err.splitlines()  # type: ignore[attr-defined]
        return str(line)

    assert error_of(tmp_path / "nothing").startswith(f"error: {tmp_path}/nothing: no such folder; expected a run's")
    with taken_port() as address:
        said = error_of(tmp_path, "--address", address)
    assert said == f"error: {address} is taken by another program; choose another port"


def test_a_server_whose_page_cannot_have_its_port_does_not_begin(
    tmp_path: Path, fedlora: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRPC_VERBOSITY", "NONE")
    run = tmp_path / "run.toml"
    run.write_text(to_toml(parse_run({"run": {"name": "tiny"}, "data": {"labels": ["0", "1"]}})))
    with taken_port() as address:
        done = fedlora("server", "start", run, "--out", tmp_path / "out", "--dashboard", address)
    said = f"error: {address} is taken by another program; choose another port\n"
    assert (done.code, done.err) == (1, said)  # type: ignore[attr-defined]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_command_says_where_the_page_is_and_ends_in_good_order(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    address = f"127.0.0.1:{free_port()}"
    log = tmp_path / "log"
    with open(log, "wb") as file:
        arguments = ["-m", "fedlora.cli", "dashboard", str(tmp_path), "--address", address]
        process = start_warm(arguments, cwd=tmp_path, output=file.fileno())
    try:
        assert answered(address) == 200
        process.send_signal(number)
        assert process.wait(30) == status
    finally:
        process.kill()
    assert log.read_text().splitlines() == [f"the runs in {tmp_path} are at http://{address}/", "Ctrl-C ends it."]


def test_a_server_shows_its_own_run_and_ends_with_its_page_open(tmp_path: Path) -> None:
    run = tmp_path / "run.toml"
    run.write_text(to_toml(parse_run({"run": {"name": "tiny"}, "data": {"labels": ["0", "1"]}})))
    address = f"127.0.0.1:{free_port()}"
    with Deployment(tmp_path, run, is_insecure=True) as deployment:
        deployment.server.arguments = [*deployment.server.arguments, "--dashboard", address]
        deployment.server.start()
        deployment.server.wait_for(f"the run as a page: http://{address}/")
        deployment.server.wait_for("waiting: 0 of 2 sites are ready")
        while answered(address, "/runs/") != 200:  # It looks once a second whether there is a run by now.
            time.sleep(0.05)
        with closing(http.client.HTTPConnection(address, timeout=30)) as watching:
            watching.request("GET", "/events/")
            events = watching.getresponse()
            page = ""
            while "Waiting: 0 of 2 sites are ready." not in page:  # As soon as the server has said so in its folder.
                assert events.readline()
                with urllib.request.urlopen(f"http://{address}/runs/") as answer:
                    page = answer.read().decode()
            assert "waiting: before its first round" in page
            assert deployment.command("server", "stop", "--out", str(deployment.out)).returncode == 0
            assert deployment.server.wait(30) == 0
            events.close()


def answered(address: str, path: str = "/") -> int:
    """Return the status of the answer to a request, once somebody listens."""
    deadline = time.monotonic() + 60
    while True:
        connection = http.client.HTTPConnection(address, timeout=30)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        finally:
            connection.close()
