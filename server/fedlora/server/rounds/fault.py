"""Who is at fault where members of secure sums accuse each other. Pure."""

from collections import Counter
from collections.abc import Collection, Mapping


def at_fault(accusations: Mapping[str, Collection[str]], *, among: Collection[str]) -> set[str]:
    """Return whom to do without, so that none is left who accuses another that is left.

    Of two that contradict each other one lies, and nobody can tell which. Who is in most of the contradictions goes
    first: one that most others accuse, or one that accuses most others. Where several are in as many, all of them go.

    Args:
        accusations: by member, whom it accuses.
        among: the members; nobody else is accused.
    """
    pairs = {
        frozenset((accuser, accused))
        for accuser, names in accusations.items()
        for accused in names
        if accused != accuser and {accuser, accused} <= set(among)
    }
    found: set[str] = set()
    while pairs:
        times = Counter(name for pair in pairs for name in pair)
        worst = {name for name, number in times.items() if number == max(times.values())}
        found |= worst
        pairs = {pair for pair in pairs if not pair & worst}
    return found
