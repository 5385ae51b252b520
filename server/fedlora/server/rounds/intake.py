"""The updates of a round as they come in: admitted, on disk, and only then acknowledged."""

import logging
import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from fedlora.adapters import Adapter
from fedlora.adapters.moments import Moments, Sharing
from fedlora.common.messages import UNREADABLE, Failure, SiteDescription, TrainReceipt
from fedlora.common.phases import announce
from fedlora.server.disk.store import RunFolder
from fedlora.server.record.events import Listener, ScoreNotFinite, UpdateArrived
from fedlora.server.rounds.admission import Admitted, Refusal, admit, outliers
from fedlora.server.rounds.believable import believable_update, is_finite
from fedlora.server.rounds.inquiry import Answer
from fedlora.server.rounds.starts import Start
from fedlora.server.sites import Sites

logger = logging.getLogger(__name__)


class Intake:
    """What has come together of a round.

    Attributes:
        receipts: of the updates that count, by client.
        refused: why the others do not, by client.
        answered: by client, the seconds from the round's begin to its answer.
        storing_seconds: what writing took.
    """

    def __init__(
        self,
        number: int,
        folder: RunFolder,
        sites: Sites,
        listener: Listener,
        *,
        described: Callable[[str], SiteDescription],
        weighs_tokens: bool,
        is_own_task: bool = False,
        sharing: Sharing | None = None,
    ) -> None:
        """Take in a round's updates.

        Args:
            described: returns what a client says of itself.
            weighs_tokens: whether an update counts by the tokens that it was trained on.
            is_own_task: whether scores are those of a task of one's own.
            sharing: what moments come beside the updates; none if None.
        """
        self._number = number
        self._folder = folder
        self._sites = sites
        self._listener = listener
        self._described = described
        self._weighs_tokens = weighs_tokens
        self._is_own_task = is_own_task
        self._sharing = sharing
        self._began = time.monotonic()
        self._admitted: dict[str, Admitted] = {}
        self.receipts: dict[str, TrainReceipt] = {}
        self.refused: dict[str, str] = {}
        self.answered: dict[str, float] = {}
        self.storing_seconds = 0.0

    @property
    def updates(self) -> Mapping[str, Adapter]:
        """The updates that count, by client."""
        return {client: admitted.update for client, admitted in self._admitted.items()}

    @property
    def moments(self) -> Mapping[str, Moments]:
        """The moments of the clients' optimisers, by client, where the run shares them."""
        return {client: admitted.moments for client, admitted in self._admitted.items()}

    @property
    def clients(self) -> Collection[str]:
        """The clients whose update counts."""
        return self._admitted.keys()

    @property
    def flags(self) -> Mapping[str, str]:
        """What is out of the ordinary about updates that count, by client."""
        return {client: admitted.flag for client, admitted in self._admitted.items() if admitted.flag}

    def recover(self, receipt: TrainReceipt, start: Start) -> None:
        """Take an update that an earlier process has accepted, of this round or a late one."""
        asked = replace(start.asked(receipt.attempt), round=min(receipt.round, self._number))
        self._admit(receipt.client, receipt, replace(start, request=asked), receipt.attempt)

    def take(self, answer: Answer[TrainReceipt], start: Start) -> None:
        """Take an answer, have it on disk if it counts, and only then tell the site."""
        client, content = answer.key, answer.content
        refusal = self._admit(client, content, start, answer.attempt)
        self.answered[client] = time.monotonic() - self._began
        if refusal is None:
            self.refused.pop(client, None)
            self._write(self.receipts[client])
        else:
            self.refused[client] = str(refusal)
            # What a site itself could not do is no update.
            if isinstance(content, TrainReceipt) or content.code == UNREADABLE:
                self._folder.quarantine(self._number, client, content, str(refusal))
        self._sites.acknowledge(answer.reply_id, "" if refusal is None else refusal.code)
        self._tell(client, content)

    def refuse_outliers(self, limit: float, *, by_factors: bool) -> None:
        """Refuse the updates that have moved very much further than the others."""
        for client, outlier in outliers(self._admitted, norm_limit=limit, by_factors=by_factors).items():
            del self._admitted[client]
            receipt = self.receipts.pop(client)
            self.refused[client] = str(outlier)
            self._folder.quarantine(self._number, client, receipt, str(outlier))
            # It was acknowledged when it came, before there was a cohort to compare it with.
            self._sites.take_back(client, receipt.round, outlier.code)
            self._tell(client, receipt)

    def _admit(self, client: str, content: TrainReceipt | Failure, start: Start, attempt: int) -> Refusal | None:
        if isinstance(content, Failure):
            return Refusal(content.code, content.text)
        request, site = start.asked(attempt), self._described(client)
        found = admit(
            content,
            request=request,
            client=client,
            num_examples=site.num_examples,
            reference=start.adapter,
            weighs_tokens=self._weighs_tokens,
            sharing=self._sharing,
        )
        if isinstance(found, Refusal):
            return found
        receipt, fault = believable_update(content, request=request, site=site, is_own_task=self._is_own_task)
        if fault:
            logger.warning("round %d: a score of %s does not count: %s", self._number, client, fault)
        if not all(is_finite(score) for score in (content.before, content.after) if score is not None):
            self._listener(ScoreNotFinite(self._number, client))
        self._admitted[client], self.receipts[client] = found, receipt
        return None

    def _write(self, receipt: TrainReceipt) -> None:
        began = time.perf_counter()
        announce("accept")
        self._folder.write_accepted(self._number, receipt)
        self.storing_seconds += time.perf_counter() - began

    def _tell(self, client: str, content: TrainReceipt | Failure) -> None:
        loss, sha256 = math.nan, ""
        if isinstance(content, TrainReceipt):
            loss, sha256 = content.loss, content.wire_sha256
        reason, flag = self.refused.get(client, ""), self.flags.get(client, "")
        self._listener(UpdateArrived(self._number, client, reason, loss, flag, sha256))
