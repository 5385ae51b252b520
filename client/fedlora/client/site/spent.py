"""What a site's ledger says that its trainings have told of one of its examples, run by run and in all."""

from pathlib import Path

from fedlora.client.worker.ledger import LEDGER_FOLDER, Ledger, of_run
from fedlora.privacy.sampled_steps import epsilon_of_steps
from fedlora.privacy.spent import RunSpent, Spent


def spent_in_run(state: Path, site: str, run: str) -> RunSpent | None:
    """Return what a run has spent at a site, by the ledger in the folder of its state; None for nothing.

    Raises:
        StoreError: the ledger is damaged.
        ConfigError: dp-accounting is not installed.
    """
    entries = of_run(Ledger(state / LEDGER_FOLDER).of(site), run)
    if not entries:
        return None
    delta = min(entry.delta for entry in entries)
    epsilon = epsilon_of_steps([entry.steps for entry in entries], delta=delta)
    return RunSpent(run, epsilon, delta, sum(entry.num_trainings for entry in entries))


def spent_in_all(state: Path, site: str) -> Spent | None:
    """Return what all runs have spent at a site; None for nothing.

    Raises:
        StoreError, ConfigError: as `spent_in_run`.
    """
    entries = Ledger(state / LEDGER_FOLDER).of(site)
    if not entries:
        return None
    found = [spent_in_run(state, site, run) for run in dict.fromkeys(entry.run for entry in entries)]
    delta = min(entry.delta for entry in entries)
    epsilon = epsilon_of_steps([entry.steps for entry in entries], delta=delta)
    return Spent(epsilon, delta, tuple(each for each in found if each is not None))
