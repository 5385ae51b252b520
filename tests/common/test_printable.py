"""What comes from elsewhere is shown as text: it moves no cursor, forges no line and hides nothing."""

import io
import logging

import pytest

from fedlora.common.errors import one_line
from fedlora.common.messages import SiteDescription
from fedlora.common.printable import PrintableRecords, printable, printable_lines
from fedlora.common.published import from_message
from fedlora.common.schema import from_proto
from fedlora.server.rounds.admission import Refusal
from fedlora.v1 import messages_pb2, registry_pb2

HOSTILE = "\x1b[2J\nERROR: forged\r\u202eevil\x85\u2028"


@pytest.mark.parametrize(
    ("found", "shown"),
    [
        ("plain, with é, 中 and 🙂", "plain, with é, 中 and 🙂"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("one\ntwo\r\tthree", r"one\ntwo\r\tthree"),
        ("\u202eevil\u2066", r"\u202eevil\u2066"),
        ("\x9b31m\x7f", r"\x9b31m\x7f"),
        ("\ud800", r"\ud800"),
    ],
)
def test_what_has_no_picture_stands_by_its_number(found: str, shown: str) -> None:
    assert printable(found) == shown
    assert printable(shown) == shown


def test_a_long_text_is_cut_whatever_it_grows_to() -> None:
    assert len(printable("x" * 10**6, most=80)) == len(printable("\x1b" * 10**6, most=80)) == 80
    assert printable("x" * 80, most=80) == "x" * 80


def test_lines_after_the_first_are_set_in() -> None:
    assert printable_lines("first\nERROR: forged\x1b") == "first\n    ERROR: forged\\x1b"


def test_a_log_shows_messages_and_tracebacks_as_text() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(PrintableRecords())
    record = logging.LogRecord("peer", logging.WARNING, __file__, 1, "100 %% of %s", (HOSTILE,), None)
    handler.handle(record)
    try:
        raise ValueError(HOSTILE)
    except ValueError as error:
        information = (ValueError, error, error.__traceback__)
    handler.handle(logging.LogRecord("peer", logging.ERROR, __file__, 1, "a bug", (), information))
    first, second, *traceback = stream.getvalue().splitlines()
    assert first.startswith(r"100 % of \x1b[2J\nERROR: forged")
    assert second == "a bug"
    assert all(line.isprintable() for line in (first, second, *traceback))
    assert not any(line.startswith("ERROR") for line in (first, *traceback))


def test_what_a_peer_says_is_printable_where_it_is_read() -> None:
    said = messages_pb2.SiteDescription(
        num_examples=1, lora_rank=1, metric_name=HOSTILE, base_model_fingerprint=HOSTILE, version=HOSTILE
    )
    said.fingerprints["tokenizer"] = HOSTILE
    known = {"client": "north", "labels": (), "base_model": "base"}
    description = from_proto(said, SiteDescription, known=known)
    words = [description.metric_name, description.base_model_fingerprint, description.version]
    assert all(word.isprintable() for word in [*words, *description.fingerprints.values()])
    assert str(Refusal("layers", HOSTILE)).isprintable()
    assert one_line(HOSTILE).isprintable()


def test_what_a_server_publishes_is_printable_where_it_is_read() -> None:
    blob = messages_pb2.Blob(sha256=bytes(32), size_bytes=1)
    message = registry_pb2.PublishedAdapter(
        name="digits-v0001", version=1, run=HOSTILE, metric_name=HOSTILE, base_model=HOSTILE,
        files=[registry_pb2.PublishedFile(name="adapter_config.json", blob=blob)],
    )  # fmt: skip
    published = from_message(message)
    assert all(word.isprintable() for word in (published.run, published.metric_name, published.base_model))
