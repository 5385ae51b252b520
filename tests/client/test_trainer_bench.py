"""A worker over a script's own trainer: its rounds, its scores, and what of it is refused before it trains."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import trainer_scripts as scripts
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fedlora.adapters import unpack
from fedlora.client.worker import interruption
from fedlora.client.worker.own_site import OwnSite
from fedlora.client.worker.trainer_bench import TrainerBench
from fedlora.client.worker.workbench import Workbench
from fedlora.common.config import RunConfig
from fedlora.common.errors import FedloraError
from fedlora.common.messages import OK, EvaluateRequest, InitialiseRequest, TrainReceipt, TrainRequest
from fedlora.training.data import load_federated_data
from fedlora.training.optimizer_state import MomentsFolder
from fedlora.training.trainer import TrainingInterrupted

MakeRun = Callable[..., RunConfig]
MakeBench = Callable[..., TrainerBench]


@pytest.fixture
def make_bench(chat_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeBench:
    """Return a function that gives a bench over a script's trainers; keywords are sections of the run."""
    monkeypatch.setenv("TRAINER_OUTPUT", str(tmp_path / "trainer-output"))

    def make(make_trainer: Any = scripts.make_trainer, *, site: OwnSite | None = None, **sections: Any) -> TrainerBench:
        moments = MomentsFolder(tmp_path / "optimizer")
        return TrainerBench(chat_run(**sections), make_trainer, ["north", "south"], site=site, moments=moments)

    return make


def initial_of(bench: TrainerBench) -> bytes:
    adapter = bench.initialise(InitialiseRequest(0)).adapter
    assert isinstance(adapter, bytes)
    return adapter


def asked(adapter: object, number: int = 1, **changes: Any) -> TrainRequest:
    given = {"num_rounds": 3, "validation_examples": 20, "adapter": adapter}
    return TrainRequest("run", number, 0, 0, **{**given, **changes})


def rounds_of(bench: TrainerBench, numbers: range = range(1, 4)) -> list[TrainReceipt]:
    """Return the receipts of a federation of one."""
    receipts, adapter = [], initial_of(bench)
    for number in numbers:
        receipts.append(bench.train("north", asked(adapter, number)))
        adapter = receipts[-1].adapter
    return receipts


def test_three_rounds_learn_and_say_what_they_are_over(make_bench: MakeBench) -> None:
    bench = make_bench(train={"steps": 8})
    bench.rehearse("north")
    described = bench.describe("north")
    assert (described.num_examples, described.num_validation, described.step_examples) == (40, 25, 4)
    receipts = rounds_of(bench)
    assert [receipt.status for receipt in receipts] == [OK] * 3
    assert [receipt.num_steps for receipt in receipts] == [8] * 3
    print(receipts)
    first, last = receipts[0].before, receipts[-1].after
    assert first is not None
    assert last is not None
    assert last.loss < first.loss - 1
    assert last.metric > first.metric
