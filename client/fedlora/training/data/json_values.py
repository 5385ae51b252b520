"""JSON from strangers' files."""

import json
import sys


def json_value(text: str) -> object:
    """Return the value that a text holds as JSON.

    Raises:
        json.JSONDecodeError: it holds none, or one that is nested too deeply or has too long a number.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except RecursionError as error:
        raise json.JSONDecodeError("lists or objects nested too deeply", text, 0) from error
    except ValueError as error:
        raise json.JSONDecodeError(
            f"a whole number of more than {sys.get_int_max_str_digits():,} digits", text, 0
        ) from error
