"""What a site keeps on disk: a result is done only when all of it is there, and is forgotten when the server has it."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from fedlora.client.site.outbox import Finished, Outbox
from fedlora.common.files import sha256_of
from fedlora.common.messages import Score, TrainReceipt
from fedlora.common.wire import read_receipt

START = "a" * 64


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return Outbox(tmp_path)


def receipt(round: int = 1, *, run: str = "run", status: str = "ok", loss: float = 0.5) -> TrainReceipt:
    return TrainReceipt(run, round, 0, "north", status, 10, 3, loss, None, Score(2, 0.25, 1.0), withheld=("loss",))


def trained(outbox: Outbox, round: int = 1, *, run: str = "run", update: bytes = b"update") -> Finished:
    """Leave what a training leaves, with a residual, and return its result."""
    folder = outbox.round_folder(run, round)
    (folder / "update").write_bytes(update)
    (folder / "residual").write_bytes(f"residual {round}".encode())
    return finish(outbox, receipt(round, run=run))


def finish(outbox: Outbox, receipt: TrainReceipt) -> Finished:
    return outbox.finish(receipt, run=receipt.run, round=receipt.round, started_from=START)


def sent(finished: Finished) -> tuple[str, int]:
    """Return digest and size of the update that an answer names."""
    blob = finished.answer.adapter.encoded
    return blob.sha256.hex(), blob.size_bytes


def entries(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_finished_round_is_found_again_by_whoever_opens_the_folder(outbox: Outbox, tmp_path: Path) -> None:
    finished = trained(outbox)
    update = tmp_path / "outbox" / "run" / "0001" / "update"
    assert sent(finished) == (sha256_of([update]), len(b"update"))
    assert Outbox(tmp_path).finished("run", 1, started_from=START) == finished


def test_a_loss_that_is_withheld_stays_no_number(outbox: Outbox) -> None:
    finish(outbox, receipt(loss=float("nan")))
    found = outbox.finished("run", 1, started_from=START)
    assert found is not None
    assert repr(read_receipt(found.answer)) == repr(receipt(loss=float("nan")))


def test_a_round_without_an_update_is_finished_too(outbox: Outbox) -> None:
    finished = finish(outbox, receipt(status="loss_not_finite"))
    assert sent(finished) == ("", 0)
    assert not finished.answer.HasField("adapter")
    assert outbox.finished("run", 1, started_from=START) == finished


def test_without_a_receipt_nothing_is_finished(outbox: Outbox) -> None:
    assert outbox.finished("run", 1, started_from=START) is None
    (outbox.round_folder("run", 1) / "update").write_bytes(b"update")
    assert outbox.finished("run", 1, started_from=START) is None


def test_what_was_trained_from_another_adapter_is_not_this_rounds_result(outbox: Outbox) -> None:
    trained(outbox)
    assert outbox.finished("run", 1, started_from="b" * 64) is None
    assert outbox.finished("run", 2, started_from=START) is None
    assert outbox.finished("other", 1, started_from=START) is None


@pytest.mark.parametrize("left", [None, b"", b"updat", b"update and more"])
def test_an_update_that_is_gone_or_cut_is_not_finished(outbox: Outbox, left: bytes | None) -> None:
    trained(outbox)
    update = outbox.round_folder("run", 1) / "update"
    update.unlink()
    if left is not None:
        update.write_bytes(left)
    assert outbox.finished("run", 1, started_from=START) is None


@pytest.mark.parametrize("num_bytes", [0, 1, 40, 66, -1])
def test_a_torn_receipt_counts_as_none(outbox: Outbox, num_bytes: int) -> None:
    trained(outbox)
    path = outbox.round_folder("run", 1) / "answer"
    path.write_bytes(path.read_bytes()[:num_bytes])
    assert outbox.finished("run", 1, started_from=START) is None


@pytest.mark.parametrize("content", ["[]", "null", '"text"', "\udc80"])
def test_a_receipt_that_is_something_else_counts_as_none(outbox: Outbox, content: str) -> None:
    path = outbox.round_folder("run", 1) / "answer"
    path.write_text(content, errors="surrogateescape")
    assert outbox.finished("run", 1, started_from=START) is None


def test_the_adapter_is_not_in_the_receipt(outbox: Outbox) -> None:
    finish(outbox, replace(receipt(), adapter=b"tensors"))
    assert b"tensors" not in (outbox.round_folder("run", 1) / "answer").read_bytes()


def test_finishing_a_round_removes_the_others_of_its_run(outbox: Outbox, tmp_path: Path) -> None:
    trained(outbox, 1)
    trained(outbox, 1, run="other")
    (outbox.round_folder("run", 2) / "update").write_bytes(b"of a training that was cut off")
    trained(outbox, 3)
    files = ["answer", "residual", "update"]
    kept = [f"other/0001/{name}" for name in files] + [f"run/0003/{name}" for name in files]
    assert entries(tmp_path / "outbox") == kept


def test_the_residual_of_an_accepted_update_is_kept_for_the_next(outbox: Outbox, tmp_path: Path) -> None:
    trained(outbox, 1)
    outbox.settle("run", 1, is_accepted=True)
    assert outbox.residual("run").read_bytes() == b"residual 1"
    trained(outbox, 2)
    outbox.settle("run", 2, is_accepted=True)
    assert outbox.residual("run").read_bytes() == b"residual 2"
    assert entries(tmp_path) == ["residual/run"]


def test_the_residual_of_a_refused_update_is_not_kept(outbox: Outbox, tmp_path: Path) -> None:
    trained(outbox, 1)
    outbox.settle("run", 1, is_accepted=True)
    trained(outbox, 2)
    outbox.settle("run", 2, is_accepted=False)
    assert outbox.residual("run").read_bytes() == b"residual 1"
    assert entries(tmp_path) == ["residual/run"]


def test_settling_twice_or_what_was_never_there_does_no_harm(outbox: Outbox) -> None:
    trained(outbox)
    for _ in range(2):
        outbox.settle("run", 1, is_accepted=True)
    outbox.settle("never", 7, is_accepted=True)
    assert outbox.residual("run").read_bytes() == b"residual 1"


def test_all_but_the_newest_three_adapters_are_forgotten(outbox: Outbox, tmp_path: Path) -> None:
    for age, name in enumerate(["new", "newer.part", "old", "newest", "older"]):
        path = outbox.adapter_file(name)
        path.write_bytes(b"tensors")
        moment = {"newest": 50, "newer.part": 40, "new": 30}.get(name, 10 + age)
        os.utime(path, ns=(moment, moment))
    outbox.forget_adapters()
    assert entries(tmp_path / "adapters") == ["new", "newer.part", "newest"]


def test_there_may_be_no_adapter_to_forget(outbox: Outbox) -> None:
    outbox.forget_adapters()
