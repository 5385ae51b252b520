"""What a run that protects its clients does for it: the noise of its releases, by its run file."""

from fedlora.common.config import RunConfig
from fedlora.common.errors import ConfigError
from fedlora.methods import Method, names_of
from fedlora.privacy.accounting import Release, epsilon_of, most_count, noise_multiplier_for
from fedlora.server.record.privacy_record import ClientPrivacy


def client_privacy_of(config: RunConfig, method: Method) -> ClientPrivacy | None:
    """Return how the run protects its clients; None where it adds no noise. Imports torch where it does.

    Raises:
        ConfigError: there is no accountant, the clips are not as many as the method's sums, or the budget allows no
            round.
    """
    settings = config.privacy
    if settings.unit != "client":
        return None
    from fedlora.server.rounds.private_round import sums_of

    num_sums, clips = sums_of(method), settings.clips
    if len(clips) != num_sums:
        example = [clips[0], *(round(clips[0] / 10, 6) for _ in range(num_sums - 1))]
        raise ConfigError(
            f"privacy.clip has {len(clips)} of the {num_sums} norms that it takes: {method.name} releases {num_sums} "
            f"sums in a round, each clipped to a norm of its own; write {num_sums}, such as "
            f"{example if num_sums > 1 else example[0]}"
        )
    num_rounds, multiplier = config.federation.rounds, settings.noise_multiplier
    if multiplier is None:
        # The sections see to it that one of them is there.
        epsilon = settings.epsilon or 0.0
        multiplier = noise_multiplier_for(num_rounds * num_sums, epsilon=epsilon, delta=settings.delta)
    elif settings.epsilon is not None:
        each = [Release(multiplier, num_sums)]
        num_rounds = min(num_rounds, most_count(each, epsilon=settings.epsilon, delta=settings.delta))
        if num_rounds == 0:
            raise ConfigError(
                f"privacy.epsilon = {settings.epsilon:g} allows no round: one has "
                f"{epsilon_of(each, delta=settings.delta):.2f} at privacy.noise_multiplier = {multiplier:g} and "
                f"privacy.delta = {settings.delta:g}; take more noise, or a larger budget"
            )
    else:
        epsilon_of([], delta=settings.delta)  # No accountant, no noise.
    linear = names_of(lambda kind: len(kind().plan(1).trains) == 1) if len(method.plan(1).trains) > 1 else ""
    return ClientPrivacy(multiplier, clips, settings.delta, settings.epsilon, num_rounds, linear)
