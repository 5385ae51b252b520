"""How a line of the log looks: when, how grave, and what happened; for people, or one JSON object each."""

import json
import logging
from datetime import datetime


class TextLines(logging.Formatter):
    """`2027-03-01T12:00:00.000+01:00 INFO what happened`; each line of a message that has several begins like that."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's lines."""
        begin = f"{_when(record)} {record.levelname} "
        return "\n".join(begin + line for line in _what(self, record).splitlines() or [""])


class JsonLines(logging.Formatter):
    """One object for each record: time, level, logger, message."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's line."""
        found = {
            "time": _when(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _what(self, record),
        }
        return json.dumps(found, ensure_ascii=False)


def _when(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")


def _what(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    """Return the message, and below it the traceback where there is one."""
    text = record.getMessage()
    if record.exc_info:
        text += f"\n{record.exc_text or formatter.formatException(record.exc_info)}"
    return text
