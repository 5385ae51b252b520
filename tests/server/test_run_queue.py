"""The runs of a store: their order, what may be submitted again, and folders that are something else."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fedlora.common.config import RunConfig
from fedlora.common.errors import ConfigError, FedloraError, StoreError
from fedlora.common.files import write_file
from fedlora.common.run_file import to_toml
from fedlora.server.run_queue.queue import QueuedRun, RunQueue, State
from fedlora.server.run_queue.store import QUEUE_FILE, RunStore, config_of, is_store


def a_run(name: str, **changes: object) -> RunConfig:
    given = {"run": {"name": name}, "data": {"labels": ["0", "1"]}, "federation": {"rounds": 4}}
    return RunConfig.model_validate(given | changes)


def queue_of(**states: State) -> RunQueue:
    return RunQueue(tuple(QueuedRun(name, "", "2026-01-01T00:00:00+00:00", state) for name, state in states.items()))


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore.opened(tmp_path / "store")


def has_ended(store: RunStore, config: RunConfig, state: State, *, rounds: int = 0) -> None:
    """Have a run of the queue be over, with so many rounds in its folder."""
    folder = store.run_folder(config.run.name)
    write_file(folder / "run.toml", to_toml(config))
    for number in range(rounds + 1):
        write_file(folder / "rounds" / f"{number:04d}" / "report.json", "{}")
    store.change(lambda queue: queue.with_state(config.run.name, state))


def test_a_run_that_was_cut_off_comes_before_those_that_wait() -> None:
    assert queue_of(a="finished", b="waiting", c="running").next() == queue_of(c="running").runs[0]
    found = queue_of(a="finished", b="waiting", c="waiting").next()
    assert found is not None
    assert found.name == "b"
    assert queue_of(a="finished", b="stopped", c="failed").next() is None


@pytest.mark.parametrize("state", ["waiting", "running"])
def test_a_name_that_is_in_the_queue_is_not_taken_twice(store: RunStore, state: State) -> None:
    store.submit(a_run("digits"))
    store.change(lambda queue: queue.with_state("digits", state))
    with pytest.raises(ConfigError, match=f"digits is {state} already; stop it first"):
        store.submit(a_run("digits"))


@pytest.mark.parametrize("state", ["stopped", "failed"])
def test_what_was_stopped_or_has_failed_goes_on_at_the_end_of_the_queue(store: RunStore, state: State) -> None:
    for name in ("first", "second"):
        store.submit(a_run(name))
    has_ended(store, a_run("first"), state)
    store.submit(a_run("first"))
    assert [(run.name, run.state, run.detail) for run in store.queue().runs] == [
        ("second", "waiting", ""),
        ("first", "waiting", ""),
    ]
    assert config_of(store.queue().find("first")) == a_run("first")


def test_a_finished_run_is_prolonged_and_else_refused(store: RunStore) -> None:
    store.submit(a_run("digits"))
    has_ended(store, a_run("digits"), "finished", rounds=4)
    with pytest.raises(ConfigError, match=r"digits is finished; give this run another name .* or more rounds"):
        store.submit(a_run("digits"))
    with pytest.raises(StoreError, match=r"holds a run that differs from this one: lora\.rank is 8, not 4"):
        store.submit(a_run("digits", lora={"rank": 4}))
    assert store.queue().find("digits").state == "finished"
    _, lines = store.submit(a_run("digits", federation={"rounds": 6}))
    assert lines == ("federation.rounds is changed from 4 to 6",)
    assert store.queue().find("digits").state == "waiting"


def test_a_run_that_cannot_be_served_is_refused_when_it_is_submitted(store: RunStore) -> None:
    with pytest.raises(FedloraError, match=r"data\.labels"):
        store.submit(a_run("digits", data={}))
    assert store.queue() == RunQueue()


def test_a_run_that_there_is_not_is_named_with_those_that_there_are(store: RunStore) -> None:
    with pytest.raises(StoreError, match="there is no run 'digits'; the store has none yet"):
        store.queue().find("digits")
    store.submit(a_run("letters"))
    with pytest.raises(StoreError, match="the store has letters"):
        store.queue().find("digits")


def test_no_name_leads_out_of_the_store(store: RunStore) -> None:
    for name in ("..", "../../elsewhere", "a/b"):
        assert store.run_folder(name).parent == store.folder / "runs"


@pytest.mark.parametrize(
    ("leave", "said"),
    [
        (lambda folder: write_file(folder / "run.toml", ""), "is the folder of a run; expected a folder of its own"),
        (lambda folder: write_file(folder / "thesis.txt", ""), "holds something else; expected a folder of its own"),
        (lambda folder: write_file(folder.parent / "store", ""), "is a file; expected a folder of its own"),
    ],
)
def test_a_folder_that_is_something_else_is_no_store_and_is_left_alone(
    tmp_path: Path, leave: Callable[[Path], None], said: str
) -> None:
    folder = tmp_path / "store"
    leave(folder)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StoreError, match=said):
        RunStore.opened(folder)
    with pytest.raises(StoreError, match="is no store of runs"):
        RunStore.existing(folder)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_store_of_a_newer_version_is_refused_and_left_as_it_is(store: RunStore) -> None:
    write_file(store.folder / "version.json", '{"kind": "store", "version": 9, "written_by": "9.0.0"}')
    before = {path: path.read_bytes() for path in store.folder.rglob("*") if path.is_file()}
    for use in (RunStore.opened, RunStore.existing):
        with pytest.raises(StoreError, match=r"is of version 9 \(a store folder, written by fedlora 9\.0\.0\)"):
            use(store.folder)
    assert {path: path.read_bytes() for path in store.folder.rglob("*") if path.is_file()} == before


def test_a_damaged_queue_is_said_and_not_written_over(store: RunStore) -> None:
    (store.folder / QUEUE_FILE).write_text("{")
    assert is_store(store.folder)
    for use in (store.queue, lambda: store.submit(a_run("digits"))):
        with pytest.raises(StoreError, match=r"queue\.json is damaged; restore it, or move it away"):
            use()
    assert (store.folder / QUEUE_FILE).read_text() == "{"
    # What the line says helps: runs keep their folders.
    has_ended_before = store.run_folder("digits")
    write_file(has_ended_before / "run.toml", to_toml(a_run("digits")))
    (store.folder / QUEUE_FILE).unlink()
    assert RunStore.opened(store.folder).submit(a_run("digits"))[0].find("digits").state == "waiting"
