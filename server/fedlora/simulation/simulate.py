"""A whole federated run on one machine: data, workers, ServerApp, and the run folder."""

import logging
import shlex
import shutil
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast, get_args

from fedlora.client.worker.ledger import LEDGER_FOLDER
from fedlora.client.worker.source import WorkbenchSource
from fedlora.client.worker.sums.signer import SimulatedSigners
from fedlora.common.config import Occasion, RunConfig, idle_settings
from fedlora.common.errors import ConfigError, RunError, StoreError
from fedlora.common.messages import SiteDescription
from fedlora.common.run_file import load_run
from fedlora.common.run_folder import RUN_FILE
from fedlora.models.vocabulary import require_embeddings_by_files
from fedlora.server.record.events import Listener, ignore
from fedlora.server.record.round_report import RoundReport
from fedlora.server.run_method import method_of, naming
from fedlora.server.whole_run import Rounds, Run, whole_run
from fedlora.simulation.inprocess import refuse_inside_a_starting_worker
from fedlora.simulation.trainers import data_of_trainers
from fedlora.trackers import OpenTracker, load_trackers
from fedlora.training.data import FederatedData, federated_data_from, load_federated_data, with_found_range
from fedlora.training.data.given_examples import Dataset

if TYPE_CHECKING:
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp
    from torch import nn

    from fedlora.adapters import Adapter
    from fedlora.methods import Method
    from fedlora.models.base_model import BaseModel
    from fedlora.server.disk.store import RunFolder
    from fedlora.training.own_trainer.made import MakeTrainer
    from fedlora.training.tasks import Task

logger = logging.getLogger(__name__)

Engine = Literal["inprocess", "ray"]

_SUMS_FOLDER = "sums"


def engine_named(name: str) -> Engine:
    """Return the engine of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in get_args(Engine):
        raise ConfigError(f"--engine is {name!r}; expected {' or '.join(get_args(Engine))}")
    return cast(Engine, name)


class EngineRunner(Protocol):
    """Runs a ServerApp against `num_nodes` nodes, each of which runs the ClientApp; returns at the ServerApp's end."""

    def __call__(
        self,
        make_client_app: "Callable[[], ClientApp]",
        make_server_app: "Callable[[], ServerApp]",
        *,
        num_nodes: int,
        num_workers: int | None,
    ) -> None: ...


@dataclass(frozen=True, eq=False)
class SimulationResult:
    """What a run left: its folder, a report for every round from 0, and the newest global adapter."""

    folder: Path
    reports: tuple[RoundReport, ...]
    adapter: "Adapter"


def simulate(
    config: RunConfig | str | Path,
    *,
    out: str | Path | None = None,
    clients: Mapping[str, Dataset] | Sequence[str] | None = None,
    test: Dataset | Mapping[str, Dataset] = (),
    labels: Sequence[str] | None = None,
    model: "nn.Module | None" = None,
    heads: Sequence[str] = (),
    task: "Task[Any] | None" = None,
    make_trainer: "MakeTrainer | None" = None,
    method: "Method | None" = None,
    engine: Engine = "inprocess",
    num_workers: int | None = None,
    resume: bool = False,
    listener: Listener = ignore,
    track: Sequence[str] = (),
) -> SimulationResult:
    """Run all rounds, or with `resume` those that are left, and return what they left.

    Args:
        config: the run, or the path of its TOML file.
        out: the run's folder; without it runs/NAME, or the first of runs/NAME-2, -3 ... that is free.
        clients, test, labels: data sets of one's own in place of `[data]`; see `federated_data_from`.
        model: a model of one's own in place of `[model]`: its forward takes the task's batch (`pixel_values`, or
            `input_ids` and `attention_mask`) and returns logits. It is sent to the workers by pickle.
        heads: with `model`: paths of its modules that are trained whole, such as "classifier".
        task: with `model`: how examples become its inputs.
        make_trainer: returns a client's own `transformers.Trainer` from its name and the run, as for a site that joins
            with one; `clients` are their names then. It is a function of a script or module, which workers import.
        method: an aggregation method in place of the run's, one of ours or of one's own; run.toml, manifest and report
            name it, and only a run with the same one and the same settings is resumed.
        engine: "inprocess": worker processes of our own; "ray": Flower's simulation engine, on this machine or, with
            RAY_ADDRESS, in a cluster.
        num_workers: processes; without it one for each core, or for each GPU where there are any.
        listener: told what happens, in the calling process.
        track: names of trackers that the rounds' numbers are given to as they come, such as "tensorboard".

    Raises:
        FedloraError: what the user or the machine gave cannot work; one clear message.
    """
    refuse_inside_a_starting_worker()
    trackers = load_trackers(track)
    config = load_run(Path(config)) if isinstance(config, str | Path) else config
    config = _with_method(config, method)
    if model is None:
        require_embeddings_by_files(config)
    if (model is None) != (task is None):
        raise ValueError("a model of one's own needs its task, and a task its model")
    if make_trainer is not None:
        data = data_of_trainers(clients or (), make_trainer, is_other_given=bool(test or labels or model))
    elif clients is None or isinstance(clients, Mapping):
        data = load_federated_data(config) if clients is None else _own_data(config, clients, test, labels)
    else:
        raise ValueError(f"clients are the names {list(clients)}; expected a data set for each, or make_trainer")
    if listener is ignore:
        # With one, the notes come to it as what the clients say of themselves.
        for note in data.notes:
            logger.log(logging.WARNING if note.is_warning else logging.INFO, "%s", note.text)
    return simulate_over(
        data,
        config,
        out=choose_folder(config, out, resume=resume),
        is_own_data=clients is not None,
        base_model=None if model is None or task is None else _own_model(model, tuple(heads), task),
        make_trainer=make_trainer,
        method=method,
        engine=engine,
        num_workers=num_workers,
        resume=resume,
        listener=listener,
        trackers=trackers,
    )


def simulate_over(
    data: FederatedData,
    config: RunConfig,
    *,
    out: Path,
    is_own_data: bool = True,
    base_model: "BaseModel | None" = None,
    make_trainer: "MakeTrainer | None" = None,
    method: "Method | None" = None,
    engine: Engine | EngineRunner = "inprocess",
    num_workers: int | None = None,
    resume: bool = False,
    listener: Listener = ignore,
    trackers: Mapping[str, OpenTracker] | None = None,
    with_report: bool = True,
) -> SimulationResult:
    """Run all rounds over data that are dealt out, or with `resume` those that are left; see `simulate`.

    Args:
        config: names the method, also one that is given; see `naming`.
        is_own_data: whether the data are others than those that the run file names.
        make_trainer: makes each client's own trainer, which has the data; then `data` only says who the clients are.
        engine: one of ours by its name, or whatever runs the two apps.
        trackers: what opens them, by name.
        with_report: whether report.html is written.

    Raises:
        FedloraError: what the user or the machine gave cannot work; one clear message.
    """
    config = with_found_range(config, data)
    _require_known(config.lora.client_ranks, data)
    occasion = occasion_of(data, has_given_data=is_own_data)
    if make_trainer is not None:
        occasion = replace(occasion, num_test=None, num_validation=None)
    notes = idle_settings(config, occasion)
    source = WorkbenchSource(
        key=uuid.uuid4().hex,
        config=config,
        data=data if is_own_data and make_trainer is None else None,
        base_model=base_model,
        explain_failures=True,
        moments_folder=out.resolve() / "optimizer",
        sums_folder=out.resolve() / _SUMS_FOLDER,
        signer_of=SimulatedSigners(config.run.seed),
        ledger_folder=out.resolve() / LEDGER_FOLDER,
        make_trainer=make_trainer,
        client_names=tuple(data.clients),
    )
    run = Run(config, out, len(data.clients), shlex.join(sys.argv), notes, method, trackers or {})
    run_engine = _engine(engine) if isinstance(engine, str) else engine

    def simulated(rounds: Rounds) -> None:
        # The ServerApp is made once the workers are starting: torch is imported here while they import theirs.
        run_engine(source.make_client_app, rounds.server_app, num_nodes=len(data.clients), num_workers=num_workers)

    def write_report(
        folder: "RunFolder",
        reports: Sequence[RoundReport],
        sites: Mapping[str, SiteDescription],
        notes: tuple[str, ...],
    ) -> None:
        if not with_report:
            return
        from fedlora.simulation.gallery import write_simulation_report

        write_simulation_report(folder, config, data, reports, sites=sites, notes=notes)

    reached = whole_run(
        run, simulated, shown=nullcontext(listener), resume=resume, write_report=None if make_trainer else write_report
    )
    # What clients kept for the sums of the last round.
    shutil.rmtree(out / _SUMS_FOLDER, ignore_errors=True)
    if reached is None:
        raise RunError(f"{out}: the run ended without a round; this is a bug")
    return SimulationResult(out, reached.reports, reached.adapter)


def _with_method(config: RunConfig, method: "Method | None") -> RunConfig:
    """Return the run, which names the method that it is done with.

    Raises:
        ConfigError: that is one of somebody's own which is not given, or does not go with the run.
    """
    return naming(method or method_of(config), config)


def occasion_of(data: FederatedData, *, has_given_data: bool) -> Occasion:
    """Return what is known of a simulation over these data, given in Python or named in its run file."""
    return Occasion(
        "simulation",
        num_test=len(data.test),
        num_validation=sum(len(held.validation) for held in data.clients.values()),
        num_clients=len(data.clients),
        has_given_data=has_given_data,
    )


def _require_known(client_ranks: Mapping[str, int], data: FederatedData) -> None:
    """Raise ConfigError if `lora.client_ranks` names a client that the run does not have."""
    if unknown := sorted(client_ranks.keys() - data.clients.keys()):
        names = sorted(data.clients)
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        raise ConfigError(f"lora.client_ranks: no client is named {unknown[0]!r}; the run has {shown}")


def choose_folder(config: RunConfig, out: str | Path | None, *, resume: bool) -> Path:
    """Return `out`, or without it the first free of runs/NAME, runs/NAME-2 ...; to resume, the newest of these.

    Raises:
        StoreError: there is no run to resume.
    """
    if out is not None:
        if resume and not (Path(out) / RUN_FILE).is_file():
            raise StoreError(f"{out} holds no run to resume; leave out --resume to start one there")
        return Path(out)
    newest: Path | None = None
    number = 1
    while (folder := Path("runs") / (config.run.name + (f"-{number}" if number > 1 else ""))).exists():
        newest, number = folder, number + 1
    if not resume:
        return folder
    if newest is None:
        raise StoreError(f"{folder}: no run to resume; name its folder with --out, or leave out --resume")
    return newest


def _engine(name: Engine) -> EngineRunner:
    if name == "ray":
        from fedlora.simulation.ray_engine import run_on_ray

        return run_on_ray
    from fedlora.simulation.inprocess import run_in_process

    return run_in_process


def _own_data(
    config: RunConfig,
    clients: Mapping[str, Dataset],
    test: Dataset | Mapping[str, Dataset],
    labels: Sequence[str] | None,
) -> FederatedData:
    return federated_data_from(
        clients,
        test,
        labels=labels,
        image_size=config.task.image_size if config.task.kind == "image_classification" else None,
        pixel_range=getattr(config.task, "pixel_range", "auto"),
        validation=config.data.validation,
        seed=config.data_seed,
        kind=config.task.kind,
        data=config.data,
    )


def _own_model(model: "nn.Module", heads: tuple[str, ...], task: "Task[Any]") -> "BaseModel":
    from fedlora.models.base_model import BaseModel, fingerprint_of

    return BaseModel(model, heads, task, None, fingerprint_of(model))
