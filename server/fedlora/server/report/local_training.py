"""What local training did in each round, by client, and how much it saw. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fedlora.server.report.numbers import Measure, metric_of
from fedlora.server.round_report import RoundReport


@dataclass(frozen=True)
class LocalTraining:
    """A client's score on its own validation examples before and after its local training in one round."""

    round: int
    before: float
    after: float


def local_trainings(reports: Iterable[RoundReport], of: Measure = metric_of) -> dict[str, list[LocalTraining]]:
    """Return by client, in the names' order, what each local training changed where both scores are known."""
    found: dict[str, list[LocalTraining]] = {}
    for report in reports:
        for name, client in report.clients.items():
            if client.before is not None and client.after is not None:
                training = LocalTraining(report.round, of(client.before), of(client.after))
                found.setdefault(name, []).append(training)
    return dict(sorted(found.items()))


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
    tokens: dict[str, int] = {}
    for report in reports:
        for name, client in report.clients.items():
            tokens[name] = tokens.get(name, 0) + client.num_tokens
    return {name: count for name, count in sorted(tokens.items()) if count > 0}


def narrowed_rounds(reports: Iterable[RoundReport]) -> dict[str, dict[int, int]]:
    """Return by client the rounds in which want of memory narrowed its forward passes, and to how many examples."""
    found: dict[str, dict[int, int]] = {}
    for report in reports:
        for name, client in report.clients.items():
            if client.micro_batch_size > 0:
                found.setdefault(name, {})[report.round] = client.micro_batch_size
    return dict(sorted(found.items()))
