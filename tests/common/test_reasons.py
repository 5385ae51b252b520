"""The closed set of codes that metrics are counted by, against the codes that the source gives."""

import ast
from collections.abc import Iterator
from pathlib import Path

from fedlora.common.reasons import CALL_REASONS, UPDATE_REASONS, call_reason, update_reason

ROOT = Path(__file__).parents[2]
# What is called with a code, and the place of the code among the arguments.
UPDATES = {"Refusal": 0, "Misfit": 0, "Failure": 0, "Objection": 0}
CALLS = {"turn_down": 2, "AccessRefused": 0, "note": 1}


def codes_given(places: dict[str, int]) -> Iterator[str]:
    """Yield the codes that stand in the source as they are."""
    for path in (file for room in ("common", "server", "client") for file in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            place = places.get(ast.unparse(node.func).rpartition(".")[2])
            if place is None or len(node.args) <= place:
                continue
            code = node.args[place]
            if isinstance(code, ast.Constant) and isinstance(code.value, str):
                yield code.value


def test_every_code_that_the_source_gives_is_counted_by_its_name() -> None:
    given = set(codes_given(UPDATES))
    assert {"norm", "shape", "moments", "transfer", "over_a_limit"} <= given
    assert given - UPDATE_REASONS == set()
    calls = set(codes_given(CALLS))
    assert {"no_hello", "revoked", "ticket", "version"} <= calls
    assert calls - CALL_REASONS == set()


def test_what_a_peer_makes_up_is_counted_together() -> None:
    assert update_reason("norm: 3.0 against 0.1: too far") == "norm"
    assert [update_reason(words) for words in ("", "norms", "x" * 40)] == ["other"] * 3
    assert (call_reason("revoked"), call_reason("made_up")) == ("revoked", "other")
