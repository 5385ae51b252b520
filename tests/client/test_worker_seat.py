"""A site's seat with a real worker process: one for all messages, another after its death, and adapters as files."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from flwr.app import Message

sys.path.append(str(Path(__file__).parent))

import seat_apps

from fedlora.adapters import Adapter, LoraLayer, pack, unpack
from fedlora.adapters.differences import decode_file, encode_file
from fedlora.client.worker.files_mod import DIFFERENCE, Making, ask_for_file, make_of_differences
from fedlora.client.worker.seat import WorkerSeat
from fedlora.common.files import sha256_of
from fedlora.common.messages import (
    WORKER_DIED,
    DescribeRequest,
    EvaluateReceipt,
    EvaluateRequest,
    Failure,
    SiteDescription,
    TrainReceipt,
    TrainRequest,
)
from fedlora.common.packed_file import PackedFile

DEADLINE_SECONDS = 120.0


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not is_true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def request(round: int = 1, adapter: bytes | PackedFile = b"") -> TrainRequest:
    return TrainRequest("run", round, 0, 0, 10, 0, adapter)  # type: ignore[arg-type]


def pids(folder: Path) -> list[int]:
    """Return the processes that have trained, one for each training."""
    return [int(line.split()[0]) for line in (folder / "trainings").read_text().splitlines()]


def in_background(seat: WorkerSeat, answers: list[object]) -> threading.Thread:
    thread = threading.Thread(target=lambda: answers.append(seat.ask(seat.message(request()), TrainReceipt)))
    thread.start()
    return thread


def adapter_file(folder: Path, *, seed: int = 0) -> Path:
    """Return the file of an adapter, which is named by its content."""
    draw = torch.Generator().manual_seed(seed)
    layer = LoraLayer(torch.randn(2, 48, generator=draw), torch.randn(40, 2, generator=draw), 2.0)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    return named_by_content(folder, pack(Adapter({"block.q_proj": layer}, {}, config)))


def named_by_content(folder: Path, packed: bytes) -> Path:
    path = folder / "new"
    path.write_bytes(packed)
    return path.rename(folder / sha256_of([path]))


def layer_in(path: Path) -> LoraLayer:
    return unpack(path.read_bytes()).layers["block.q_proj"]


def has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def asked_for(seat: WorkerSeat, given: Path, target: Path, **how: object) -> Message:
    message = seat.message(request(adapter=PackedFile(given, 0)))  # type: ignore[arg-type]
    ask_for_file(message, target, **how)  # type: ignore[arg-type]
    return message


def test_one_process_answers_all_messages(seat: WorkerSeat, folder: Path) -> None:
    for round in (1, 2, 3):
        answer = seat.ask(seat.message(request(round)), TrainReceipt)
        assert isinstance(answer, TrainReceipt)
        assert (answer.round, answer.num_steps) == (round, 3)
    description = seat.ask(seat.message(DescribeRequest(rehearse=True)), SiteDescription)
    assert isinstance(description, SiteDescription)
    judged = seat.ask(seat.message(EvaluateRequest("run", 1, None, 0, 1, with_predictions=True)), EvaluateReceipt)
    assert isinstance(judged, EvaluateReceipt)
    assert judged.predictions == {0: 1}
    (pid,) = set(pids(folder))
    assert pid != os.getpid()
    assert (folder / "rehearsals").read_text() == f"{pid} True\n"


def test_a_worker_that_dies_is_told_and_the_next_message_has_another(seat: WorkerSeat, folder: Path) -> None:
    (folder / "order").write_text("die")
    answer = seat.ask(seat.message(request()), TrainReceipt)
    assert answer == Failure(WORKER_DIED, "the worker process died (exit code 4)")
    assert isinstance(seat.ask(seat.message(request()), TrainReceipt), TrainReceipt)
    assert len(set(pids(folder))) == 2


def test_a_worker_that_is_killed_at_work_is_told(seat: WorkerSeat, folder: Path) -> None:
    (folder / "order").write_text("loop")
    answers: list[object] = []
    thread = in_background(seat, answers)
    wait_until((folder / "begun").exists)
    os.kill(pids(folder)[0], signal.SIGKILL)
    thread.join(DEADLINE_SECONDS)
    assert answers == [Failure(WORKER_DIED, "the worker process died (exit code -9)")]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a data loader's own watch ends them, seconds later")
def test_a_worker_has_children_that_die_with_it(seat: WorkerSeat, folder: Path) -> None:
    (folder / "order").write_text("fork, then loop")
    answers: list[object] = []
    thread = in_background(seat, answers)
    wait_until(lambda: bool(answers) or (folder / "begun").exists())
    assert answers == []
    child = int((folder / "children").read_text())
    assert not has_ended(child)
    os.kill(pids(folder)[0], signal.SIGKILL)
    thread.join(DEADLINE_SECONDS)
    assert answers == [Failure(WORKER_DIED, "the worker process died (exit code -9)")]
    wait_until(lambda: has_ended(child))


def test_a_worker_that_is_killed_between_messages_is_told_at_the_next(seat: WorkerSeat, folder: Path) -> None:
    seat.ask(seat.message(request()), TrainReceipt)
    (pid,) = pids(folder)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: has_ended(pid))
    answer = seat.ask(seat.message(request()), TrainReceipt)
    assert isinstance(answer, Failure)
    assert answer.code == WORKER_DIED
    assert isinstance(seat.ask(seat.message(request()), TrainReceipt), TrainReceipt)


def test_what_an_app_raises_is_a_failure_and_the_worker_lives_on(seat: WorkerSeat, folder: Path) -> None:
    (folder / "order").write_text("raise")
    answer = seat.ask(seat.message(request()), TrainReceipt)
    assert answer == Failure("internal", "ValueError: as was asked")
    assert isinstance(seat.ask(seat.message(request()), TrainReceipt), TrainReceipt)
    assert len(set(pids(folder))) == 1


def test_a_training_that_nobody_waits_for_is_left_off_and_the_next_is_done(seat: WorkerSeat, folder: Path) -> None:
    (folder / "order").write_text("loop")
    answers: list[object] = []
    thread = in_background(seat, answers)
    wait_until((folder / "begun").exists)
    seat.interrupt()
    thread.join(DEADLINE_SECONDS)
    assert answers == [Failure("interrupted")]
    assert isinstance(seat.ask(seat.message(request()), TrainReceipt), TrainReceipt)
    assert len(set(pids(folder))) == 1


def test_an_interruption_between_messages_does_no_harm(seat: WorkerSeat) -> None:
    seat.interrupt()
    for _ in range(2):
        assert isinstance(seat.ask(seat.message(request()), TrainReceipt), TrainReceipt)
        seat.interrupt()


def test_closing_ends_the_worker_at_work_and_there_is_no_other(seat: WorkerSeat, folder: Path) -> None:
    (folder / "order").write_text("loop")
    answers: list[object] = []
    thread = in_background(seat, answers)
    wait_until((folder / "begun").exists)
    seat.close()
    thread.join(DEADLINE_SECONDS)
    answers.append(seat.ask(seat.message(request()), TrainReceipt))
    assert [answer.code for answer in answers if isinstance(answer, Failure)] == [WORKER_DIED] * 2
    (pid,) = pids(folder)
    wait_until(lambda: has_ended(pid))


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 0.0), ("bfloat16", 1e-4), ("int8", 1e-3)])
def test_an_adapter_comes_as_a_file_and_goes_as_one(
    seat: WorkerSeat, tmp_path: Path, precision: str, tolerance: float
) -> None:
    given, target = adapter_file(tmp_path), tmp_path / "out" / "update"
    target.parent.mkdir()
    answer = seat.ask(asked_for(seat, given, target, precision=precision), TrainReceipt)
    assert isinstance(answer, TrainReceipt)
    assert answer.adapter == PackedFile(target, target.stat().st_size)
    assert [path.name for path in target.parent.iterdir()] == ["update"]
    decode_file(target, tmp_path / "whole", reference=given)
    for before, after in zip(layer_in(given).tensors(), layer_in(tmp_path / "whole").tensors(), strict=True):
        assert torch.allclose(after - before, seat_apps.step(before), rtol=0, atol=tolerance + 1e-6)


def test_int8_leaves_what_it_rounded_off_and_takes_it_up_again(seat: WorkerSeat, tmp_path: Path) -> None:
    given, residual, left = adapter_file(tmp_path), tmp_path / "residual", tmp_path / "out" / "residual"
    left.parent.mkdir()
    how = {"precision": "int8", "residual": residual, "new_residual": left}
    seat.ask(asked_for(seat, given, tmp_path / "out" / "update", **how), TrainReceipt)
    first = (tmp_path / "out" / "update").read_bytes()
    assert left.is_file()
    left.replace(residual)
    seat.ask(asked_for(seat, given, tmp_path / "out" / "update", **how), TrainReceipt)
    assert (tmp_path / "out" / "update").read_bytes() != first
    assert left.read_bytes() != residual.read_bytes()


def test_an_adapter_that_is_not_there_is_made_of_a_difference(seat: WorkerSeat, tmp_path: Path) -> None:
    reference, wanted = adapter_file(tmp_path), adapter_file(tmp_path, seed=1)
    difference = tmp_path / "difference"
    encode_file(wanted, difference, reference=reference, precision="bfloat16")
    decode_file(difference, tmp_path / "made", reference=reference)
    whole = tmp_path / sha256_of([tmp_path / "made"])
    message = asked_for(seat, whole, tmp_path / "update", precision="float32")
    make_of_differences(message, [Making(whole, difference, reference)])
    assert isinstance(seat.ask(message, TrainReceipt), TrainReceipt)
    assert whole.read_bytes() == (tmp_path / "made").read_bytes()


@pytest.mark.parametrize("damage", ["another", "cut", "noise", "other reference"])
def test_a_difference_that_gives_something_else_is_told_and_leaves_nothing(
    seat: WorkerSeat, folder: Path, tmp_path: Path, damage: str
) -> None:
    files = tmp_path / "files"
    files.mkdir()
    reference, wanted = adapter_file(files), adapter_file(files, seed=1)
    difference = files / "difference"
    encode_file(adapter_file(files, seed=2), difference, reference=reference, precision="bfloat16")
    if damage == "cut":
        difference.write_bytes(difference.read_bytes()[:-7])
    if damage == "noise":
        difference.write_bytes(b"\xff" * 100)
    if damage == "other reference":
        reference = adapter_file(files, seed=2)
    wanted.unlink()
    before = sorted(files.iterdir())
    message = asked_for(seat, wanted, files / "update", precision="float32")
    make_of_differences(message, [Making(wanted, difference, reference)])
    answer = seat.ask(message, TrainReceipt)
    assert isinstance(answer, Failure)
    assert answer.code == DIFFERENCE
    assert sorted(files.iterdir()) == before
    assert not (folder / "trainings").exists()
