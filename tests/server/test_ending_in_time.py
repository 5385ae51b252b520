"""A server that is to stop waits for no check of an adapter."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from stub_runs import run_config, served
from stub_site import StubSite

from fedlora.finished.resident_check import ResidentCheck
from fedlora.server.record.events import Event, RoundEnded
from fedlora.server.sites.grpc.grid import RunStopped


def test_a_server_that_is_stopped_does_not_wait_for_the_check_of_an_adapter(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    is_over, stopped = threading.Event(), list[float]()

    def check(_folder: Path) -> str:
        is_over.wait(120)
        return ""

    def listen(event: Event) -> None:
        if isinstance(event, RoundEnded) and event.report.round == 1:
            stopped.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGTERM)

    sites = [StubSite(name, tmp_path / name) for name in ("anna", "bert")]
    config = run_config(2, federation={"rounds": 50})
    with pytest.raises(RunStopped):
        served(config, tmp_path / "run", sites, check=check, listener=listen)
    assert time.monotonic() - stopped[0] < 60
    assert not is_over.is_set()
    assert "is not published: its check took more than" in caplog.text
    is_over.set()
    # Given again, the command publishes what was left.
    served(run_config(2, federation={"rounds": 50}), tmp_path / "run", sites)
    assert list((tmp_path / "run" / "published").glob("digits-v*"))


def test_a_check_that_is_on_ends_with_its_process(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "adapter_config.json")  # Whoever opens it waits for ever.
    answers: list[str] = []
    with ResidentCheck() as check:
        asking = threading.Thread(target=lambda: answers.append(check(tmp_path)))
        asking.start()
        time.sleep(0.5)
    asking.join(60)
    assert not asking.is_alive()
    assert "has died" in answers[0]
    assert check(tmp_path) == "the check is over"
