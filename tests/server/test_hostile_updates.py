"""What a hostile site sends is kept apart under its own name, bounded, and said: to the operator and to the site."""

import json
import os
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from stub_runs import run_config, served
from stub_site import Reply, StubSite, honest, moved, zeros

from fedlora.cli.notes_view import note_lines
from fedlora.common.files import client_file_name
from fedlora.common.packed_file import PackedFile
from fedlora.server.disk.quarantine import set_aside
from fedlora.server.disk.store import RunFolder
from fedlora.server.record.events import FLAGS, UpdateArrived
from fedlora.v1 import session_pb2

HOSTILE = "\x1b[2Ja\nERROR: forged\u202e"


def as_another(site: StubSite, request: session_pb2.Request) -> Reply:
    reply = honest(site, request)
    reply.answer.train.client, reply.answer.train.run = "anna", HOSTILE
    return reply


def undecodable(site: StubSite, request: session_pb2.Request) -> Reply:
    return Reply(honest(site, request).answer, b"neither int8 nor anything")


def far_away(site: StubSite, request: session_pb2.Request) -> Reply:
    return moved(site, request, step=1e4)


def unmoved(site: StubSite, request: session_pb2.Request) -> Reply:
    # In differences, zeros are what a site started from.
    return zeros(site, request) if request.precision == "float32" else moved(site, request, step=0.0)


BY_ROUND = {1: as_another, 2: undecodable, 3: far_away, 4: unmoved}


def hostile(site: StubSite, request: session_pb2.Request) -> Reply:
    behave = BY_ROUND[request.train.round] if request.HasField("train") else honest
    return behave(site, request)


@pytest.mark.parametrize(("precision", "flag"), [("float32", "zero"), ("int8", "unchanged")])
def test_a_hostile_site_is_kept_apart_and_named(tmp_path: Path, precision: str, flag: str) -> None:
    sites = [StubSite(name, tmp_path / name) for name in ("anna", "bert")]
    mallory = StubSite("mallory", tmp_path / "mallory", hostile)
    config = run_config(3, federation={"rounds": 4}, exchange={"precision": precision})
    events = served(config, tmp_path / "run", [*sites, mallory])

    # Under the name of who sent it, whoever it says it is; and each answer has its own entry.
    entries = sorted((tmp_path / "run" / "quarantine").iterdir())
    notes = [json.loads(path.read_text()) for path in entries if path.suffix == ".json"]
    assert [(note["round"], note["site"], note["reason"].partition(":")[0]) for note in notes] == [
        (1, "mallory", "wrong_request"), (2, "mallory", "unreadable"), (3, "mallory", "norm"),
    ]  # fmt: skip
    assert all(client_file_name("mallory") in path.name for path in entries)
    assert notes[0]["it_says"]["client"] == "anna"
    updates = {path.name[:4]: path.read_bytes() for path in entries if path.suffix == ".safetensors"}
    assert sorted(updates) == ["0001", "0002", "0003"]
    assert updates["0002"] == b"neither int8 nor anything"
    assert all(text.isprintable() for note in notes for text in (note["reason"], *note["it_says"].values()))

    # What was accepted when it came, and is an outlier among the others', the site hears too.
    heard = [(each.refusal, each.taken_back_round) for each in mallory.heard]
    assert [each for each in heard if each[0]] == [("wrong_request", 0), ("unreadable", 0), ("norm", 3)]
    assert heard[heard.index(("norm", 3)) - 1] == ("", 0)
    assert {each.refusal for site in sites for each in site.heard} == {""}

    # What counts and does nothing is flagged: as it happens, in the round's record, in the report.
    flagged = [event for event in events if isinstance(event, UpdateArrived) and event.flag]
    assert [(event.round, event.client, event.flag) for event in flagged] == [(4, "mallory", flag)]
    assert note_lines(flagged[0]) == [f"note: round 4: the update of mallory is {FLAGS[flag]}"]
    checkpoint = RunFolder(tmp_path / "run").latest()
    assert checkpoint is not None
    clients = checkpoint.reports[4].clients
    assert [name for name, part in clients.items() if part.is_zero or part.is_unchanged] == ["mallory"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Updates that teach nothing" in page
    assert "\x1b" not in page


def notes_in(folder: Path) -> list[str]:
    return sorted(path.name.removesuffix(".json") for path in folder.glob("*.json"))


def test_a_flood_of_refused_updates_pushes_out_its_own(tmp_path: Path) -> None:
    folder, update = tmp_path / "quarantine", tmp_path / "update"
    update.write_bytes(os.urandom(1000))
    set_aside(folder, site="anna", round=1, reason="norm", packed=b"x" * 1000, most_bytes=8000)
    for number in range(20):
        packed = PackedFile(update, 1000)
        set_aside(folder, site="mallory", round=1 + number // 5, reason="shape", packed=packed, most_bytes=8000)
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert size <= 8000
    anna, mallory = client_file_name("anna"), client_file_name("mallory")
    kept = notes_in(folder)
    assert f"0001-{anna}-0" in kept
    assert f"0004-{mallory}-4" in kept, "its newest"
    assert f"0001-{mallory}-0" not in kept, "its oldest"
    assert (folder / f"0001-{anna}-0.safetensors").read_bytes() == b"x" * 1000


def test_of_very_many_refused_answers_the_newest_are_kept(tmp_path: Path) -> None:
    for number in range(12):
        set_aside(tmp_path, site="mallory", round=number, reason="unreadable", most_notes=5)
    assert [name[:4] for name in notes_in(tmp_path)] == ["0007", "0008", "0009", "0010", "0011"]


def test_of_an_update_that_is_too_large_the_reason_is_kept(tmp_path: Path) -> None:
    set_aside(tmp_path, site="mallory", round=1, reason="shape", packed=b"x" * 1000, most_bytes=900)
    (note,) = (json.loads(path.read_text()) for path in tmp_path.iterdir())
    assert (note["size_bytes"], note["is_kept"], note["reason"]) == (1000, False, "shape")
