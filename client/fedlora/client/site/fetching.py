"""The global adapters of a request: each fetched once for each site, and of a known one only the difference."""

from collections.abc import Callable, Collection
from pathlib import Path

from fedlora.client.site.line import Line
from fedlora.client.site.outbox import Outbox
from fedlora.client.site.transfer import download
from fedlora.common.config import BASE_CHANGING_INITS, RunConfig
from fedlora.common.errors import AdapterError
from fedlora.common.messages import SiteDescription
from fedlora.common.phases import announce
from fedlora.methods import Method
from fedlora.v1 import messages_pb2

# A file's header and its names: of a change of the base weights it has more of them than what the site made.
_HEADER_BYTES = 1 << 18
# Each adapter of a round may have to come again, where the round is repeated or the server restarts.
_TIMES_PER_ROUND = 4
# The most that a total of secure sums is of, for each number of an adapter.
_TIMES_AN_ADAPTER = 8


class OversizeAdapter(AdapterError):  # noqa: N818 (it says what was found)
    """The server offers more than an adapter of this run can be."""

    code = "adapter_too_large"


class Downloads:
    """How much a site fetches: an adapter of its own model's shape, a few times in each round."""

    def __init__(self, run: RunConfig, description: SiteDescription) -> None:
        """`description` is the worker's, who has made the first adapter itself."""
        self._most_bytes = most_bytes(run, description)
        # A number of each kind for each number of the site's own first adapter.
        self._most_bytes_of_moments = len(run.train.shared_moments) * (description.adapter_bytes + _HEADER_BYTES)
        # One to train, one to judge, and the one before.
        num_adapters = 3 if run.train.client_momentum > 0 else 2
        self._most_bytes_of_round = _TIMES_PER_ROUND * (num_adapters * self._most_bytes + self._most_bytes_of_moments)
        if run.privacy.secure_sums:
            # A total comes after each sum but the last, of a sketch some times as large; and a round may begin anew.
            self._most_bytes *= _TIMES_AN_ADAPTER
            self._most_bytes_of_round *= _TIMES_AN_ADAPTER * _TIMES_PER_ROUND
        self._bytes_of_rounds: dict[int, int] = {}

    def require_possible(self, offered: messages_pb2.OfferedAdapter, *, are_moments: bool = False) -> None:
        """Check that what is on offer can be an adapter of this run, or its moments.

        Raises:
            OversizeAdapter: it is larger.
        """
        largest = max(offered.whole.size_bytes, offered.difference.size_bytes)
        most = self._most_bytes_of_moments if are_moments else self._most_bytes
        if largest > most:
            what, one = ("moments", "all") if are_moments else ("an adapter", "one")
            raise OversizeAdapter(
                f"the server offers {what} of {largest:,} bytes, and {one} of this run takes at most {most:,}: it is "
                "not fetched"
            )

    def counter(self, round: int) -> Callable[[int], None]:
        """Return what counts the bytes that come for a round.

        Raises:
            OversizeAdapter: (when it is called) it is too much for one round.
        """

        def count(num_bytes: int) -> None:
            total = self._bytes_of_rounds.get(round, 0) + num_bytes
            self._bytes_of_rounds[round] = total
            if total > self._most_bytes_of_round:
                raise OversizeAdapter(
                    f"round {round}: more than {total - num_bytes:,} bytes of adapters; expected at most "
                    f"{self._most_bytes_of_round:,}"
                )

        return count


def most_bytes(run: RunConfig, description: SiteDescription) -> int:
    """Return how large the file of an adapter of this run can be.

    That is what the site's own first one takes, and where the run changes base weights, all that are adapted: a change
    of any rank is sent as one matrix where that is smaller.
    """
    may_change_base = not isinstance(run.aggregation, Method) or run.aggregation.changes_base
    if run.lora.init in BASE_CHANGING_INITS:
        may_change_base = True
    return description.adapter_bytes + _HEADER_BYTES + (description.adapted_bytes if may_change_base else 0)


def fetch(
    offered: messages_pb2.OfferedAdapter,
    outbox: Outbox,
    line: Callable[[], Line],
    *,
    takes_difference: bool,
    made: Collection[Path] = (),
    count: Callable[[int], None],
) -> tuple[Path, tuple[Path, Path] | None]:
    """Return the file of the adapter on offer; where it is not there yet, the difference and reference it is made of.

    Args:
        line: gives the present connection, where one is needed.
        takes_difference: whether a difference will do, if the site holds what it is to.
        made: files that will be there before this one is made.
        count: is told of the bytes that come, and may raise.

    Raises:
        grpc.RpcError: the connection broke; calling again goes on.
        FedloraError: the file came damaged again and again, or does not fit on the disk.
    """
    whole = outbox.adapter_file(offered.whole.sha256.hex())
    if whole.is_file():
        return whole, None
    connection = line()

    def bring(blob: messages_pb2.Blob, target: Path) -> None:
        download(connection.exchange, blob, target, metadata=connection.metadata, count=count)

    announce("download")
    reference = outbox.adapter_file(offered.reference.sha256.hex())
    if takes_difference and offered.HasField("difference") and (reference.is_file() or reference in made):
        difference = outbox.adapter_file(offered.difference.sha256.hex())
        if not difference.is_file():
            bring(offered.difference, difference)
        return whole, (difference, reference)
    bring(offered.whole, whole)
    return whole, None
