"""What is taken from Flower beyond its public names is what it was."""

from importlib.metadata import version

import pytest
from flwr.app import Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedlora.common.flower_privates import assume_identity, empty_run, give_id


def test_a_message_needs_an_identity_which_can_be_assumed_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, None)
    with pytest.raises(RuntimeError, match="is not set"):
        Message(RecordDict(), 1, "train")
    undo = assume_identity()
    assert Message(RecordDict(), 1, "train").metadata.src_node_id == 0
    undo()
    assert TaskIdentity._run_id is None


def test_a_message_has_the_id_that_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    message = Message(RecordDict(), 1, "train")
    give_id(message, "7")
    assert message.metadata.message_id == "7"
    assert Message(RecordDict(), reply_to=message).metadata.reply_to_message_id == "7"


def test_a_grid_has_a_run_to_show() -> None:
    assert empty_run().run_id == 1


def test_the_version_is_the_one_that_they_were_seen_in() -> None:
    assert version("flwr").startswith("1.42."), "look at fedlora.common.flower_privates, and then change this line"
