"""Who leaves requests without an answer, so that nobody is waited for in full again and again."""

from collections import Counter
from collections.abc import Collection


class Misses:
    """By site, how many requests of one kind in a row it has left without an answer."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def of(self, site: str) -> int:
        """Return how many the site has left."""
        return self._counts[site]

    def note(self, *, answered: Collection[str], missed: Collection[str]) -> None:
        """Count those that have not answered, and forget what those that have left before."""
        for site in answered:
            self._counts.pop(site, None)
        self._counts.update(list(missed))
