"""Updates that come after their round has gone on: they may still count in a later one."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fedlora.common.messages import TrainReceipt, TrainRequest
from fedlora.server.rounds.inquiry import Answer, Inquiry
from fedlora.server.rounds.starts import Start


@dataclass(frozen=True, eq=False)
class _Left:
    """A round that went on without some clients."""

    inquiry: Inquiry[TrainReceipt]
    starts: Mapping[str, Start]


class LateUpdates:
    """The clients that rounds went on without, whose answers are still waited for, beside the round that is on."""

    def __init__(self) -> None:
        self._left: list[_Left] = []

    def leave(self, inquiry: Inquiry[TrainReceipt], starts: Mapping[str, Start]) -> None:
        """Go on without those of an inquiry that have not answered."""
        if inquiry.waiting:
            self._left.append(_Left(inquiry, starts))

    @property
    def busy(self) -> set[str]:
        """The clients that still work for an earlier round."""
        return {client for left in self._left for client in left.inquiry.waiting}

    def arrived(self) -> Iterator[tuple[Answer[TrainReceipt], TrainRequest]]:
        """Yield the answers that have come since, each with the request that it answers."""
        for left in self._left:
            for answer in left.inquiry.poll():
                yield answer, left.starts[answer.key].asked(answer.attempt)
        self._left = [left for left in self._left if left.inquiry.waiting]
