"""Whether PEFT reloads folders, asked of one process for all of them."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest
import torch
from warm_start import start_warm

from fedlora.adapters import Adapter, LoraLayer, save_adapter
from fedlora.finished.resident_check import ResidentCheck

CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["query"]}


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return saved(tmp_path / "good", CONFIG)


def saved(folder: Path, config: dict[str, object]) -> Path:
    layer = LoraLayer(torch.full((4, 6), 0.5), torch.ones(5, 4), 2.0)
    save_adapter(Adapter({"blocks.0.query": layer}, {}, config), folder)
    return folder


def checkers() -> list[psutil.Process]:
    """Return the processes below this one that check."""
    found = psutil.Process().children()
    return [process for process in found if any("spawn_main" in word for word in process.cmdline())]


def test_one_process_says_of_each_folder_why_peft_does_not_reload_it_and_is_replaced_when_it_dies(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(checkers())
    with ResidentCheck() as check:
        assert check(good) == ""
        (process,) = set(checkers()) - before
        assert check(saved(tmp_path / "bad", CONFIG | {"r": 5})).startswith("PEFT does not reload it: RuntimeError: ")
        assert check(tmp_path / "nowhere").startswith("PEFT does not reload it: AdapterError: ")
        assert check(Path("good")) == ""
        assert set(checkers()) - before == {process}
        process.kill()
        assert check(good) == "PEFT does not reload it: the process that tried has died (exit code -9)"
        assert check(good) == ""
    assert set(checkers()) <= before


def test_one_that_takes_too_long_is_ended_and_replaced(good: Path) -> None:
    with ResidentCheck(timeout_seconds=0.01) as check:
        assert check(good) == "PEFT did not reload it within 0.01 s"
        assert check(good) == "PEFT did not reload it within 0.01 s"


def test_it_ends_with_an_asker_that_is_killed_and_leaves_ctrl_c_to_it(good: Path, tmp_path: Path) -> None:
    script = tmp_path / "asker.py"
    script.write_text(
        "import signal, time; from pathlib import Path; from fedlora.finished.resident_check import ResidentCheck\n"
        "def ask(check):\n"
        f"    print(repr(check(Path({str(good)!r}))), check._process.pid, flush=True)\n"
        "if __name__ == '__main__':\n"
        # Of a shell's background the tests, and what they start, have inherited that Ctrl-C is ignored.
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "    check = ResidentCheck()\n"
        "    try:\n"
        "        ask(check)\n"
        "        time.sleep(300)\n"
        "    except KeyboardInterrupt:\n"
        "        ask(check)\n"
        "        time.sleep(300)\n"
    )
    read, written = os.pipe()
    asker = start_warm([str(script)], cwd=tmp_path, output=written)
    os.close(written)
    with open(read) as told:
        try:
            first = told.readline()
            os.killpg(asker.pid, signal.SIGINT)
            assert told.readline() == first
            pid = int(first.split()[1])
            assert psutil.pid_exists(pid)
        finally:
            asker.kill()
    deadline = time.monotonic() + 60
    while psutil.pid_exists(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)
