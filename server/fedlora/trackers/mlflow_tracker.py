"""MLflow: the server that MLFLOW_TRACKING_URI names, else a database in the run's folder, `mlflow.db`.

mlflow ui --backend-store-uri sqlite:///runs/digits/mlflow.db
"""

import hashlib
import logging
import os
import re
from collections.abc import Mapping
from typing import Any

from fedlora.trackers.tracker import TrackedRun

_ADDRESS = "MLFLOW_TRACKING_URI"
_RUN_ID = "fedlora.run_id"
_IN_EVERY_ROUND = "seconds/round"
_UNSPEAKABLE = re.compile(r"[^\w\-. :/]")
# What an address would take for something else than a part of a path.
_NO_PATH = re.compile(r"[?#%]")


class MLflow:
    """Writes the metrics of one of MLflow's runs."""

    def __init__(self, client: Any, run: str) -> None:
        """`run` is MLflow's id of it."""
        self._client = client
        self._run = run
        history = client.get_metric_history(run, _IN_EVERY_ROUND)
        self.last_round = max((metric.step for metric in history), default=-1)

    def write(self, round: int, numbers: Mapping[str, float]) -> None:
        """Write a round's numbers."""
        for name, number in numbers.items():
            self._client.log_metric(self._run, metric_name(name), number, step=round)

    def close(self, *, is_finished: bool) -> None:
        """Say whether the run is over."""
        self._client.set_terminated(self._run, "FINISHED" if is_finished else "KILLED")


def metric_name(name: str) -> str:
    """Return a number's name as MLflow takes it: a group's may hold anything, and MLflow reads `/` and `..` as a path.

    Where something had to be replaced, a few digits tell it from others that would come out alike.
    """
    *parts, last = name.split("/", 2)
    clean = _UNSPEAKABLE.sub("_", last).replace("/", "_")
    if clean.strip(".") == "" or clean != last:
        clean = f"{clean.replace('.', '_')}-{hashlib.sha256(last.encode()).hexdigest()[:6]}"
    return "/".join((*parts, clean))


def open_tracker(run: TrackedRun) -> MLflow:
    """Return MLflow's run for this one, in the experiment that is called as the run file calls it."""
    # A run tells nobody of itself but whom it was told to.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    is_elsewhere = bool(os.environ.get(_ADDRESS))
    database = f"sqlite:///{run.folder.resolve() / 'mlflow.db'}"
    if not is_elsewhere and _NO_PATH.search(database):
        raise ValueError(f"{run.folder}: MLflow opens no database under a name with ?, # or %; set {_ADDRESS}")
    client = MlflowClient(tracking_uri=os.environ[_ADDRESS] if is_elsewhere else database)
    experiment = client.get_experiment_by_name(run.name)
    if experiment is None:
        files = None if is_elsewhere else (run.folder.resolve() / "mlflow-artifacts").as_uri()
        experiment = client.get_experiment(client.create_experiment(run.name, artifact_location=files))
    found = client.search_runs([experiment.experiment_id], f"tags.`{_RUN_ID}` = '{run.id}'")
    if found:
        client.update_run(found[0].info.run_id, status="RUNNING")
        return MLflow(client, found[0].info.run_id)
    made = client.create_run(experiment.experiment_id, tags={_RUN_ID: run.id}, run_name=run.id[:8]).info.run_id
    for key, value in run.settings.items():
        client.log_param(made, key, value)
    return MLflow(client, made)
