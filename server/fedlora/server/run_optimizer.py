"""The server's optimiser that a run names."""

from fedlora.aggregation import ServerOptimizer
from fedlora.common.config import FederationSection


def server_optimizer_of(settings: FederationSection) -> ServerOptimizer | None:
    """Return how the server steps to what a round's updates become; None where it takes that as it is."""
    if settings.server_optimizer == "none":
        return None
    return ServerOptimizer(
        kind=settings.server_optimizer,
        acts_on=settings.server_acts_on,
        learning_rate=settings.server_learning_rate,
        momentum=settings.server_momentum,
        beta_1=settings.server_beta_1,
        beta_2=settings.server_beta_2,
        tau=settings.server_tau,
    )
