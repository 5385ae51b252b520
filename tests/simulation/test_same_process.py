"""The Grid that serves its nodes itself: who is asked answers, in this process and in order."""

import os
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity

from fedlora.common.messages import WORKER_DIED, Failure, TrainReceipt, TrainRequest
from fedlora.server.rounds.inquiry import Addressed, Answer, ask, never
from fedlora.server.sites import FlowerSites
from fedlora.simulation.same_process import SameProcessGrid, run_in_same_process

HERE = Path(__file__).parent


@pytest.fixture
def obedient_app(monkeypatch: pytest.MonkeyPatch) -> ClientApp:
    monkeypatch.syspath_prepend(str(HERE))
    import small_apps

    return small_apps.make_obedient_app()


def answers_of(grid: Grid, *questions: tuple[int, str]) -> list[Answer[TrainReceipt]]:
    nodes = {str(node): node for node in grid.get_node_ids()}
    requests = {
        f"{place}": Addressed(
            str(node),
            lambda attempt, run=run: TrainRequest(run, 1, attempt, 0, 1, 0, b"tensors"),  # type: ignore[misc]
        )
        for place, (node, run) in enumerate(questions)
    }
    sites = FlowerSites(grid, num_sites=len(nodes), nodes=nodes)
    return list(ask(sites, requests, expected=TrainReceipt, deadline=never))


def run_with(app: ClientApp, main: object, *, num_nodes: int) -> None:
    server_app = ServerApp()
    server_app.main()(main)  # type: ignore[type-var]
    run_in_same_process(lambda: app, lambda: server_app, num_nodes=num_nodes, num_workers=7)


def test_every_node_answers_here_in_order_and_with_its_state(obedient_app: ClientApp) -> None:
    found: list[Answer[TrainReceipt]] = []

    def main(grid: Grid, _context: Context) -> None:
        assert list(grid.get_node_ids()) == [1, 2, 3]
        found.extend(answers_of(grid, (2, "answer"), (1, "answer"), (2, "answer"), (3, "answer")))

    before = TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id
    run_with(obedient_app, main, num_nodes=3)
    receipts = [answer.content for answer in found if isinstance(answer.content, TrainReceipt)]
    assert [answer.key for answer in found] == ["0", "1", "2", "3"]
    assert [receipt.client for receipt in receipts] == ["client 2", "client 1", "client 2", "client 3"]
    assert [receipt.num_steps for receipt in receipts] == [1, 1, 2, 1]
    assert {receipt.loss for receipt in receipts} == {float(os.getpid())}
    assert (TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id) == before


def test_what_an_app_raises_is_answered_and_what_ends_the_process_ends_the_run(obedient_app: ClientApp) -> None:
    def main(grid: Grid, _context: Context) -> None:
        (answer,) = answers_of(grid, (1, "raise"))
        assert isinstance(answer.content, Failure)
        assert (answer.content.code, "as was asked" in answer.content.text) == (WORKER_DIED, True)
        answers_of(grid, (1, "leave"))
        raise AssertionError("goes on after the end")

    before = TaskIdentity._task_id
    with pytest.raises(SystemExit) as ended:
        run_with(obedient_app, main, num_nodes=1)
    assert ended.value.code == 3
    assert TaskIdentity._task_id == before


def test_a_message_that_was_taken_back_is_not_worked_on(obedient_app: ClientApp) -> None:
    grid = SameProcessGrid(obedient_app, num_nodes=1)
    assert list(grid.pull_messages(["1", "2"])) == []


def test_flowers_own_fedavg_runs_unmodified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    import small_apps

    levels: list[float] = []

    def main(grid: Grid, _context: Context) -> None:
        strategy = FedAvg(min_available_nodes=4, min_train_nodes=4, min_evaluate_nodes=4)
        result = strategy.start(grid, ArrayRecord([np.zeros((2, 3), np.float32)]), num_rounds=2, timeout=60)
        levels.append(float(result.arrays.to_numpy_ndarrays()[0].mean()))

    run_with(small_apps.make_averaging_app(), main, num_nodes=4)
    assert levels == [3.0]
