"""Starts a simulation in this process and kills it on the way: run by interruption.py as a process of its own.

    python interrupted_run.py RUN.toml OUT
        (--at-each-file JOURNAL | --at-each-kind JOURNAL | --at-phase PHASE | --after-seconds S)

With --at-each-file it dies by SIGKILL before the first file is renamed into place, or in the middle of the first line
that is added to one, whose path is not in JOURNAL, and adds that path to it: run again and again, it dies once at each
file that the run writes; with --at-each-kind once at each kind of them; with --at-phase at that of a round's noise, the
second time that it comes there. It exits 0 when the run is over and nothing was
left to die at.
"""

import os
import signal
import sys
import threading
from pathlib import Path

from fedlora.server.disk import store
from fedlora.server.rounds import private_rounds
from fedlora.simulation import simulate


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_a_new_file(journal: Path, out: Path, *, of_a_kind: bool) -> None:
    replace, append = os.replace, store.append_to_file

    def is_new(target: Path, how: str = "") -> bool:
        """Return whether nobody has died at this file, and note that somebody is about to."""
        done = journal.read_text().splitlines() if journal.exists() else []
        name = str(target.relative_to(out))
        # adapter/ and rounds.jsonl are written once a round under one name: the newest round tells them apart.
        newest = max((path.parent.name for path in out.glob("rounds/*/report.json")), default="none")
        kind = f"update{target.suffix}" if "updates" in target.parts else target.name
        entry = f"{how}{kind}" if of_a_kind else f"{how}{name} at {newest}"
        if entry in done:
            return False
        journal.write_text("\n".join([*done, entry]) + "\n")
        return True

    def replace_or_die(source: Path, target: Path) -> None:
        if is_new(Path(target)):
            die()
        replace(source, target)

    def append_or_die(path: Path, content: bytes) -> None:
        if is_new(path, "half a line of "):
            append(path, content[: len(content) // 2])
            die()
        append(path, content)

    os.replace = replace_or_die  # type: ignore[assignment]
    store.append_to_file = append_or_die


def die_at_a_phase(phase: str) -> None:
    """Die at a phase of a round's noise, the second time that this process comes there."""
    seen = []

    def announce_or_die(name: str) -> None:
        seen.append(name)
        if name == phase and seen.count(phase) == 2:
            die()

    private_rounds.announce = announce_or_die


def main() -> None:
    run, out, how, value = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
    if how.startswith("--at-each-"):
        die_at_a_new_file(Path(value), out, of_a_kind=how == "--at-each-kind")
    elif how == "--at-phase":
        die_at_a_phase(value)
    else:
        threading.Timer(float(value), die).start()
    simulate(run, out=out, num_workers=1, resume=(out / "run.toml").is_file())
    os._exit(0)


if __name__ == "__main__":
    main()
