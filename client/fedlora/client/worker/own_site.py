"""What a site's worker knows of its site, beside run and data."""

from dataclasses import dataclass


@dataclass(frozen=True)
class OwnSite:
    """The one client of a site, and what of it is the site's own.

    Attributes:
        only_group: of a source with groups, the one whose examples are the site's.
        max_steps, max_seconds: the most that it allows a round.
        most_loss: of one example that it judges; a larger one counts as this much.
        least_cohort: so many clients it wants to be summed up with, itself among them.
        epsilon: the most that all runs may tell of an example of the site's, where they are to be private.
    """

    name: str
    only_group: str | None = None
    max_steps: int | None = None
    max_seconds: float | None = None
    most_loss: float | None = None
    epsilon: float | None = None
    least_cohort: int = 1
