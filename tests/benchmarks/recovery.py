"""`recovery`: how soon a killed site is back at work, with its process started again at once.

Two sites that do nothing, over mTLS, whose rounds follow one another; one of them, or only its worker, gets SIGKILL at
some moment of a round. Ready is what the server has seen: the site has connected and rehearsed; at work: its first
update of a round after that of the kill has been accepted. Most of it is what Python takes to import torch, so the
machine must be doing nothing else. A real site's worker also loads its base model and data, which is not in here.
"""

from collections.abc import Iterator

from figures import Figure, at_most
from fresh_process import run_fresh
from progress import progress


def figures(*, quick: bool) -> Iterator[Figure]:
    """Yield the seconds from each kill to ready, and to the first update that counts."""
    num_kills = 2 if quick else 15
    progress(f"{num_kills} kills of a site, and as many of its worker")
    run = run_fresh("measured_recovery.py", num_kills)
    yield Figure("site killed and started again: to ready", "s", run["site ready"])
    yield Figure("site killed and started again: to its next accepted update", "s", run["site"], at_most(2.0))
    yield Figure("worker killed: to the site's next accepted update", "s", run["worker"], at_most(2.0))
