"""A run's end waits for the check of its last adapter, and a server that is to stop for none."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from open_port import wait_until
from stored_runs import ServedStore, serve_while
from stub_runs import run_config, served
from stub_site import StubSite

from fedlora.finished.resident_check import ResidentCheck
from fedlora.server.disk.published_folder import published_in
from fedlora.server.disk.withheld import withheld_rounds
from fedlora.server.record.events import Event, RoundEnded, Waiting
from fedlora.server.run_queue.store import RunStore
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
    assert "is not published: its check is not over" in caplog.text
    is_over.set()
    # Given again, the command publishes what was left.
    served(run_config(2, federation={"rounds": 50}), tmp_path / "run", sites)
    assert list((tmp_path / "run" / "published").glob("digits-v*"))


class StoppedCheck:
    """A listener that stops the process of a check as soon as the last round's adapter is there for it.

    Attributes:
        waits: what the run has waited for.
    """

    def __init__(self, folder: Path, *, when_waited_for: int) -> None:
        """The process of the signal `when_waited_for`, of SIGCONT the check's, gets it once the run waits for it."""
        self._folder = folder
        self._signal = when_waited_for
        self._pid = 0
        self.waits: list[str] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, RoundEnded) and event.report.round == 1:
            wait_until(lambda: bool(self._processes()))
            (self._pid,) = self._processes()
            os.kill(self._pid, signal.SIGSTOP)
        elif isinstance(event, Waiting) and self._pid:
            self.waits.append(event.what)
            if event.what:
                assert "its check with PEFT is not over" in withheld_rounds(self._folder)[1]
                os.kill(self._pid if self._signal == signal.SIGCONT else os.getpid(), self._signal)

    def _processes(self) -> list[int]:
        return [each.pid for each in multiprocessing.active_children() if each.name == "PEFT check" and each.pid]


@pytest.mark.slow
def test_a_run_is_over_when_the_check_of_its_last_adapter_is_however_long_that_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedlora.server.disk.registry.STOP_SECONDS", 0.2)
    folder = tmp_path / "run"
    listen = StoppedCheck(folder, when_waited_for=signal.SIGCONT)
    with ResidentCheck() as check:
        served(run_config(1), folder, [StubSite("anna", tmp_path / "anna")], check=check, listener=listen)
    assert listen.waits == ["the check with PEFT of the adapter of round 1, the last, which takes long", ""]
    assert [published.round for published in published_in(folder)] == [1]
    assert withheld_rounds(folder) == {}


def test_a_stop_ends_the_wait_for_the_last_check_and_the_same_command_publishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedlora.server.disk.registry.STOP_SECONDS", 0.2)
    folder = tmp_path / "run"
    listen = StoppedCheck(folder, when_waited_for=signal.SIGTERM)
    sites = [StubSite("anna", tmp_path / "anna")]
    with ResidentCheck() as check, pytest.raises(RunStopped, match="the last adapter is not published yet"):
        served(run_config(1), folder, sites, check=check, listener=listen)
    assert published_in(folder) == ()
    assert "the same start command publishes it" in withheld_rounds(folder)[1]
    assert "its check with PEFT is not over" in (folder / "report.html").read_text()
    served(run_config(1), folder, [])
    assert [published.round for published in published_in(folder)] == [1]
    assert withheld_rounds(folder) == {}


def test_a_store_publishes_what_a_stop_has_kept_from_it_before_it_takes_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedlora.server.disk.registry.STOP_SECONDS", 0.2)
    folder = RunStore(tmp_path / "store").run_folder("digits")
    listen = StoppedCheck(folder, when_waited_for=signal.SIGTERM)

    def begin(server: ServedStore) -> None:
        StubSite("anna", tmp_path / "anna").connect(server.address)
        server.store.submit(run_config(1))
        wait_until(lambda: bool(listen.waits))

    with ResidentCheck() as check:
        serve_while(tmp_path / "store", begin, check=check, listener=listen)
    assert (RunStore(tmp_path / "store").queue().find("digits").state, published_in(folder)) == ("running", ())
    serve_while(tmp_path / "store", lambda server: server.wait_for("digits", "finished"))
    assert [published.round for published in published_in(folder)] == [1]
    assert withheld_rounds(folder) == {}


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
