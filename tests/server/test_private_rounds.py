"""A budget is spent on disk before noise is drawn, never twice for one adapter, never forgotten, and never passed."""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from flwr.supercore.task_identity import TaskIdentity

sys.path.append(str(Path(__file__).parent))

from peers import LORA, Behaviour, Peer, honest, make_grid

from fedlora.adapters import pack, unpack
from fedlora.common.config import RunConfig
from fedlora.common.errors import StoreError
from fedlora.common.messages import TrainReceipt
from fedlora.common.phases import announce
from fedlora.common.wire import Receipt
from fedlora.privacy.accounting import Release, epsilon_of
from fedlora.server.disk.store import Checkpoint, RunFolder
from fedlora.server.record.events import Event, Noted, RunStarted
from fedlora.server.rounds import private_rounds
from fedlora.server.rounds.federated_run import FederatedRun
from fedlora.server.run_method import method_of
from fedlora.server.run_privacy import client_privacy_of
from fedlora.server.sites import LastingSites
from fedlora.v1 import session_pb2


class Died(Exception):  # noqa: N818 (what happened)
    """In place of the process."""


@pytest.fixture(autouse=True)
def identity() -> Iterator[None]:
    """Give back what a Grid sets in Flower."""
    before = (TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id)
    yield
    TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id = before


def config_of(*, rounds: int = 3, **privacy: object) -> RunConfig:
    budget = {"unit": "client", "noise_multiplier": 4.0, "clip": [1.0, 0.1], **privacy}
    return RunConfig.model_validate(
        {
            "federation": {"rounds": rounds, "sites": 2, "weighting": "uniform"},
            "data": {"labels": ["a", "b"]},
            "lora": LORA,
            "aggregation": {"method": "lora_fair"},
            "privacy": {key: value for key, value in budget.items() if value is not None},
        }
    )


def loud(peer: Peer, request: session_pb2.Request) -> Receipt | None:
    """Train a million times as far as anybody else."""
    receipt = honest(peer, request)
    if not isinstance(receipt, TrainReceipt):
        return receipt
    update = unpack(receipt.adapter)
    layers = {path: replace(layer, B=1e6 * layer.B) for path, layer in update.layers.items()}
    return replace(receipt, adapter=pack(replace(update, layers=layers)))


def run_on(
    folder: Path, config: RunConfig, behaviours: Mapping[str, Behaviour] | None = None
) -> tuple[Checkpoint, list[Event]]:
    """Do what is left of a run, and return where it stands and what was told."""
    told: list[Event] = []
    grid, exchange = make_grid(folder, lambda _event: None)
    behaviours = behaviours or {"a": honest, "b": honest}
    for name, behaviour in behaviours.items():
        Peer(grid, exchange, name, behaviour)
    method = method_of(config)
    run = FederatedRun(
        config,
        method,
        RunFolder(folder),
        privacy=client_privacy_of(config, method),
        num_sites=len(behaviours),
        command="",
        listener=told.append,
    )
    run.start(LastingSites(grid))
    checkpoint = RunFolder(folder).latest()
    assert checkpoint is not None
    return checkpoint, told


def dies_at(monkeypatch: pytest.MonkeyPatch, phase: str, number: int) -> None:
    """Have the process die at a phase of a round's noise, the how-manieth time it comes there."""
    seen = []

    def announce_or_die(name: str) -> None:
        seen.append(name)
        if seen.count(phase) == number and name == phase:
            raise Died
        announce(name)

    monkeypatch.setattr(private_rounds, "announce", announce_or_die)


def spent(folder: Path) -> list[tuple[int, bool]]:
    """Return the round of each attempt that the record has, and whether an adapter came of it."""
    record = json.loads((folder / "privacy.json").read_text())
    return [(each["round"], bool(each["adapter_sha256"])) for each in record["spent"]]


def lines(told: list[Event]) -> list[str]:
    return [line for event in told if isinstance(event, Noted) for line in event.lines]


def test_each_round_says_what_is_spent(tmp_path: Path) -> None:
    last, told = run_on(tmp_path, config_of())
    expected = [0.0] + [epsilon_of([Release(4.0, 2 * number)], delta=1e-5) for number in (1, 2, 3)]
    assert [report.epsilon for report in last.reports] == pytest.approx(expected)
    assert [len(report.num_clipped) for report in last.reports] == [0, 2, 2, 2]
    assert spent(tmp_path) == [(1, True), (2, True), (3, True)]
    assert all(report.aggregation is None for report in last.reports)
    assert not lines(told)


def test_no_client_decides_on_what_another_has_sent(tmp_path: Path) -> None:
    behaviours = {"a": honest, "b": honest, "c": honest, "loud": loud}
    last, _ = run_on(tmp_path, config_of(rounds=1), behaviours)
    report = last.reports[-1]
    assert (sorted(report.clients), dict(report.refused)) == (sorted(behaviours), {})
    assert report.num_clipped[0] >= 1
    B = last.adapter.layers["block.q_proj"].B
    # Nobody moves the mean by more than 1 / 4, and the noise on it is 4 / 4.
    assert float(B.norm()) < 1 + 8 * B.numel() ** 0.5


def test_a_run_file_that_asks_for_noise_is_not_run_without(tmp_path: Path) -> None:
    config = config_of()
    with pytest.raises(ValueError, match="expected both or neither"):
        FederatedRun(config, method_of(config), RunFolder(tmp_path), num_sites=2, command="")


def test_two_runs_of_one_seed_have_other_noise(tmp_path: Path) -> None:
    first, second = (run_on(tmp_path / name, config_of(rounds=1))[0] for name in ("first", "second"))
    assert first.reports[0].adapter_sha256 == second.reports[0].adapter_sha256
    assert first.stored.sha256 != second.stored.sha256


def test_the_run_ends_before_a_round_that_would_pass_the_budget_and_says_so_again(tmp_path: Path) -> None:
    two = epsilon_of([Release(4.0, 4)], delta=1e-5)
    config = config_of(rounds=9, epsilon=two * 1.01)
    last, told = run_on(tmp_path, config)
    assert (last.round, last.reports[-1].ended_early) == (2, True)
    said = (
        f"the run ended after round 2 of 9: privacy.epsilon = {two * 1.01:g} is its budget, of which {two:.3f} is "
        "spent, and another round would pass it; its adapter is whole"
    )
    assert lines(told) == [said]
    again, told = run_on(tmp_path, config)
    assert (again.round, again.stored.sha256, lines(told)) == (2, last.stored.sha256, [said])
    assert spent(tmp_path) == [(1, True), (2, True)]


def test_a_budget_alone_has_the_noise_that_all_rounds_take(tmp_path: Path) -> None:
    config = config_of(noise_multiplier=None, epsilon=2.0)
    last, _ = run_on(tmp_path, config)
    assert last.round == 3
    assert last.reports[-1].epsilon is not None
    assert 1.99 < last.reports[-1].epsilon <= 2.0


def test_a_run_with_a_budget_alone_that_is_prolonged_has_nothing_left_to_spend(tmp_path: Path) -> None:
    before, _ = run_on(tmp_path, config_of(noise_multiplier=None, epsilon=2.0))
    after, told = run_on(tmp_path, config_of(rounds=5, noise_multiplier=None, epsilon=2.0))
    assert (after.round, after.stored.sha256) == (3, before.stored.sha256)
    assert after.reports[-1].ended_early
    assert "another round would pass it" in lines(told)[0]


@pytest.mark.parametrize(
    ("phase", "attempts"),
    [
        ("spend", [(1, True), (2, True), (3, True)]),
        ("add noise", [(1, True), (2, False), (2, True), (3, True)]),
        ("release", [(1, True), (2, False), (2, True), (3, True)]),
    ],
)
def test_a_round_that_is_cut_off_costs_twice_once_it_is_spent_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str, attempts: list[tuple[int, bool]]
) -> None:
    with monkeypatch.context() as death:
        dies_at(death, phase, 2)
        with pytest.raises(Died):
            run_on(tmp_path, config_of())
    last, _ = run_on(tmp_path, config_of())
    assert last.round == 3
    assert spent(tmp_path) == attempts
    assert last.reports[-1].epsilon == pytest.approx(epsilon_of([Release(4.0, 2 * len(attempts))], delta=1e-5))


def test_an_adapter_that_was_released_is_not_noised_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_arguments: object, **_named: object) -> None:
        raise Died

    run_on(tmp_path, config_of(rounds=1))
    with monkeypatch.context() as death:
        death.setattr(RunFolder, "write_beside", die)
        with pytest.raises(Died):
            run_on(tmp_path, config_of(rounds=2))
    released = (tmp_path / "rounds" / "0002" / "adapter.safetensors").read_bytes()
    last, _ = run_on(tmp_path, config_of(rounds=2))
    assert (tmp_path / "rounds" / "0002" / "adapter.safetensors").read_bytes() == released
    assert spent(tmp_path) == [(1, True), (2, True)]
    assert len(last.reports[-1].num_clipped) == 2


def test_what_a_death_has_spent_counts_against_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    three = epsilon_of([Release(4.0, 6)], delta=1e-5)
    config = config_of(epsilon=three * 1.01)
    for phase in ("add noise", "release"):
        with monkeypatch.context() as death:
            dies_at(death, phase, 2 if phase == "add noise" else 1)
            with pytest.raises(Died):
                run_on(tmp_path, config)
    last, told = run_on(tmp_path, config)
    assert spent(tmp_path) == [(1, True), (2, False), (2, False)]
    assert (last.round, last.reports[-1].ended_early) == (1, True)
    assert "the run ended after round 1 of 3" in lines(told)[0]
    assert next(event for event in told if isinstance(event, RunStarted)).is_over


@pytest.mark.parametrize("harm", ["removed", "damaged", "of an earlier day"])
def test_without_its_record_a_run_does_not_go_on(tmp_path: Path, harm: str) -> None:
    run_on(tmp_path, config_of(rounds=1))
    record = tmp_path / "privacy.json"
    earlier = record.read_bytes()
    run_on(tmp_path, config_of(rounds=2))
    if harm == "removed":
        record.unlink()
    else:
        record.write_bytes(earlier if harm == "of an earlier day" else b"{")
    said = "knows nothing of round 2" if harm == "of an earlier day" else "is missing or damaged"
    with pytest.raises(StoreError, match=f"privacy.json {said}, so that nobody knows what is spent"):
        run_on(tmp_path, config_of(rounds=3))
