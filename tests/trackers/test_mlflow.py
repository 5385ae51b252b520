"""MLflow's database in the run's folder, read by MLflow."""

from pathlib import Path
from typing import Any

import pytest
from tracked import last, report, track

from fedlora.trackers import load_trackers

pytest.importorskip("mlflow", reason="mlflow is not installed: fedlora[mlflow]")
pytestmark = pytest.mark.filterwarnings("default")  # MLflow's own.


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def mlflow_runs(folder: Path) -> tuple[Any, list[Any]]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tracked")
    return client, list(client.search_runs([experiment.experiment_id]))


def test_rounds_of_two_processes_are_one_run_with_the_run_files_settings(tmp_path: Path) -> None:
    trackers = load_trackers(["mlflow"])
    assert track(tmp_path, trackers, new=(report(0), report(1))) == []
    _, (stopped,) = mlflow_runs(tmp_path)
    assert stopped.info.status == "KILLED"
    assert track(tmp_path, trackers, known=(report(0), report(1), report(2)), new=(report(3), last(4))) == []
    client, (run,) = mlflow_runs(tmp_path)
    assert (run.info.status, run.data.params["federation.rounds"]) == ("FINISHED", "4")
    losses = client.get_metric_history(run.info.run_id, "held_out/loss")
    assert [(metric.step, metric.value) for metric in losses] == [(number, float(number)) for number in range(5)]
    validation = client.get_metric_history(run.info.run_id, "validation/loss")
    assert sorted(metric.step for metric in validation) == [0, 1, 2, 3, 4]
