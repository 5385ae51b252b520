"""What of a client's round is private to each example: its noise, its budget, and what is not told at all."""

import logging
import math
from dataclasses import replace

from fedlora.client.worker.ledger import Ledger, Spending, of_run
from fedlora.common.config import RunConfig
from fedlora.common.errors import ConfigError, FedloraError
from fedlora.common.messages import PRIVACY_BUDGET, TrainReceipt
from fedlora.privacy.accounting import accountant
from fedlora.privacy.sampled_steps import epsilon_of_steps
from fedlora.training.private_steps import StepPrivacy, expected_in, multiplier_of

logger = logging.getLogger(__name__)


class PrivacyBudgetSpent(FedloraError):  # noqa: N818 (what happened)
    """A training that would tell more of the client's examples than the run, or their site, allows."""

    code = PRIVACY_BUDGET


class ClientPrivacy:
    """The privacy of examples as `privacy.unit` asks for it: of steps with noise and a ledger, or none."""

    def __init__(self, config: RunConfig, ledger: Ledger | None, *, most_epsilon: float | None) -> None:
        """Take the ledger of the clients here.

        Args:
            most_epsilon: over all runs of the ledger, where its site says so.

        Raises:
            ConfigError: examples are to be private, and there is no ledger, or no accountant.
        """
        self._settings = config.privacy
        self._train = config.train
        self._num_rounds = config.federation.rounds
        self._most_epsilon = most_epsilon
        self._multipliers: dict[tuple[int, int], float] = {}
        self.is_on = config.privacy.unit == "example"
        if self.is_on:
            accountant()
            if ledger is None:
                raise ConfigError('privacy.unit = "example" has no folder for its ledger here; take part from a site')
            self._ledger = ledger

    def steps(self, *, num_examples: int, num_steps: int) -> StepPrivacy | None:
        """Return the noise of the steps of a round of so many, None where there is none.

        Raises:
            ConfigError: no noise is enough for the run's epsilon.
        """
        if not self.is_on:
            return None
        (clip,) = self._settings.clips
        return StepPrivacy(self._multiplier(num_examples, num_steps), clip)

    def require_budget(self, run: str, client: str, *, num_examples: int, num_steps: int) -> None:
        """Check that a training of so many steps is within what the run allows, and the site over all runs.

        Raises:
            PrivacyBudgetSpent: it is not.
            StoreError: the ledger cannot be read.
        """
        if not self.is_on:
            return
        spent = self._ledger.of(client)
        # A site's examples are the same under whatever name it takes part.
        of_all = spent if self._most_epsilon is None else self._ledger.of_all()
        next_one = replace(self._kind(run, num_examples, num_steps), num_steps=num_steps)
        for entries, most, whose in (
            (of_run(spent, run), self._settings.epsilon, "privacy.epsilon"),
            (of_all, self._most_epsilon, "limits.epsilon, over all runs"),
        ):
            if most is None:
                continue
            after = self._epsilon((*entries, next_one))
            if not after <= most:
                raise PrivacyBudgetSpent(
                    f"{client} has spent an epsilon of {self._epsilon(entries):.3g} of {most:g} ({whose}), and another "
                    f"training would make it {after:.3g}"
                )

    def enter(self, run: str, client: str, *, num_examples: int, num_asked: int, num_steps: int) -> None:
        """Enter a training in the ledger, before anything of it is told.

        Args:
            num_asked: steps of a whole round, by which its noise was chosen.
            num_steps: that were done.

        Raises:
            StoreError: it cannot be entered, and nothing may be told.
        """
        if not self.is_on:
            return
        self._ledger.enter(client, self._kind(run, num_examples, num_asked), num_steps=num_steps)

    def told(self, receipt: TrainReceipt) -> TrainReceipt:
        """Return a receipt without the numbers that have no noise: the loss, and the scores, which were not judged.

        Nor does it have times: how long steps took, and how many examples a forward pass had, tells of what was drawn.
        """
        if not self.is_on:
            return receipt
        logger.info("%s: round %d: loss %.4g, which is not told", receipt.client, receipt.round, receipt.loss)
        return replace(
            receipt, loss=math.nan, withheld=("loss", "scores"), seconds={}, micro_batch_size=0, num_tokens=0
        )

    def _kind(self, run: str, num_examples: int, num_steps: int) -> Spending:
        multiplier = self._multiplier(num_examples, num_steps)
        drawn = expected_in(self._train, num_examples)
        return Spending(run, self._settings.delta, multiplier, drawn, num_examples)

    def _epsilon(self, entries: tuple[Spending, ...] | list[Spending]) -> float:
        # At the least delta of them: a run does not make larger ones of others' look small.
        delta = min([self._settings.delta, *(entry.delta for entry in entries)])
        return epsilon_of_steps([entry.steps for entry in entries], delta=delta)

    def _multiplier(self, num_examples: int, num_steps: int) -> float:
        """Return the noise multiplier: the run's, or the least with which all its rounds are within its epsilon."""
        if (num_examples, num_steps) not in self._multipliers:
            self._multipliers[num_examples, num_steps] = multiplier_of(
                self._settings,
                num_steps=self._num_rounds * num_steps,
                num_drawn=expected_in(self._train, num_examples),
                num_examples=num_examples,
            )
        return self._multipliers[num_examples, num_steps]
