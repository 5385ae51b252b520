"""An operator goes back to an earlier adapter: what is offered, what is kept, and until when."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fedlora.adapters import Adapter, LoraLayer, save_adapter
from fedlora.common.config import RunConfig
from fedlora.common.errors import StoreError
from fedlora.common.messages import Score
from fedlora.common.run_file import to_toml
from fedlora.server.disk.audit import read_audit
from fedlora.server.disk.audited import audited
from fedlora.server.disk.published_folder import (
    account_name,
    published_in,
    read_rollback,
    roll_back,
    undo_rollback,
)
from fedlora.server.disk.registry import Registry
from fedlora.server.disk.store import RunFolder
from fedlora.server.disk.withheld import withheld_rounds
from fedlora.server.record.events import Event, NotPublished, RoundEnded, RunStarted
from fedlora.server.record.round_report import ClientReport, RoundReport

CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["query"]}
# The validation loss of each round's adapter, from the start on.
LOSSES = (3.0, 2.0, 1.5, 1.8, 1.7, 1.6, 1.2, 1.3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run = RunFolder(tmp_path / "run")
    run.write_manifest({"run_id": "abc", "metric": "accuracy"})
    (run.path / "run.toml").write_text(to_toml(RunConfig.model_validate({"run": {"name": "digits"}})))
    return run.path


@pytest.fixture
def registry(folder: Path) -> Iterator[Registry]:
    registry = Registry(folder, keep=3, check=lambda _folder: "")
    yield registry
    registry.close()


def report(number: int, *, is_last: bool = False) -> RoundReport:
    """Return a round in which the client judges what it is given, and in the last one what came of it as well."""
    before = Score(10, LOSSES[number - 1], 0.5) if number else None
    client = ClientReport(num_examples=8, num_steps=1, loss=1.0, before=before, after=None, seconds={})
    own = Score(10, LOSSES[number], 0.5) if is_last else None
    clients = {"a": client} if number else {}
    return RoundReport(number, ("a",), clients, {}, None, None, bytes_down=0, bytes_up=0, validation=own)


def begin_publishing(registry: Registry, folder: Path, number: int, *, is_last: bool = False) -> None:
    """End a round, as the run does."""
    layer = LoraLayer(torch.full((4, 6), float(number)), torch.ones(5, 4), 2.0)
    save_adapter(Adapter({"blocks.0.query": layer}, {}, CONFIG), folder / "adapter")
    registry.heard(RoundEnded(report(number, is_last=is_last)))


def end_round(registry: Registry, folder: Path, number: int, *, is_last: bool = False) -> None:
    """End a round, and wait until its adapter, or the one before, is published, or not."""
    begin_publishing(registry, folder, number, is_last=is_last)
    registry.close(is_finished=False)


def offered(registry: Registry) -> list[str]:
    registry.look()
    return [published.name for published in registry.adapters()]


def kept(folder: Path) -> list[str]:
    return [published.name for published in published_in(folder)]


def test_the_adapter_before_the_newest_is_offered_again_and_newer_ones_are_withdrawn(
    registry: Registry, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for number in (1, 2, 3):
        end_round(registry, folder, number)
    done = roll_back(folder, None)
    assert (done.name, done.round, done.withdrawn, done.by) == ("digits-v0002", 2, (3,), account_name())
    assert offered(registry) == ["digits-v0002", "digits-v0001"]
    assert registry.is_withdrawn(3)
    assert registry.find(3, "adapter_config.json") is None
    assert registry.find(2, "adapter_config.json") is not None
    assert f"rolled back to digits-v0002 by {account_name()}" in caplog.text
    # Once more: to what is before that.
    assert roll_back(folder, None).withdrawn == (2, 3)
    assert offered(registry) == ["digits-v0001"]
    undo_rollback(folder)
    assert offered(registry) == ["digits-v0003", "digits-v0002", "digits-v0001"]
    assert "the rollback is undone" in caplog.text


@pytest.mark.parametrize("name", ["digits-v0001", "1", "v0001"])
def test_a_version_is_named_as_people_do_and_survives_a_restart(registry: Registry, folder: Path, name: str) -> None:
    for number in (1, 2, 3):
        end_round(registry, folder, number)
    roll_back(folder, name)
    assert offered(Registry(folder, check=lambda _folder: "")) == ["digits-v0001"]


def test_what_is_rolled_back_to_is_kept_and_offered_until_a_better_one_is_published(
    registry: Registry, folder: Path
) -> None:
    """Three versions are kept, and round after round is worse than the one that the run is rolled back to."""
    events: list[Event] = []
    for number in (1, 2, 3):
        end_round(registry, folder, number)
    roll_back(folder, "digits-v0002")
    again = Registry(folder, keep=3, check=lambda _folder: "", listener=events.append)
    again.heard(RunStarted(("a",), 8, 4, tuple(report(number) for number in range(4))))
    again.close(is_finished=False)
    for number in (4, 5, 6):
        end_round(again, folder, number)
        assert offered(again) == ["digits-v0002", "digits-v0001"]
    assert [event.round for event in events if isinstance(event, NotPublished)] == [4, 5]
    assert withheld_rounds(folder)[4] == "its validation loss is 1.7, and the run is rolled back to round 2, with 1.5"
    # Round 6 is better, which round 7 tells; its own is not known when the run is over.
    end_round(again, folder, 7)
    assert offered(again) == ["digits-v0004", "digits-v0002", "digits-v0001"]
    assert kept(folder) == ["digits-v0004", "digits-v0002", "digits-v0001"]
    assert published_in(folder)[0].round == 6
    # What was withdrawn stays so, and what comes after is published as ever.
    assert again.is_withdrawn(3)
    end_round(again, folder, 7, is_last=True)
    assert offered(again)[0] == "digits-v0005"


def test_the_adapter_that_was_rolled_back_to_outlives_those_that_were_withdrawn(
    registry: Registry, folder: Path
) -> None:
    """Three are kept: the better one and the good one take two places, and the newest withdrawn one the third."""
    for number in (3, 4, 5):
        end_round(registry, folder, number)
    roll_back(folder, "1")
    begin_publishing(registry, folder, 6)
    end_round(registry, folder, 7)
    assert offered(registry) == ["digits-v0004", "digits-v0001"]
    assert kept(folder) == ["digits-v0004", "digits-v0003", "digits-v0001"]
    undo_rollback(folder)
    assert offered(registry) == ["digits-v0004", "digits-v0003", "digits-v0001"]


def test_with_a_margin_the_newest_that_has_passed_is_published_and_the_last_one_is_judged_too(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[Event] = []
    with audited(folder, events.append) as (listener, _):
        registry = Registry(folder, check=lambda _folder: "", margin=0.1, listener=listener)
        for number in range(1, 4):
            end_round(registry, folder, number)
        assert [published.round for published in registry.adapters()] == [2, 1]
        end_round(registry, folder, 4)
        assert withheld_rounds(folder).keys() == {3}
        end_round(registry, folder, 5, is_last=True)
        registry.close()
    assert [published.round for published in registry.adapters()] == [5, 2, 1]
    why = "its validation loss is 1.8, more than 10% above that of round 2, 1.5 (exchange.publish_margin)"
    assert withheld_rounds(folder)[3] == why
    assert f"round 3 is not published: {why}" in caplog.text
    entries = [entry for entry in read_audit(folder).entries if entry["event"] == "not published"]
    assert [(entry["round"], entry["reason"]) for entry in entries] == [(3, why), (4, withheld_rounds(folder)[4])]
    assert not list((folder / "published").glob("*.unfinished"))


def test_a_round_that_nobody_judged_is_not_published_and_is_said_at_the_end(folder: Path) -> None:
    registry = Registry(folder, check=lambda _folder: "", margin=0.1)
    end_round(registry, folder, 1)
    registry.close(is_finished=True)
    assert registry.adapters() == ()
    assert withheld_rounds(folder)[1].startswith("nobody has judged it")


def test_a_refusal_is_told_once_and_forgotten_once_the_round_is_published(folder: Path) -> None:
    events: list[Event] = []
    for margin, num_told in ((0.1, 1), (0.1, 1), (None, 1)):
        registry = Registry(folder, check=lambda _folder: "", margin=margin, listener=events.append)
        end_round(registry, folder, 1)
        registry.close(is_finished=True)
        assert len(events) == num_told
    assert withheld_rounds(folder) == {}
    assert kept(folder) == ["digits-v0001"]


def test_what_waits_for_its_score_when_a_rollback_is_undone_is_published_at_the_end(folder: Path) -> None:
    registry = Registry(folder, check=lambda _folder: "")
    for number in (1, 2):
        end_round(registry, folder, number)
    roll_back(folder, None)
    begin_publishing(registry, folder, 3)
    undo_rollback(folder)
    registry.close(is_finished=True)
    assert [published.round for published in registry.adapters()] == [3, 2, 1]
    assert withheld_rounds(folder) == {}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("digits-v0009", "there is no adapter digits-v0009; it keeps digits-v0002, digits-v0001"),
        ("2", "digits-v0002 is the newest adapter; name an earlier one, or --undo"),
    ],
)
def test_what_cannot_be_gone_back_to_is_said(registry: Registry, folder: Path, name: str, words: str) -> None:
    with pytest.raises(StoreError, match="nothing is published there"):
        roll_back(folder, None)
    end_round(registry, folder, 1)
    with pytest.raises(StoreError, match="1 adapter is offered, and no earlier one"):
        roll_back(folder, None)
    with pytest.raises(StoreError, match="nothing is rolled back"):
        undo_rollback(folder)
    end_round(registry, folder, 2)
    with pytest.raises(StoreError, match=words):
        roll_back(folder, name)
    assert read_rollback(folder) is None


def test_a_damaged_record_stops_the_next_start_and_changes_nothing_while_a_server_runs(
    registry: Registry, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in (1, 2):
        end_round(registry, folder, number)
    roll_back(folder, None)
    assert offered(registry) == ["digits-v0001"]
    (folder / "published" / "rollback.json").write_text(json.dumps({"name": "digits-v0001"}))
    assert offered(registry) == ["digits-v0001"]
    assert "rollback.json cannot be read" in caplog.text
    with pytest.raises(StoreError, match="give fedlora adapters rollback anew, or with --undo"):
        Registry(folder, check=lambda _folder: "")
    roll_back(folder, "1")
    assert offered(Registry(folder, check=lambda _folder: "")) == ["digits-v0001"]
