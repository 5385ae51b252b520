"""What a run publishes: whole PEFT folders that are finite and that PEFT reloads, and who is told of them."""

import json
import logging
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedlora.adapters import Adapter, LoraLayer, load_adapter, save_adapter
from fedlora.common.config import RunConfig
from fedlora.common.messages import Score
from fedlora.common.published import read_published
from fedlora.common.run_file import to_toml
from fedlora.finished.peft_check import peft_refusal
from fedlora.server.disk.registry import Registry
from fedlora.server.disk.store import RunFolder
from fedlora.server.disk.withheld import withheld_rounds
from fedlora.server.record.events import Event, RoundEnded, RunStarted, Waiting
from fedlora.server.record.round_report import HeldOutReport, RoundReport

CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["query"], "modules_to_save": ["head"]}
RUN = RunConfig.model_validate({"run": {"name": "my run"}})


def adapter_of(value: float) -> Adapter:
    layer = LoraLayer(torch.full((4, 6), float(value)), torch.ones(5, 4), 2.0)
    head = {"head.weight": torch.ones(3, 5), "head.bias": torch.zeros(3)}
    return Adapter({"blocks.0.query": layer}, head, CONFIG)


def report_of(number: int, metric: float = 0.75) -> RoundReport:
    held_out = HeldOutReport(Score(8, 0.5, metric), {}, is_complete=True)
    return RoundReport(number, (), {}, {}, None, held_out, bytes_down=0, bytes_up=0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run = RunFolder(tmp_path / "run")
    run.write_manifest({"run_id": "abc", "metric": "accuracy"})
    (run.path / "run.toml").write_text(to_toml(RUN))
    return run.path


@pytest.fixture
def registry(folder: Path) -> Iterator[Registry]:
    """Return a registry that asks PEFT in this process, where it is imported already."""
    registry = Registry(folder, keep=3, check=peft_refusal)
    yield registry
    registry.close()


def end_round(registry: Registry, folder: Path, number: int, adapter: Adapter | None = None) -> None:
    """Do what the strategy does at a round's end, and wait until the adapter is published, or not."""
    save_adapter(adapter or adapter_of(number), folder / "adapter")
    registry.heard(RoundEnded(report_of(number)))
    registry.close()


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "published").iterdir())


def test_an_adapter_is_published_as_a_folder_that_peft_and_we_load(folder: Path) -> None:
    registry = Registry(folder, check=peft_refusal)
    end_round(registry, folder, 1)
    (published,) = registry.adapters()
    path = folder / "published" / "my-run-v0001"
    assert (published.name, published.version, published.run, published.round) == ("my-run-v0001", 1, "abc", 1)
    assert (published.metric_name, published.metric, published.base_model) == ("accuracy", 0.75, RUN.model.name)
    assert read_published(path) == published
    assert names_in(folder) == [path.name]
    assert sorted(file.name for file in published.files) == ["adapter_config.json", "adapter_model.safetensors"]
    assert published.size_bytes == sum((path / file.name).stat().st_size for file in published.files)
    assert torch.equal(load_adapter(path).layers["blocks.0.query"].A, torch.ones(4, 6))
    assert peft_refusal(path) == ""


def test_a_published_adapter_stays_when_the_next_round_is_written(registry: Registry, folder: Path) -> None:
    end_round(registry, folder, 1)
    end_round(registry, folder, 2)
    found = [load_adapter(folder / "published" / name).layers["blocks.0.query"].A[0, 0] for name in names_in(folder)]
    assert found == [1.0, 2.0]
    assert [published.round for published in registry.adapters()] == [2, 1]


def test_the_start_is_not_published(registry: Registry, folder: Path) -> None:
    end_round(registry, folder, 0)
    assert registry.adapters() == ()


@pytest.mark.parametrize("place", ["A", "head"])
def test_an_adapter_with_nan_is_not_published(
    registry: Registry, folder: Path, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    adapter = adapter_of(float("nan") if place == "A" else 1.0)
    if place == "head":
        adapter = replace(adapter, dense={**adapter.dense, "head.bias": torch.full((3,), float("inf"))})
    end_round(registry, folder, 1, adapter)
    assert registry.adapters() == ()
    assert names_in(folder) == []
    assert "round 1 is not published: " in caplog.text
    assert "not finite" in caplog.text
    end_round(registry, folder, 2)
    assert [published.name for published in registry.adapters()] == ["my-run-v0001"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"target_modules": ["value"]}, "No modules were targeted"),
        ({"r": "four"}, "TypeError"),
        ({"r": 5}, "RuntimeError: "),
    ],
)
def test_an_adapter_that_peft_refuses_is_not_published(
    registry: Registry, folder: Path, change: dict[str, object], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    end_round(registry, folder, 1, replace(adapter_of(1), config=CONFIG | change))
    assert names_in(folder) == []
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert reason in record.getMessage()


def test_a_tensor_without_a_place_in_peft_is_refused(tmp_path: Path) -> None:
    two = replace(
        adapter_of(1), layers={f"{name}": adapter_of(1).layers["blocks.0.query"] for name in ("query", "key")}
    )
    save_adapter(two, tmp_path)
    assert peft_refusal(tmp_path).startswith("there is no place for base_model.model.key.lora_A.weight")


def test_a_round_is_published_once(registry: Registry, folder: Path) -> None:
    for _ in range(3):
        end_round(registry, folder, 1)
    registry.heard(RunStarted((), 5, 2, (report_of(0), report_of(1))))
    registry.close()
    assert names_in(folder) == ["my-run-v0001"]


def test_a_restart_publishes_what_was_missed_and_removes_what_was_begun(registry: Registry, folder: Path) -> None:
    end_round(registry, folder, 1)
    save_adapter(adapter_of(2), folder / "adapter")
    (folder / "published" / "candidate-0.unfinished").mkdir()
    again = Registry(folder, check=peft_refusal)
    assert names_in(folder) == ["my-run-v0001"]
    assert again.adapters() == registry.adapters()
    again.heard(RunStarted((), 5, 3, (report_of(0), report_of(1), report_of(2))))
    again.close()
    assert [(published.version, published.round) for published in again.adapters()] == [(2, 2), (1, 1)]


def test_a_damaged_version_is_not_offered_and_its_number_not_used_again(
    registry: Registry, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    end_round(registry, folder, 1)
    os.truncate(folder / "published" / "my-run-v0001" / "adapter_config.json", 3)
    again = Registry(folder, check=peft_refusal)
    assert again.adapters() == ()
    assert "my-run-v0001 is damaged" in caplog.text
    end_round(again, folder, 2)
    assert [published.version for published in again.adapters()] == [2]


def test_only_the_newest_versions_are_kept_and_a_reader_of_an_old_one_reads_on(
    registry: Registry, folder: Path
) -> None:
    end_round(registry, folder, 1)
    path = registry.find(1, "adapter_config.json")
    assert path is not None
    with open(path) as reader:
        for number in range(2, 6):
            end_round(registry, folder, number)
        assert json.load(reader) == CONFIG
    assert names_in(folder) == ["my-run-v0003", "my-run-v0004", "my-run-v0005"]
    assert [published.version for published in registry.adapters()] == [5, 4, 3]
    assert registry.find(1, "adapter_config.json") is None


@pytest.mark.parametrize("file", ["adapter.json", "../my-run-v0001/adapter_config.json", "", "/etc/passwd"])
def test_only_files_of_the_metadata_are_found(registry: Registry, folder: Path, file: str) -> None:
    end_round(registry, folder, 1)
    assert registry.find(1, file) is None


def test_rounds_do_not_wait_and_the_newest_of_them_is_published(folder: Path) -> None:
    is_checking, may_end = threading.Event(), threading.Event()

    def slow_check(_folder: Path) -> str:
        is_checking.set()
        assert may_end.wait(10)
        return ""

    registry = Registry(folder, check=slow_check)
    for number in range(1, 5):
        save_adapter(adapter_of(number), folder / "adapter")
        registry.heard(RoundEnded(report_of(number)))
        assert is_checking.wait(10)
    may_end.set()
    registry.close()
    assert [published.round for published in registry.adapters()] == [4, 1]
    first = load_adapter(folder / "published" / "my-run-v0001")
    assert first.layers["blocks.0.query"].A[0, 0] == 1
    assert names_in(folder) == ["my-run-v0001", "my-run-v0002"]


def test_the_end_of_a_run_waits_for_its_last_check_and_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedlora.server.disk.registry.STOP_SECONDS", 0.05)
    may_end, heard = threading.Event(), list[Event]()

    def listen(event: Event) -> None:
        heard.append(event)
        if event != Waiting(""):
            assert withheld_rounds(folder)[1].startswith("its check with PEFT is not over")
            may_end.set()

    registry = Registry(folder, check=lambda _folder: "" if may_end.wait(60) else "slow", listener=listen)
    save_adapter(adapter_of(1), folder / "adapter")
    registry.heard(RoundEnded(report_of(1)))
    assert registry.close()
    waiting = Waiting("the check with PEFT of the adapter of round 1, the last, which takes long")
    assert heard == [waiting, Waiting("")]
    assert [published.round for published in registry.adapters()] == [1]
    assert withheld_rounds(folder) == {}


def test_a_failure_to_write_is_said_and_the_run_goes_on(
    registry: Registry, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    registry.heard(RoundEnded(report_of(1)))
    assert "round 1 is not published: cannot write" in caplog.text
    end_round(registry, folder, 2)
    assert [published.round for published in registry.adapters()] == [2]


def test_a_metric_that_is_not_finite_is_left_out(registry: Registry, folder: Path) -> None:
    save_adapter(adapter_of(1), folder / "adapter")
    registry.heard(RoundEnded(report_of(1, metric=float("nan"))))
    registry.close()
    assert registry.adapters()[0].metric is None


def test_who_watches_is_told_of_each_publication_and_of_the_close(registry: Registry, folder: Path) -> None:
    told: list[tuple[int, bool | None]] = []
    with registry.watching(lambda: told.append((len(registry.adapters()), registry.is_finished))):
        save_adapter(adapter_of(1), folder / "adapter")
        registry.heard(RoundEnded(report_of(1)))
        registry.close(is_finished=False)
    registry.close()
    assert told == [(1, None), (1, False)]


def test_the_end_of_a_run_waits_for_watchers_only_so_long(registry: Registry) -> None:
    with registry.watching(lambda: None):
        registry.close(linger_seconds=0.05)
    assert registry.is_finished
