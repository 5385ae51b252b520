"""What local training did in each round, by client, and how much it saw. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fedlora.server.record.round_report import RoundReport
from fedlora.server.report.numbers import Measure, by_client, metric_of


@dataclass(frozen=True)
class LocalTraining:
    """A client's score on its own validation examples before and after its local training in one round."""

    round: int
    before: float
    after: float


def local_trainings(reports: Iterable[RoundReport], of: Measure = metric_of) -> dict[str, list[LocalTraining]]:
    """Return by client, in the names' order, what each local training changed where both scores are known."""
    judged = by_client(
        reports, lambda client: (of(client.before), of(client.after)) if client.before and client.after else None
    )
    return {name: [LocalTraining(at, *scores) for at, scores in rounds.items()] for name, rounds in judged.items()}


def mean_local_trainings(by_client: Mapping[str, Sequence[LocalTraining]]) -> list[LocalTraining]:
    """Return the plain mean over the clients of each round."""
    by_round: dict[int, list[LocalTraining]] = {}
    for trainings in by_client.values():
        for training in trainings:
            by_round.setdefault(training.round, []).append(training)
    return [
        LocalTraining(at, sum(t.before for t in each) / len(each), sum(t.after for t in each) / len(each))
        for at, each in sorted(by_round.items())
    ]


def tokens_by_client(reports: Iterable[RoundReport]) -> dict[str, int]:
    """Return the answer tokens that each client has trained on, of those that have; empty without a language model."""
    tokens = by_client(reports, lambda client: client.num_tokens or None)
    return {name: sum(by_round.values()) for name, by_round in tokens.items()}
