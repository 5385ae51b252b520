"""`server`: CPU seconds of the server for rounds of clients that do nothing, and what one client of a round costs.

The clients answer in the server's own process, at once; what their answers cost is taken off.
"""

from figures import Figure
from fresh_process import run_fresh
from progress import progress


def figures(*, quick: bool) -> list[Figure]:
    """Return the CPU seconds of all rounds, and the milliseconds of one client in one round."""
    num_rounds, num_clients, num_repeats = (5, 20, 1) if quick else (200, 100, 3)
    progress(f"{num_rounds} rounds of {num_clients} clients, {num_repeats} times")
    seconds = [float(run_fresh("timed_server_cpu.py", num_rounds, num_clients)) for _ in range(num_repeats)]
    per_client = [1000 * found / (num_rounds * num_clients) for found in seconds]
    return [
        Figure(f"{num_rounds} rounds of {num_clients} do-nothing clients, CPU of the server", "s", seconds),
        Figure("the same for one client of a round", "ms", per_client),
    ]
