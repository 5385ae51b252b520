"""How a line of the log looks."""

import json
import logging
import sys
from datetime import datetime

from fedlora.common.log_lines import JsonLines, TextLines


def record(message: str, *arguments: object, error: BaseException | None = None) -> logging.LogRecord:
    info = None if error is None else (type(error), error, error.__traceback__)
    return logging.LogRecord("fedlora.part", logging.WARNING, "file.py", 1, message, arguments, info)


def failure() -> BaseException:
    try:
        raise ValueError("too\nbad")
    except ValueError:
        error = sys.exc_info()[1]
        assert error is not None
        return error


def test_each_line_begins_with_date_time_zone_and_level() -> None:
    made = record("it is %s\nand so on", "late", error=failure())
    for line in TextLines().format(made).splitlines():
        when, level, _ = line.split(" ", 2)
        assert datetime.fromisoformat(when).timestamp() - made.created < 0.001
        assert datetime.fromisoformat(when).tzinfo is not None
        assert level == "WARNING"
    assert [line.split(" ", 2)[2] for line in TextLines().format(made).splitlines()[:2]] == ["it is late", "and so on"]
    assert TextLines().format(record("")).endswith(" WARNING ")


def test_in_json_each_record_is_one_line_whatever_is_in_it() -> None:
    made = record('it is %s\nand\x1b[2J "so" on', "late", error=failure())
    (line,) = JsonLines().format(made).splitlines()
    found = json.loads(line)
    assert (found["level"], found["logger"]) == ("warning", "fedlora.part")
    assert found["message"].startswith('it is late\nand\x1b[2J "so" on\nTraceback')
    assert found["message"].endswith("ValueError: too\nbad")
    assert datetime.fromisoformat(found["time"]).tzinfo is not None
    assert "\x1b" not in line
