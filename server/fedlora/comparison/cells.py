"""One run of a comparison, from its run file to its result; the references too, which are no federations."""

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import ClassVar, cast

import numpy as np

from fedlora.aggregation import FedIT
from fedlora.common.config import RunConfig
from fedlora.common.errors import FedloraError, StoreError, one_line
from fedlora.common.files import client_file_name
from fedlora.common.run_folder import RUN_FILE
from fedlora.comparison.grid import CENTRALISED, HEAD_ONLY, LOCAL_ONLY, Cell
from fedlora.comparison.measured import result_of
from fedlora.comparison.results import Course, RunResult
from fedlora.methods import Method, RoundPlan
from fedlora.server.record.round_report import RoundReport
from fedlora.server.rounds.draw import share
from fedlora.server.run_method import naming
from fedlora.simulation.same_process import run_in_same_process
from fedlora.simulation.simulate import simulate_over
from fedlora.training.data import ClientData, Examples, FederatedData, load_federated_data
from fedlora.training.data.examples import Inputs
from fedlora.training.data.federated import ReadParts
from fedlora.training.data.run_source import read_parts

EVERYONE = "everyone"


class HeadOnly(FedIT):
    """Plain averages of what is trained beside the pairs: B stays zero, and so A has no gradient."""

    name: ClassVar[str] = "head_only"

    def plan(self, _round: int, /) -> RoundPlan:
        return RoundPlan(trains=("A",))


def run_cell(cell: Cell, base: RunConfig, folder: Path, *, read: ReadParts = read_parts) -> RunResult:
    """Do the run of a cell, or what is left of it, and return its result; one that cannot end has a fault.

    All of it happens in this process, which may keep for the next run what both need. An error that is none of ours is
    a fault too, for it would end every worker in turn; its traceback goes to stderr.

    Args:
        folder: the comparison's.
        read: gives what the run file names as data; one that keeps it saves the next run the reading.

    Raises:
        StoreError: the folder cannot be used.
    """
    try:
        config = cell.config(base)
        data = load_federated_data(config, read=read)
        path = folder / cell.folder
        reference = cell.variant.method if cell.variant.kind == "reference" else ""
        if reference == LOCAL_ONLY:
            return _alone(data, config, path, cell)
        if reference == CENTRALISED:
            whole = _with_batches_of_all(config, len(data.clients))
            reports = _reports(pooled(data), whole, path, method=FedIT())
        elif reference == HEAD_ONLY:
            fresh = config.lora.model_copy(update={"init": "default"})  # Of which B is zero.
            reports = _reports(data, config.model_copy(update={"lora": fresh}), path, method=HeadOnly())
        else:
            reports = _reports(data, config, path)
    except StoreError:
        raise
    except FedloraError as error:
        return _failed(cell, one_line(error))
    except Exception as error:
        traceback.print_exc()
        return _failed(cell, f"{type(error).__name__}: {one_line(error)}")
    return result_of(reports, variant=cell.variant.name, draw=cell.draw, folder=cell.folder)


def _failed(cell: Cell, why: str) -> RunResult:
    return RunResult(cell.variant.name, cell.draw, cell.folder, Course(*[()] * 6), fault=why)


def pooled(data: FederatedData) -> FederatedData:
    """Return the same data in one hand: all clients' training examples, and all their validation examples."""
    held = list(data.clients.values())
    everyone = ClientData(_joined([one.training for one in held]), _joined([one.validation for one in held]).by_label())
    return replace(data, clients={EVERYONE: everyone})


def _alone(data: FederatedData, config: RunConfig, path: Path, cell: Cell) -> RunResult:
    """Return the mean over clients of what each comes to by itself, on the whole test set; `clients` on its own group.

    The runs of the clients lie below the cell's folder.
    """
    one = config.model_copy(update={"lora": config.lora.model_copy(update={"client_ranks": {}})})
    results = {
        name: result_of(
            _reports(replace(data, clients={name: held}), one, path / client_file_name(name), method=FedIT()),
            variant=cell.variant.name,
            draw=cell.draw,
            folder=cell.folder,
        )
        for name, held in data.clients.items()
    }
    found = list(results.values())
    own = {name: result.groups[name] for name, result in results.items() if name in result.groups}
    groups = {name: fmean(result.groups[name] for result in found) for name in found[0].groups}
    return RunResult(
        cell.variant.name,
        cell.draw,
        cell.folder,
        _mean_course([result.course for result in found]),
        groups,
        own or {name: score for result in found for name, score in result.clients.items()},
        client_seconds=sum(result.client_seconds for result in found),
    )


def _reports(
    data: FederatedData, config: RunConfig, path: Path, *, method: Method | None = None
) -> Sequence[RoundReport]:
    config = config if method is None else naming(method, config)
    path.parent.mkdir(parents=True, exist_ok=True)
    return simulate_over(
        data,
        config,
        out=path,
        method=method,
        engine=run_in_same_process,
        resume=(path / RUN_FILE).is_file(),
        listener=_hear_nothing,
        with_report=False,
    ).reports


def _hear_nothing(_event: object) -> None:
    """Listen to nothing; the data's notes are said once, when the comparison begins."""


def _with_batches_of_all(config: RunConfig, num_clients: int) -> RunConfig:
    """Return the run with as many examples in a step as the clients of a round have in theirs, and one optimiser."""
    settings = config.federation
    cohort = settings.cohort or share(settings.fraction, num_clients)
    whole = {"batch_size": config.train.batch_size * cohort, "optimizer_state": "keep"}
    train = config.train.model_copy(update=whole)
    federation = settings.model_copy(update={"cohort": None, "fraction": 1.0})
    lora = config.lora.model_copy(update={"client_ranks": {}})
    return config.model_copy(update={"train": train, "federation": federation, "lora": lora})


def _joined(parts: Sequence[Examples]) -> Examples:
    pictures = [part.inputs for part in parts if isinstance(part.inputs, np.ndarray)]
    listed = [value for part in parts if isinstance(part.inputs, list) for value in part.inputs]
    return Examples(
        np.concatenate(pictures) if pictures else cast(Inputs, listed),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.groups for part in parts]),
    )


def _mean_course(courses: Sequence[Course]) -> Course:
    """Return the mean by round; a course that ended before others stays where it ended."""
    num_rounds = max(len(course.metric) for course in courses)

    def mean(name: str) -> tuple[float, ...]:
        found = [getattr(course, name) for course in courses]
        whole = [(*values, *values[-1:] * (num_rounds - len(values))) for values in found]
        return tuple(map(fmean, zip(*whole, strict=True)))

    shown: Mapping[str, tuple[float, ...]] = {name: mean(name) for name in ("metric", "loss", "validation")}
    nothing = tuple(0.0 for _ in shown["metric"])
    unknown = tuple(float("nan") for _ in nothing)
    return Course(**shown, megabytes=nothing, error_before=unknown, error_after=unknown)
