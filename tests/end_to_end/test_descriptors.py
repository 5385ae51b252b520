"""A server that may have few files open, and strangers who take what they can: sites join, and the log says it."""

import re
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from warm_start import start_warm

sys.path.append(str(Path(__file__).parents[1] / "server"))

from open_port import Conversation, enrolled

from fedlora.common.channels import open_channel
from fedlora.server.identity.authority import Authority
from fedlora.server.sites.grpc.doorkeeper import MOST_OF_AN_ADDRESS

LIMIT, SECONDS = 256, 120.0


def test_a_site_joins_a_server_of_256_descriptors_whose_port_strangers_hold(
    run_file: Callable[..., Path], tmp_path: Path
) -> None:
    run = run_file("federation.sites=2", 'data.labels=["0","1","2"]')
    script = tmp_path / "few.py"
    script.write_text(
        "import resource, sys; from fedlora.cli.main import main;"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({LIMIT // 2}, {LIMIT}));"
        f"sys.argv = ['fedlora', 'server', 'start', {str(run)!r}, '--out', 'out', '--listen', '127.0.0.1:0'];"
        "main() if __name__ == '__main__' else None"
    )
    log = tmp_path / "log"

    def said(pattern: str) -> "re.Match[str]":
        end = time.monotonic() + SECONDS
        while (found := re.search(pattern, " ".join(log.read_text().split()))) is None:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        return found

    with open(log, "wb") as output:
        process = start_warm([str(script)], cwd=tmp_path, output=output.fileno())
    try:
        address = f"127.0.0.1:{said(r'listening on 127.0.0.1:([0-9]+)')[1]}"
        credentials = enrolled(Authority.open(tmp_path / "out" / "identity", datetime.now(UTC)), "chalk", "tiny")
        host, _, port = address.rpartition(":")
        with ExitStack() as stack:
            for _ in range(2 * LIMIT):
                stack.enter_context(socket.create_connection((host, int(port))))
            said(r"all 128 connections that this process may have are taken, and others are refused; raise the limit")
            said(rf"connections from 127.0.0.1 were closed: on more than {MOST_OF_AN_ADDRESS} at a time no site")
            with open_channel(address, credentials) as channel, Conversation(channel) as site:
                site.hear("welcome")
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert "this process may have 256 files and connections open (ulimit -n), of sites at most 128" in (
        " ".join(log.read_text().split())
    )
    assert not re.search(r"server\.key|Too many open files|Traceback", log.read_text())
