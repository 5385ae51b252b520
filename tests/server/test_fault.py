"""Whom secure sums do without, where members accuse each other."""

import pytest

from fedlora.server.rounds.fault import at_fault

ALL = ("a", "b", "c", "m")


@pytest.mark.parametrize(
    ("accusations", "found"),
    [
        ({}, set()),
        ({"a": ["m"], "b": ["m"], "c": ["m"]}, {"m"}),
        ({"m": ["a", "b", "c"]}, {"m"}),
        ({"a": ["m"], "b": ["m"], "m": ["a", "b", "c"]}, {"m"}),
        ({"a": ["b"]}, {"a", "b"}),
        ({"a": ["b"], "b": ["a"]}, {"a", "b"}),
        ({"m": ["m", "stranger"]}, set()),
        ({"stranger": ["a", "b"]}, set()),
    ],
)
def test_who_is_in_most_contradictions_goes(accusations: dict[str, list[str]], found: set[str]) -> None:
    assert at_fault(accusations, among=ALL) == found
