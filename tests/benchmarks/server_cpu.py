"""`server`: CPU seconds of the server for rounds of clients that do nothing, what one client of a round costs, and what
of that the checks of its answer take: before and after them, of one and the same run.

The clients answer in the server's own process, at once; what their answers cost is taken off.
"""

from collections.abc import Iterator

from figures import Figure
from fresh_process import run_fresh
from progress import progress


def figures(*, quick: bool) -> Iterator[Figure]:
    """Yield the CPU seconds of all rounds, the milliseconds of one client in one round, and those of each check."""
    num_rounds, num_clients, num_repeats = (5, 20, 1) if quick else (200, 100, 3)
    progress(f"{num_rounds} rounds of {num_clients} clients, {num_repeats} times")
    runs = [run_fresh("timed_server_cpu.py", num_rounds, num_clients) for _ in range(num_repeats)]

    def a_client(seconds: list[float]) -> list[float]:
        return [1000 * found / (num_rounds * num_clients) for found in seconds]

    total = [run["total"] for run in runs]
    yield Figure(f"{num_rounds} rounds of {num_clients} do-nothing clients, CPU of the server", "s", total)
    yield Figure("the same for one client of a round", "ms", a_client(total))
    without = [run["total"] - sum(run["checks"].values()) for run in runs]
    yield Figure("the same without the checks of its answer", "ms", a_client(without))
    for title in runs[0]["checks"]:
        yield Figure(f"of one client of a round: {title}", "ms", a_client([run["checks"][title] for run in runs]))
