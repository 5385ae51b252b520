"""The rounds of a run that protects its clients, and what they cost: spent on disk before any noise is drawn.

A round whose process dies after that, and before its adapter and the digest of it are on disk, is noised anew and
costs twice. One whose adapter is there is not noised again: what is released is what was spent on.
"""

from collections.abc import Sequence
from dataclasses import replace

from fedlora.adapters import Adapter
from fedlora.common.errors import StoreError
from fedlora.common.phases import announce
from fedlora.common.run_folder import PRIVACY_FILE
from fedlora.methods import Method, RoundPlan
from fedlora.server.disk.store import RunFolder
from fedlora.server.record.privacy_record import ClientPrivacy, PrivacyRecord, Spent
from fedlora.server.record.round_report import RoundReport
from fedlora.server.rounds.collect import Collected
from fedlora.server.rounds.private_round import private_round


class PrivateRounds:
    """What of a run's rounds is about the budget."""

    def __init__(self, settings: ClientPrivacy, method: Method, folder: RunFolder) -> None:
        self._settings = settings
        self._method = method
        self._folder = folder
        self._record = PrivacyRecord(settings.noise_multiplier, settings.delta)

    def begin(self) -> None:
        """Begin the record of a new run."""
        self._folder.write_privacy(self._record)

    def go_on(self, reports: Sequence[RoundReport]) -> None:
        """Take up the record of a run that goes on.

        Raises:
            StoreError: it is not there, or does not know of a round that is over.
        """
        record = self._folder.privacy()
        released = {report.round: report.adapter_sha256 for report in reports if report.round > 0}
        known = {spent.adapter_sha256 for spent in record.spent} if record else set()
        missing = [number for number, sha256 in released.items() if sha256 not in known]
        if record is None or missing:
            what = f"knows nothing of round {missing[0]}" if record else "is missing or damaged"
            raise StoreError(
                f"{self._folder.path / PRIVACY_FILE} {what}, so that nobody knows what is spent of the budget; restore "
                "it, or start a new run, which has no budget in common with this one"
            )
        self._record = record
        # Worked out once: a run that is prolonged has no other noise.
        self._settings = replace(self._settings, noise_multiplier=record.noise_multiplier)

    @property
    def epsilon(self) -> float:
        """What is spent."""
        return self._record.epsilon()

    @property
    def is_spent(self) -> bool:
        """Whether another round would pass the budget."""
        budget = self._settings.budget
        return budget is not None and self._record.epsilon(self._settings.of_a_round) > budget

    def is_over_after(self, number: int) -> bool:
        """Whether no round follows this one: the next would pass the budget, and is not spent on already."""
        return self.is_spent and self._record.result_of(number + 1) is None

    def why_over(self, number: int, num_rounds: int) -> str:
        """Return why no round follows this one, in a line."""
        return (
            f"the run ended after round {number} of {num_rounds}: privacy.epsilon = {self._settings.budget:g} is its "
            f"budget, of which {self.epsilon:.3f} is spent, and another round would pass it; its adapter is whole"
        )

    def num_clipped(self, number: int) -> tuple[int, ...]:
        """Return by sum of a round of how many clients the term was clipped."""
        spent = self._record.result_of(number)
        return spent.num_clipped if spent else ()

    def combined(self, number: int, collected: Collected, *, start: Adapter, plan: RoundPlan) -> Adapter:
        """Return the round's global adapter, noised and on disk.

        Raises:
            StoreError: one was released and is lost, and another would pass the budget.
        """
        known = self._record.result_of(number)
        if known and (stored := self._folder.adapter_after(number, known.adapter_sha256)):
            return stored.adapter
        if self.is_spent:
            raise StoreError(
                f"{self._folder.path}: the adapter of round {number} was released and is lost, and the budget allows "
                "no other; restore the folder, or start a new run"
            )
        settings = self._settings
        announce("spend")
        self._record = self._record.with_spent(Spent(number, settings.noise_multiplier, len(settings.clips)))
        self._folder.write_privacy(self._record)
        announce("add noise")
        result = private_round(
            collected.updates,
            start=start,
            method=self._method,
            trains=plan.trains,
            num_asked=len(collected.cohort),
            clips=settings.clips,
            noise_multiplier=settings.noise_multiplier,
        )
        stored = self._folder.write_adapter(number, result.adapter)
        announce("release")
        self._record = self._record.with_result(stored.sha256, result.num_clipped)
        self._folder.write_privacy(self._record)
        return stored.adapter
