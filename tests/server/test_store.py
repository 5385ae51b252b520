"""A run on disk: what is written, what is read again, and what is passed over when it is damaged."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fedlora.adapters import Adapter, LoraLayer, load_adapter, pack
from fedlora.common.aggregation_report import AggregationReport, LayerReport
from fedlora.common.errors import StoreError
from fedlora.common.messages import OK, Score, TrainReceipt
from fedlora.common.packed_file import PackedFile
from fedlora.server.disk.store import RunFolder
from fedlora.server.record.draw import Draw
from fedlora.server.record.round_report import CODEC, ClientReport, HeldOutReport, RoundReport

CONFIG = {"peft_type": "LORA", "lora_alpha": 8}
NAMES = ["plain", "two words", "a/b", "a\\b", "..", ".", "größer", "大" * 80, "x" * 300, "", "a.json", "a", "A", "%2F"]


AGGREGATION = AggregationReport(
    "lora_fair", 0.5, 0.25, layers={"q": LayerReport(1.0, 0.5, 0.25, 0.1, 0.1, 0.2, 0.5, 0.1, 0.0, 0.9, 1.0, 2.5)}
)


def adapter_of(number: int) -> Adapter:
    layer = LoraLayer(torch.full((4, 6), float(number)), torch.ones(5, 4), 2.0)
    return Adapter({"q": layer}, {"head.bias": torch.zeros(3)}, CONFIG)


def report_of(number: int, adapter_sha256: str = "") -> RoundReport:
    score = Score(3, 0.5, 0.25)
    client = ClientReport(10, 8, 0.5, None, score, {"training": 1.5})
    return RoundReport(
        round=number,
        cohort=("größer", "b"),
        clients={"größer": client},
        refused={"b": "norm"},
        aggregation=AGGREGATION,
        held_out=HeldOutReport(score, {"site": score}, is_complete=False),
        bytes_down=10,
        bytes_up=5,
        seconds={"training": 2.0},
        adapter_sha256=adapter_sha256,
    )


def finish_round(folder: RunFolder, number: int) -> RoundReport:
    """Write a whole round, as the strategy does."""
    adapter = adapter_of(number)
    folder.write_draw(number, Draw(("größer", "b"), 2))
    folder.write_accepted(number, receipt_of("größer", number))
    stored = folder.write_adapter(number, adapter)
    report = report_of(number, stored.sha256)
    folder.complete(report, stored)
    return report


def receipt_of(client: str, number: int = 1) -> TrainReceipt:
    adapter = pack(adapter_of(len(client)))
    return TrainReceipt("run", number, 0, client, OK, 10, 8, 0.5, None, Score(1, 0.1, 1.0), {"backward": 0.5}, adapter)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


@pytest.fixture
def three_rounds(folder: RunFolder) -> RunFolder:
    """Return a run after the rounds 0, 1 and 2."""
    for number in range(3):
        finish_round(folder, number)
    return folder


def in_round(folder: RunFolder, number: int, name: str) -> Path:
    return folder.path / "rounds" / f"{number:04d}" / name


def damages(path: Path) -> Iterator[bytes]:
    """Yield contents that a crash of the machine or a bad disk may leave."""
    whole = path.read_bytes()
    yield b""
    yield whole[: len(whole) // 2]
    yield b"\0" * len(whole)
    yield b"\xff" + whole[1:]


def test_a_new_run_has_nothing(folder: RunFolder) -> None:
    assert folder.latest() is None
    assert folder.manifest() is None
    assert folder.draw(1) is None
    assert folder.accepted(1) == {}
    assert folder.predictions(0) == {}
    assert not folder.path.exists()


def test_the_latest_round_comes_with_its_adapter_and_all_reports(three_rounds: RunFolder) -> None:
    latest = three_rounds.latest()
    assert latest is not None
    assert latest.round == 2
    assert pack(latest.adapter) == pack(adapter_of(2))
    assert [report.round for report in latest.reports] == [0, 1, 2]
    assert latest.reports[2] == report_of(2, hashlib.sha256(pack(adapter_of(2))).hexdigest())


def test_the_published_files_are_the_newest_adapter_and_all_reports(three_rounds: RunFolder) -> None:
    published = load_adapter(three_rounds.path / "adapter")
    assert pack(published) == pack(adapter_of(2))
    lines = (three_rounds.path / "rounds.jsonl").read_bytes().splitlines()
    assert [CODEC.load(line) for line in lines] == list(three_rounds.latest().reports)  # type: ignore[union-attr]


def test_updates_of_a_finished_round_and_adapters_before_the_last_two_are_removed(three_rounds: RunFolder) -> None:
    files = {str(path.relative_to(three_rounds.path)) for path in three_rounds.path.rglob("*") if path.is_file()}
    assert files == {
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "rounds.jsonl",
        *(f"rounds/000{number}/{name}" for number in range(3) for name in ("plan.json", "report.json")),
        "rounds/0001/adapter.safetensors",
        "rounds/0002/adapter.safetensors",
    }


def test_what_a_crash_after_the_last_report_cut_off_is_made_up_for_by_publishing_again(folder: RunFolder) -> None:
    for number in range(2):
        finish_round(folder, number)
    adapter = adapter_of(2)
    folder.write_accepted(2, receipt_of("größer", 2))
    report = report_of(2, folder.write_adapter(2, adapter).sha256)
    in_round(folder, 2, "report.json").write_text(CODEC.dump(report) + "\n")

    latest = folder.latest()
    assert latest is not None
    folder.publish(latest.stored, latest.round)
    assert pack(load_adapter(folder.path / "adapter")) == pack(adapter)
    assert len((folder.path / "rounds.jsonl").read_bytes().splitlines()) == 3
    assert not in_round(folder, 2, "updates").exists()
    assert not in_round(folder, 0, "adapter.safetensors").exists()


def test_a_round_without_its_report_is_not_over(three_rounds: RunFolder) -> None:
    in_round(three_rounds, 2, "report.json").unlink()
    assert three_rounds.latest().round == 1  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["report.json", "adapter.safetensors"])
def test_a_damaged_round_falls_back_to_the_one_before_and_says_so(
    three_rounds: RunFolder, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = in_round(three_rounds, 2, name)
    for content in damages(path):
        caplog.clear()
        path.write_bytes(content)
        latest = three_rounds.latest()
        assert latest is not None
        assert latest.round == 1
        assert pack(latest.adapter) == pack(adapter_of(1))
        assert [report.round for report in latest.reports] == [0, 1]
        assert f"{path} is damaged" in caplog.text


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_run_that_goes_on_lists_each_round_once(folder: RunFolder, number: int) -> None:
    for index in range(number + 1):
        finish_round(folder, index)
    again = RunFolder(folder.path)
    latest = again.latest()
    assert latest is not None
    again.publish(latest.stored, latest.round)
    finish_round(again, number + 1)
    lines = (folder.path / "rounds.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == list(range(number + 2))


def test_a_round_that_is_done_again_after_a_damage_is_whole(three_rounds: RunFolder) -> None:
    before = in_round(three_rounds, 2, "adapter.safetensors").read_bytes()
    in_round(three_rounds, 2, "adapter.safetensors").write_bytes(before[:-1])
    three_rounds.publish(three_rounds.write_adapter(1, adapter_of(1)), 1)
    assert len((three_rounds.path / "rounds.jsonl").read_bytes().splitlines()) == 2
    finish_round(three_rounds, 2)
    assert in_round(three_rounds, 2, "adapter.safetensors").read_bytes() == before
    assert three_rounds.latest().round == 2  # type: ignore[union-attr]


def test_a_run_without_any_whole_adapter_is_refused_with_what_to_do(three_rounds: RunFolder) -> None:
    for number in (1, 2):
        in_round(three_rounds, number, "adapter.safetensors").write_bytes(b"")
    with pytest.raises(StoreError, match=r"2 rounds are recorded, .*start a new run, from adapter/ with federation"):
        three_rounds.latest()


def test_files_that_a_killed_process_left_half_written_are_harmless(three_rounds: RunFolder) -> None:
    three_rounds.write_accepted(3, receipt_of("a", 3))
    for path in [path for path in three_rounds.path.rglob("*") if path.is_file()]:
        path.with_name(f"{path.name}.tmp").write_bytes(b"torn")
    in_round(three_rounds, 3, "adapter.safetensors.tmp").write_bytes(b"torn")
    in_round(three_rounds, 3, "report.json.tmp").write_bytes(b"torn")
    assert three_rounds.latest().round == 2  # type: ignore[union-attr]
    assert [*three_rounds.accepted(3)] == ["a"]
    finish_round(three_rounds, 3)
    assert three_rounds.latest().round == 3  # type: ignore[union-attr]


def in_memory(receipt: TrainReceipt) -> TrainReceipt:
    """Return a receipt whose adapter lies in a file as one that holds its bytes."""
    assert isinstance(receipt.adapter, PackedFile)
    return dataclasses.replace(receipt, adapter=receipt.adapter.path.read_bytes(), wire_bytes=0)


def test_accepted_updates_come_back_whatever_the_clients_are_called(folder: RunFolder) -> None:
    for name in NAMES:
        folder.write_accepted(1, receipt_of(name))
    accepted = folder.accepted(1)
    assert {name: in_memory(receipt) for name, receipt in accepted.items()} == {
        name: receipt_of(name) for name in NAMES
    }
    names = [path.name for path in in_round(folder, 1, "updates").iterdir()]
    assert len({name.casefold() for name in names}) == 2 * len(NAMES)
    assert all(len(name.encode()) < 250 for name in names)


def test_nothing_is_written_outside_the_runs_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    for name in ("../../../escaped", "/escaped", "..", "~"):
        folder.write_accepted(1, receipt_of(name))
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]
    assert [path.parent for path in folder.path.rglob("*.json")] == [in_round(folder, 1, "updates")] * 4


def test_an_update_counts_once_its_receipt_is_there(folder: RunFolder) -> None:
    folder.write_accepted(1, receipt_of("a"))
    folder.write_accepted(1, receipt_of("b"))
    (in_round(folder, 1, "updates") / "c-0123.safetensors").write_bytes(b"tensors")
    assert [*folder.accepted(1)] == ["a", "b"]
    assert folder.accepted(2) == {}


def test_an_update_that_came_again_counts_once(folder: RunFolder) -> None:
    folder.write_accepted(1, receipt_of("a"))
    folder.write_accepted(1, dataclasses.replace(receipt_of("a"), loss=0.25))
    assert [receipt.loss for receipt in folder.accepted(1).values()] == [0.25]


def test_a_damaged_receipt_or_missing_tensors_are_passed_over(
    folder: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "b", "c"):
        folder.write_accepted(1, receipt_of(name))
    a, b, _ = sorted(in_round(folder, 1, "updates").glob("*.json"))
    a.write_bytes(a.read_bytes()[:-3])
    b.with_suffix(".safetensors").unlink()
    assert [*folder.accepted(1)] == ["c"]
    assert f"{a} is damaged" in caplog.text


def test_a_plan_comes_back_and_a_damaged_one_is_made_anew(folder: RunFolder) -> None:
    folder.write_draw(1, Draw(("a/b", "größer"), 1))
    assert folder.draw(1) == Draw(("a/b", "größer"), 1)
    path = in_round(folder, 1, "plan.json")
    for content in [*damages(path), b"[]", b'{"cohort": "abc"}', b'{"clients": []}']:
        path.write_bytes(content)
        assert folder.draw(1) is None


def test_predictions_come_back_and_damaged_ones_are_none(folder: RunFolder) -> None:
    folder.write_beside(0, predictions={0: 3, 7: 1})
    folder.write_beside(1, predictions={})
    assert folder.predictions(0) == {0: 3, 7: 1}
    assert folder.predictions(1) == {}
    assert not in_round(folder, 1, "predictions.json").exists()
    in_round(folder, 0, "predictions.json").write_bytes(b'{"0": 3, ')
    assert folder.predictions(0) == {}


def test_a_manifest_comes_back_and_a_damaged_one_is_refused(folder: RunFolder) -> None:
    folder.write_manifest({"run_id": "x", "labels": ["größer"]})
    assert folder.manifest() == {"run_id": "x", "labels": ["größer"]}
    (folder.path / "manifest.json").write_bytes(b"{")
    with pytest.raises(StoreError, match=r"manifest\.json is damaged .*; restore it, or start a new run"):
        folder.manifest()


def test_a_diverged_round_is_valid_json_and_comes_back(folder: RunFolder) -> None:
    spoiled = Score(3, math.nan, 0.0)
    stored = folder.write_adapter(0, adapter_of(0))
    report = dataclasses.replace(
        report_of(0, stored.sha256),
        clients={"a": ClientReport(1, 1, math.inf, spoiled, None, {"training": math.nan})},
        aggregation=AggregationReport("fedit", math.inf, math.nan, -math.inf),
        held_out=HeldOutReport(spoiled, {"g": spoiled}, is_complete=True),
    )
    folder.complete(report, stored)

    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is no JSON")

    (line,) = (folder.path / "rounds.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=refuse)["aggregation"]["error_before"] == "Infinity"
    latest = folder.latest()
    assert latest is not None
    assert repr(latest.reports[0]) == repr(report)  # nan equals nothing, but looks the same
