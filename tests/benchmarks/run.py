"""Measure what fedlora promises of its speed: python tests/benchmarks/run.py [NAME ...] [--quick]

Tables go to the terminal, everything to ./benchmarks.json: each figure with its unit, repeats, median and
quartiles, and the machine. Nothing fails for being slow: a goal that was not reached says so. The
machine should be doing nothing else. All of it takes about forty minutes on two cores.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import aggregation_many_clients
import aggregation_one_matrix
import aggregation_peer
import aggregation_whole_adapter
import bad_link
import default_run
import endurance
import engine_comparison
import help_command
import language_speed
import plan_memory
import recovery
import round_overhead
import secure_sums
import server_cpu
import trainer_speed
import transfer_speed
import upload_memory
from figures import Figure, table_of
from machine import machine
from rich.console import Console

_BENCHMARKS = {
    "help": ("fedlora --help", help_command.figures),
    "trainer": ("LocalTrainer against a bare loop", trainer_speed.figures),
    "language": (
        "Language models: LocalTrainer against a bare loop, and what each option buys",
        language_speed.figures,
    ),
    "default": ("The default run", default_run.figures),
    "engines": ("In process against Ray, do-nothing clients and the default run", engine_comparison.figures),
    "plan": ("Memory that is planned, against the profiler's", plan_memory.figures),
    "aggregation-matrix": ("Aggregation methods on one matrix", aggregation_one_matrix.figures),
    "aggregation-adapter": ("Aggregation of whole adapters from disk", aggregation_whole_adapter.figures),
    "aggregation-clients": ("Aggregation of 100 and 1,000 clients from disk", aggregation_many_clients.figures),
    "aggregation-peer": ("Aggregation against chorus-fl 0.1.0", aggregation_peer.figures),
    "secure-sums": (
        "Secure sums: a member's steps, and the server's",
        secure_sums.figures,
    ),
    "rounds": ("A round beside training, and the same on Flower's SuperLink", round_overhead.figures),
    "server": ("CPU of the server, of clients that do nothing, and of its checks", server_cpu.figures),
    "transfer": ("Rounds that carry 100 MB a site, and the same on Flower's SuperLink", transfer_speed.figures),
    "uploads": ("Memory of the server while 4, 16 and 64 sites upload 100 MB each", upload_memory.figures),
    "endurance": ("What a server holds after many rounds and many connections", endurance.figures),
    "recovery": ("A killed site back at work", recovery.figures),
    "link": ("A slow link with stalls and resets", bad_link.figures),
}
_QUICK = " (QUICK: too few and too small, only to try out)"


def main(arguments: Sequence[str]) -> int:
    """Run the benchmarks that were named, and return the exit status: 1 if one of them broke."""
    parser = argparse.ArgumentParser(prog="run.py", description="Benchmarks of fedlora.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(_BENCHMARKS)}; all without a name")
    parser.add_argument("--quick", action="store_true", help="few repeats of small runs, to try the benchmarks out")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in _BENCHMARKS]:
        parser.error(f"no benchmark is named {', '.join(unknown)}; there are {', '.join(_BENCHMARKS)}")
    facts = machine()
    console = Console()
    if not console.is_terminal:
        console = Console(width=110)
    console.print(f"{facts['processor']}, {facts['usable_cores']} cores, load average {facts['load_average_1_minute']}")
    measured: dict[str, list[Figure]] = {}
    broken: list[str] = []
    for name in dict.fromkeys(options.names or _BENCHMARKS):
        title, figures = _BENCHMARKS[name]
        print(f"{name}: {title}", file=sys.stderr, flush=True)
        began = time.perf_counter()
        measured[name] = []
        try:
            for figure in figures(quick=options.quick):
                measured[name].append(figure)
        except subprocess.CalledProcessError as error:
            broken.append(name)
            command = " ".join(map(str, error.cmd))
            print(f"error: {name}: exit status {error.returncode} of {command}; see above", file=sys.stderr)
        else:
            print(f"{name}: measured in {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
        title += ", BROKEN OFF" if name in broken else ""
        console.print(table_of(f"{name}: {title}{_QUICK if options.quick else ''}", measured[name]))
        # Written after each, so that what was measured is there when a later one is interrupted.
        written = [figure.to_json(name) for name, found in measured.items() for figure in found]
        content = {"quick": options.quick, "broken": broken, "machine": facts, "figures": written}
        Path("benchmarks.json").write_text(json.dumps(content, indent=2) + "\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
