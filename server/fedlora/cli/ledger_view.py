"""What a terminal shows of the ledgers in the folder of a run that was simulated."""

from collections.abc import Iterator
from pathlib import Path

from fedlora.client.worker.ledger import LEDGER_FOLDER, Ledger
from fedlora.privacy.sampled_steps import epsilon_of_steps


def ledger_lines(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield, in a name and words, the most that is told of a client's example; nothing where none are private.

    Raises:
        StoreError: a ledger is damaged.
    """
    ledger = Ledger(folder / LEDGER_FOLDER)
    # Clients with as many examples have spent the same.
    alike = {ledger.of(client): client for client in ledger.clients()}
    told = []
    for entries, client in alike.items():
        delta = min(entry.delta for entry in entries)
        told.append((epsilon_of_steps([entry.steps for entry in entries], delta=delta), delta, client))
    if told:
        epsilon, delta, client = max(told)
        yield "privacy", f"an epsilon of {epsilon:.3g} (delta {delta:g}) of an example at {client}, the most of all"
