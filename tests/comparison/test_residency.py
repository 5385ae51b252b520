"""What a process of a comparison keeps from run to run, and that no run is another by it."""

import gc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import nn

from fedlora.common.config import RunConfig
from fedlora.comparison.cells import run_cell
from fedlora.comparison.grid import Cell, Grid, final_cells
from fedlora.models.base_model import load_base_model
from fedlora.models.kept_modules import kept_or_read, modules_kept
from fedlora.server.disk.store import RunFolder
from fedlora.training.data import KeptParts, load_federated_data

MakeRun = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def base(vision_run: MakeRun) -> RunConfig:
    return vision_run(
        federation={"rounds": 2},
        train={"steps": 2, "batch_size": 4, "learning_rate": 0.02, "optimizer_state": "keep"},
        evaluation={"client_examples": 4},
        partition={"by": "dirichlet", "num_clients": 3, "alpha": 1.0},
    )


def outcome(folder: Path) -> list[tuple[object, ...]]:
    latest = RunFolder(folder).latest()
    assert latest is not None
    return [
        (
            report.adapter_sha256,
            report.held_out,
            {name: (part.before, part.after) for name, part in report.clients.items()},
        )
        for report in latest.reports
    ]


def test_a_run_is_the_same_in_a_process_that_has_done_others(base: RunConfig, tmp_path: Path) -> None:
    grid = Grid(("fedit", "lora_fair"), num_draws=2)
    parts = KeptParts()
    with modules_kept():
        for cell in final_cells(grid, {}):
            assert run_cell(cell, base, tmp_path, read=parts).fault == ""
    last = Cell(grid.variants()[1], {}, 1)
    run_cell(last, base, tmp_path / "alone")
    assert outcome(tmp_path / last.folder) == outcome(tmp_path / "alone" / last.folder)


def test_a_run_leaves_no_model_to_the_runs_after_it(base: RunConfig, tmp_path: Path) -> None:
    def num_models() -> int:
        return sum(type(held) is PeftModel for held in gc.get_objects())

    counts = []
    with modules_kept():
        for cell in final_cells(Grid(("fedit",), num_draws=3), {}):
            run_cell(cell, base, tmp_path)
            counts.append(num_models())
    assert counts[2] == counts[1] == counts[0]


def test_what_is_kept_is_read_once_and_stays_as_it_was_read() -> None:
    reads = []

    def read() -> tuple[nn.Module, str]:
        reads.append("read")
        module = nn.Linear(2, 2)
        nn.init.ones_(module.weight)
        return module, "complete"

    def drawing_nothing() -> tuple[nn.Module, str]:
        with torch.random.fork_rng(devices=[]):
            return read()

    with modules_kept():
        first, _ = kept_or_read("a", drawing_nothing)
        nn.init.zeros_(first.weight)  # type: ignore[arg-type]
        torch.rand(1)
        second, loading = kept_or_read("a", drawing_nothing)
        assert (len(reads), loading) == (1, "complete")
        assert (second.weight == 1).all()  # type: ignore[operator]
        kept_or_read("b", drawing_nothing)
        kept_or_read("a", drawing_nothing)
        assert len(reads) == 3
    kept_or_read("a", drawing_nothing)
    kept_or_read("a", drawing_nothing)
    assert len(reads) == 5


def test_what_a_checkpoint_lacks_is_drawn_for_each_state_of_the_generator() -> None:
    reads = []

    def read() -> tuple[nn.Linear, None]:
        reads.append("read")
        return nn.Linear(2, 2), None

    def drawn(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module, _ = kept_or_read("a", read)
            return module.get_parameter("weight").detach(), torch.rand(3)

    expected = [drawn(0), drawn(1)]
    with modules_kept():
        found = [drawn(0), drawn(0), drawn(1), drawn(0)]
    assert len(reads) == 2 + 3
    for (weight, next_numbers), place in zip(found, (0, 0, 1, 0), strict=True):
        assert torch.equal(weight, expected[place][0])
        assert torch.equal(next_numbers, expected[place][1])


def test_a_base_model_that_is_kept_is_the_one_of_the_files(base: RunConfig) -> None:
    labels = ("0", "1", "2")

    def loaded(seed: int) -> dict[str, torch.Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return load_base_model(base, labels).module.state_dict()

    expected = loaded(0), loaded(1)
    with modules_kept():
        for place in (0, 1, 1):
            found = loaded(place)
            assert found.keys() == expected[place].keys()
            assert all(torch.equal(found[name], tensor) for name, tensor in expected[place].items())
            for tensor in found.values():
                tensor.zero_()


def test_data_are_read_once_for_all_draws(base: RunConfig) -> None:
    parts = KeptParts()
    other = base.model_copy(update={"partition": base.partition.model_copy(update={"seed": 5})})
    first, second = load_federated_data(base, read=parts), load_federated_data(other, read=parts)
    for config, data in ((base, first), (other, second)):
        fresh = load_federated_data(config)
        assert list(fresh.clients) == list(data.clients)
        for name, held in fresh.clients.items():
            assert np.array_equal(held.training.inputs, data.clients[name].training.inputs)
            assert np.array_equal(held.validation.labels, data.clients[name].validation.labels)
    kept = parts(base, wanted=None, deals_by_label=True)
    assert parts(other, wanted=None, deals_by_label=True) is kept
    smaller = base.model_copy(update={"task": base.task.model_copy(update={"image_size": 8})})
    assert parts(smaller, wanted=None, deals_by_label=True) is not kept
