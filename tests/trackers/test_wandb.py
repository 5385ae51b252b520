"""Weights & Biases offline: what its files hold, read by its own reader."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from tracked import last, report, track

from fedlora.trackers import load_trackers

pytest.importorskip("wandb", reason="wandb is not installed: fedlora[wandb]")
pytestmark = pytest.mark.filterwarnings("default")  # Its own.


def rows_in(folder: Path) -> list[dict[str, float]]:
    """Return the rows of all offline runs below a folder, in the order of their files."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for record in map(Record.FromString, records_of(path.read_bytes())):
            if record.HasField("history"):
                items = record.history.item
                found.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return found


def records_of(log: bytes) -> Iterator[bytes]:
    """Yield the records of a log of LevelDB's format, behind wandb's seven bytes of its own.

    In each block of 32 KiB a part of a record has four bytes of a checksum, two of its length and one of its type:
    1 is a whole record, 2 its first part, 3 a middle one, 4 the last.
    """
    record, at = b"", 7
    while at + 7 <= len(log):
        _, length, kind = struct.unpack_from("<IHB", log, at)
        if kind == 0 or 32_768 - at % 32_768 < 7:
            at += 32_768 - at % 32_768
            continue
        record = (b"" if kind in (1, 2) else record) + log[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield record


def test_rounds_of_two_processes_are_rows_of_one_run_without_a_network(tmp_path: Path) -> None:
    trackers = load_trackers(["wandb"])
    assert track(tmp_path, trackers, new=(report(0), report(1))) == []
    assert track(tmp_path, trackers, known=(report(0), report(1), report(2)), new=(report(3), last(4))) == []
    assert len({path.name.rpartition("-")[2] for path in tmp_path.glob("wandb/offline-run-*/*.wandb")}) == 1
    rows = rows_in(tmp_path)
    assert [row["round"] for row in rows if "held_out/loss" in row] == [0, 1, 2, 3, 4]
    assert {row["round"]: row["validation/loss"] for row in rows if "validation/loss" in row} == {
        number: number + 0.5 for number in range(5)
    }
    steps = [row["_step"] for row in rows]
    assert steps == sorted(set(steps)), "each process goes on where the last one was"
