"""The in-process Grid with real worker processes: whose answers come, who dies and is replaced, what is left behind."""

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from flwr.app import ArrayRecord, Message
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity

from fedlora.common.errors import RunError
from fedlora.common.messages import WORKER_DIED, Failure, TrainReceipt, TrainRequest
from fedlora.common.records import from_record, to_record
from fedlora.server.rounds.inquiry import Addressed, Answer, ask, never
from fedlora.server.sites import FlowerSites
from fedlora.simulation.inprocess import InProcessGrid, worker_environments

HERE = Path(__file__).parent
DEADLINE_SECONDS = 120.0
# As in a simulation, whose tests share this process and with it the one from which workers are forked.
PRELOAD = ("fedlora.client.worker.app",)

StartGrid = Callable[..., InProcessGrid]


@pytest.fixture
def start_grid(monkeypatch: pytest.MonkeyPatch) -> Iterator[StartGrid]:
    """Return a function that starts a grid over an app of small_apps; it is closed at the test's end."""
    monkeypatch.syspath_prepend(str(HERE))
    import small_apps

    grids: list[InProcessGrid] = []

    def start(
        make: str = "make_obedient_app", *, num_nodes: int = 1, num_workers: int = 1,
        environments: Sequence[Mapping[str, str]] | None = None,
    ) -> InProcessGrid:  # fmt: skip
        make_app, environments = getattr(small_apps, make), environments or [{}] * num_workers
        grids.append(InProcessGrid(make_app, num_nodes=num_nodes, environments=environments, preload=PRELOAD))
        return grids[-1]

    yield start
    for grid in grids:
        grid.close()


def request(run: str, *, round: int = 1, attempt: int = 0) -> TrainRequest:
    return TrainRequest(run, round, attempt, seed=0, num_rounds=1, validation_examples=0, adapter=b"tensors")


def addressed(node: int, run: str = "answer", *, round: int = 1) -> Addressed:
    return Addressed(str(node), lambda attempt: request(run, round=round, attempt=attempt))


def conversation(grid: InProcessGrid, requests: Mapping[str, Addressed]) -> Iterator[Answer[TrainReceipt]]:
    nodes = {str(node): node for node in grid.get_node_ids()}
    return ask(FlowerSites(grid, num_sites=len(nodes), nodes=nodes), requests, expected=TrainReceipt, deadline=never)


def receipt_of(grid: InProcessGrid, node: int = 1, run: str = "answer") -> TrainReceipt:
    (answer,) = conversation(grid, {"x": addressed(node, run)})
    assert isinstance(answer.content, TrainReceipt), answer.content
    return answer.content


def failure_of(grid: InProcessGrid, node: int, run: str) -> Answer[Failure]:
    (answer,) = conversation(grid, {"x": addressed(node, run)})
    assert isinstance(answer.content, Failure), answer.content
    return answer  # type: ignore[return-value]


def send(grid: InProcessGrid, run: str) -> Message:
    """Return the reply to one message to node 1."""
    (reply,) = grid.send_and_receive([Message(to_record(request(run)), 1, "train")], timeout=DEADLINE_SECONDS)
    return reply


def wait_until(is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not is_so():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def is_gone(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    return True


def test_few_workers_serve_many_nodes_each_with_its_own_answer(start_grid: StartGrid) -> None:
    grid = start_grid(num_nodes=100, num_workers=2)
    assert list(grid.get_node_ids()) == list(range(1, 101))
    answers = list(conversation(grid, {f"client {node}": addressed(node) for node in grid.get_node_ids()}))
    receipts = [answer.content for answer in answers if isinstance(answer.content, TrainReceipt)]
    assert sorted(answer.key for answer in answers) == sorted(f"client {node}" for node in range(1, 101))
    assert [answer.key for answer in answers] == [receipt.client for receipt in receipts]
    assert {receipt.adapter for receipt in receipts} == {b"tensors"}
    assert len({receipt.loss for receipt in receipts}) == 2


def test_an_answer_is_there_before_the_slower_ones(start_grid: StartGrid, tmp_path: Path) -> None:
    grid = start_grid(num_nodes=2, num_workers=2)
    answers = conversation(grid, {"slow": addressed(1, f"wait {tmp_path}"), "fast": addressed(2)})
    assert next(answers).key == "fast"
    (tmp_path / "go").touch()
    assert [answer.key for answer in answers] == ["slow"]


def test_two_nodes_work_at_the_same_time(start_grid: StartGrid, tmp_path: Path) -> None:
    grid = start_grid(num_nodes=2, num_workers=2)
    run = f"meet {tmp_path}"
    answers = conversation(grid, {"a": addressed(1, run, round=1), "b": addressed(2, run, round=2)})
    assert all(isinstance(answer.content, TrainReceipt) for answer in answers)


def test_a_nodes_messages_are_worked_on_one_at_a_time_in_order_and_with_its_state(start_grid: StartGrid) -> None:
    grid = start_grid(num_nodes=2, num_workers=2)
    requests = {f"{node}/{number}": addressed(node, round=number) for number in range(1, 21) for node in (1, 2)}
    answers = list(conversation(grid, requests))
    for node in (1, 2):
        mine = [answer.content for answer in answers if answer.key.startswith(f"{node}/")]
        receipts = sorted((r for r in mine if isinstance(r, TrainReceipt)), key=lambda receipt: receipt.round)
        assert [receipt.num_steps for receipt in receipts] == list(range(1, 21))
        for one, following in itertools.pairwise(receipts):
            assert one.seconds["backward"] <= following.seconds["forward"]


def test_a_worker_is_resident(start_grid: StartGrid) -> None:
    grid = start_grid()
    assert len({receipt_of(grid).loss for _ in range(5)}) == 1


def test_a_worker_has_its_own_environment(start_grid: StartGrid) -> None:
    grid = start_grid(num_nodes=2, environments=[{"THE_THREAD": "7"}])
    assert receipt_of(grid).seconds["optimizer"] == 7
    assert "THE_THREAD" not in os.environ


@pytest.mark.parametrize(("run", "text"), [("raise", "ValueError: as was asked"), ("forget", "TypeError: .* NoneType")])
def test_an_app_that_fails_is_answered_for_and_its_worker_and_its_state_survive(
    start_grid: StartGrid, run: str, text: str
) -> None:
    grid = start_grid()
    before = receipt_of(grid)
    reply = send(grid, run)
    assert reply.has_error()
    assert reply.error.code == 2
    after = receipt_of(grid)
    assert after.loss == before.loss
    assert after.num_steps == before.num_steps + 1
    failure = failure_of(grid, 1, run).content
    with pytest.raises(RunError, match=text):
        raise RunError(failure.text)


@pytest.mark.parametrize(("run", "code"), [("exit", 4), ("leave", 3)])
def test_a_worker_that_dies_at_every_attempt_is_a_failure_and_the_grid_goes_on(
    start_grid: StartGrid, run: str, code: int
) -> None:
    grid = start_grid(num_nodes=2)
    assert failure_of(grid, 1, run) == Answer(
        "x", 2, Failure(WORKER_DIED, f"the worker process died (exit code {code})")
    )
    assert receipt_of(grid, 2).client == "client 2"


def test_a_worker_that_dies_twice_is_replaced_and_the_third_answers(start_grid: StartGrid) -> None:
    (answer,) = conversation(start_grid(), {"x": addressed(1, "exit-at-first")})
    assert answer.attempt == 2
    assert isinstance(answer.content, TrainReceipt)
    assert answer.content.attempt == 2


def test_a_worker_killed_in_the_middle_of_its_work_is_replaced(start_grid: StartGrid, tmp_path: Path) -> None:
    grid = start_grid()

    def kill() -> None:
        wait_until(lambda: list(tmp_path.iterdir()))
        os.kill(int(next(tmp_path.iterdir()).name), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    (answer,) = conversation(grid, {"x": addressed(1, f"loop {tmp_path}")})
    killer.join()
    assert answer.attempt == 1
    assert isinstance(answer.content, TrainReceipt)


def test_a_worker_killed_in_the_middle_of_its_answer_is_replaced(start_grid: StartGrid) -> None:
    grid = start_grid()
    receipt_of(grid)
    (worker,) = multiprocessing.active_children()
    (message_id,) = grid.push_messages([Message(to_record(request("die-while-answering")), 1, "train")])
    wait_until(lambda: not worker.is_alive())  # nobody reads the pipe, so that its answer is stuck half-way
    (torn,) = grid.pull_messages([message_id])
    assert torn.error.reason == "the worker process died (exit code -9)"
    assert receipt_of(grid).client == "client 1"


def test_a_worker_killed_while_idle_is_replaced_unnoticed(start_grid: StartGrid) -> None:
    grid = start_grid()
    before = receipt_of(grid)
    for _ in range(4):
        (worker,) = multiprocessing.active_children()
        os.kill(int(before.loss), signal.SIGKILL)
        wait_until(lambda worker=worker: not worker.is_alive())  # type: ignore[misc]
        after = receipt_of(grid)
        assert after.loss != before.loss
        before = after


def test_a_worker_leaves_ctrl_c_to_its_parent(start_grid: StartGrid) -> None:
    grid = start_grid()
    before = receipt_of(grid)
    os.kill(int(before.loss), signal.SIGINT)
    assert receipt_of(grid).loss == before.loss


def test_workers_that_cannot_start_end_the_conversation(start_grid: StartGrid) -> None:
    grid = start_grid("make_nothing")
    assert failure_of(grid, 1, "answer").content.code == WORKER_DIED
    with pytest.raises(RunError, match=r"workers die as they start \(exit code 1\)"):
        wait_until(lambda: grid.pull_messages(["none"]))


def test_an_app_that_cannot_be_sent_leaves_no_worker() -> None:
    identity = TaskIdentity._run_id
    grid = InProcessGrid(lambda: None, num_nodes=1, environments=[{}], preload=PRELOAD)  # type: ignore[arg-type, return-value]
    with pytest.raises(Exception, match="pickle"), grid:
        send(grid, "answer")
    assert multiprocessing.active_children() == []
    assert TaskIdentity._run_id == identity


def test_flowers_own_fedavg_runs_unmodified(start_grid: StartGrid) -> None:
    grid = start_grid("make_averaging_app", num_nodes=3, num_workers=2)
    strategy = FedAvg(min_available_nodes=3)
    result = strategy.start(grid, ArrayRecord([np.zeros((2, 3))]), num_rounds=3, timeout=DEADLINE_SECONDS)
    (final,) = result.arrays.to_numpy_ndarrays()
    np.testing.assert_allclose(final, np.full((2, 3), 3.0))  # each round adds the mean of 0, 1 and 2
    levels = {number: metrics["level"] for number, metrics in result.evaluate_metrics_clientapp.items()}
    assert levels == pytest.approx({1: 1.0, 2: 2.0, 3: 3.0})


def test_messages_that_take_longer_than_the_timeout_are_not_waited_for(start_grid: StartGrid, tmp_path: Path) -> None:
    grid = start_grid(num_nodes=2, num_workers=2)
    contents = {1: f"wait {tmp_path}", 2: "answer"}
    messages = [Message(to_record(request(run)), node, "train") for node, run in contents.items()]
    replies = list(grid.send_and_receive(messages, timeout=1.0))
    assert [from_record(reply.content, TrainReceipt).client for reply in replies] == ["client 2"]


def test_a_closed_grid_leaves_no_process_even_of_busy_workers(start_grid: StartGrid, tmp_path: Path) -> None:
    grid = start_grid(num_nodes=2, num_workers=2)
    grid.push_messages([Message(to_record(request(f"loop {tmp_path}")), node, "train") for node in (1, 2)])
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    workers = [psutil.Process(int(entry.name)) for entry in tmp_path.iterdir()]
    grid.close()
    assert all(is_gone(worker) for worker in workers)
    assert multiprocessing.active_children() == []
    grid.close()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts the open files as Linux shows them")
def test_grids_and_replaced_workers_leave_no_open_file(start_grid: StartGrid) -> None:
    def use() -> int:
        grid = start_grid(num_workers=2, num_nodes=2)
        assert receipt_of(grid, run="exit-at-first").client == "client 1"
        grid.close()
        return len(os.listdir("/proc/self/fd"))

    first = use()
    assert [use() for _ in range(5)] == [first] * 5


def test_workers_in_endless_loops_vanish_with_their_killed_parent(tmp_path: Path) -> None:
    family: list[psutil.Process] = []
    with subprocess.Popen([sys.executable, str(HERE / "abandoned_grid.py"), str(tmp_path)]) as parent:
        try:
            wait_until(lambda: len(list(tmp_path.iterdir())) == 2 or parent.poll() is not None)
            family += psutil.Process(parent.pid).children(recursive=True)
        finally:
            parent.kill()
    assert {int(entry.name) for entry in tmp_path.iterdir()} <= {process.pid for process in family}
    try:
        wait_until(lambda: all(is_gone(process) for process in family))
    finally:
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def test_a_script_that_starts_itself_again_in_its_workers_is_told_what_is_missing() -> None:
    command = [sys.executable, str(HERE / "unguarded_script.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * DEADLINE_SECONDS, check=True)
    assert done.stdout == (
        "the worker process died (exit code 1); it said last: fedlora.common.errors.RunError: a simulation was started "
        'while its own workers were starting; put the call under: if __name__ == "__main__":\n'
    )
    assert "workers: fedlora.common.errors.RunError: a simulation was started" in done.stderr


def test_there_are_never_more_workers_than_nodes() -> None:
    assert len(worker_environments(3, 8)) == 3
    assert len(worker_environments(8, 3)) == 3
    assert 1 <= len(worker_environments(1000, None)) <= max(os.cpu_count() or 1, 16)
