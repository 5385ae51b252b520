"""Text from elsewhere - another machine, a file, a library - as a terminal, a log or a page shows it: for what it is.

A peer chooses what stands in its messages. Sent as it is to a terminal, an escape sequence there rewrites the screen,
a line feed forges the next line of a log, and a character that turns the direction of writing hides a word.
"""

import logging

_MOST = 4000
_CUT = "..."


def printable(text: object, *, most: int = _MOST) -> str:
    """Return a text in one line of at most `most` characters, in which whatever has no picture stands by its number.

    That is line feeds, other control characters, what turns or joins the writing unseen, and lone surrogates: `\\x1b`,
    `\\n`, `\\u202e`. For a text of plain characters that is short enough it is the text itself.
    """
    said = str(text)
    # Of a text of megabytes no more is looked at than is shown.
    shown = said[: most + 1]
    if not shown.isprintable():
        shown = "".join(character if character.isprintable() else _number(character) for character in shown)
    return shown if len(shown) <= most else shown[: max(0, most - len(_CUT))] + _CUT


def printable_lines(text: str) -> str:
    """Return a text of several lines, each printable; all but the first are set in, and pass for no line of a log."""
    first, *others = text.split("\n")
    return "\n".join([printable(first), *(f"    {printable(line)}" for line in others)])


class PrintableRecords(logging.Filter):
    """Lets every record through, its message and its traceback printable: a filter for a handler, whatever its format.

    Whoever logs need not ask where a text is from.
    """

    _format_traceback = logging.Formatter().formatException

    def filter(self, record: logging.LogRecord) -> bool:
        """Make a record printable; done once more, it changes nothing."""
        message = record.getMessage()
        record.msg, record.args = printable(message), ()
        if record.exc_info and not record.exc_text:
            record.exc_text = printable_lines(self._format_traceback(record.exc_info))
        return True


def _number(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
