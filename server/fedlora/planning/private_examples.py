"""What a run whose examples are private would spend of their privacy, client by client."""

from bisect import bisect_right
from collections.abc import Iterator

from fedlora.common.config import RunConfig
from fedlora.planning.clients import PlannedClients
from fedlora.privacy.sampled_steps import SampledSteps, epsilon_of_steps
from fedlora.training.private_steps import expected_in, multiplier_of
from fedlora.training.schedule import steps_of_round

# Of more, the smallest and the largest clients are told: who has fewer examples has less privacy for the same noise.
_MOST_SIZES = 8


def privacy_lines(config: RunConfig, clients: PlannedClients) -> Iterator[str]:
    """Yield for the clients of each size their noise and what all rounds would spend; nothing without privacy.

    Raises:
        ConfigError: dp-accounting is not installed, or no noise is enough.
    """
    if config.privacy.unit != "example":
        return
    by_size: dict[int, list[str]] = {}
    for client, size in clients.sizes.items():
        by_size.setdefault(size, []).append(client)
    sizes = sorted(by_size)
    if len(sizes) > _MOST_SIZES:
        sizes = [sizes[0], sizes[-1]]
    for size in sizes:
        names = by_size[size]
        whose = f"{len(names)} clients" if len(names) > _MOST_SIZES else ", ".join(names)
        yield f"privacy of {whose} ({size:,} examples): {_course(config, size)}"
    if not sizes:
        yield f"privacy of a client ({clients.num_examples:,} examples): {_course(config, clients.num_examples)}"


def _course(config: RunConfig, num_examples: int) -> str:
    """Return what a client with so many examples would spend, and in how many rounds its budget is gone."""
    privacy, rounds = config.privacy, config.federation.rounds
    num_steps, drawn = steps_of_round(config.train, num_examples), expected_in(config.train, num_examples)
    multiplier = multiplier_of(privacy, num_steps=rounds * num_steps, num_drawn=drawn, num_examples=num_examples)

    def epsilon_after(num_rounds: int) -> float:
        steps = SampledSteps(multiplier, num_rounds * num_steps, drawn, num_examples)
        return epsilon_of_steps([steps], delta=privacy.delta)

    text = (
        f"noise_multiplier {multiplier:g}; {rounds} rounds of {num_steps} steps would spend an epsilon of "
        f"{epsilon_after(rounds):.3g} at a delta of {privacy.delta:g}"
    )
    if privacy.epsilon is None or epsilon_after(rounds) <= privacy.epsilon:
        return text
    last = bisect_right(range(rounds), privacy.epsilon, key=epsilon_after) - 1
    return f"{text}, and its budget of {privacy.epsilon:g} is for {last} of them"
