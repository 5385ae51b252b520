"""What is known of the runs of a comparison once they are over: one object of `comparison.json` for each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from fedlora.common.codec import Codec


@dataclass(frozen=True)
class Course:
    """What changes from round to round, each a value for round 0, 1 ... to the last; nan where nothing was measured.

    Attributes:
        metric, loss: of the global adapter on the held-out test set, or the sample of it that the run judges each
            round; the last value is over the whole test set.
        validation: its loss on the clients' own validation examples.
        megabytes: of adapters, down and up to all clients together, since the start.
        error_before, error_after: of the average, relative to the exact one, before and after the method's correction.
    """

    metric: tuple[float, ...]
    loss: tuple[float, ...]
    validation: tuple[float, ...]
    megabytes: tuple[float, ...]
    error_before: tuple[float, ...]
    error_after: tuple[float, ...]


@dataclass(frozen=True)
class RunResult:
    """One run: a variant at one draw.

    Attributes:
        variant: what was run: a method's name, with "train.learning_rate=0.002" and the like behind it.
        draw: of partition, first adapter and batches; runs of one draw are paired.
        folder: of the run, relative to the comparison's.
        groups: the last metric by group of the test set (domain, language).
        clients: the last score by client on its own validation examples: the metric.
        layer_errors: by layer, the relative error of the average before and after, in the last round.
        client_seconds, server_seconds: of all clients' training together, and of aggregation and storing.
        first_average: sha256 of the global adapter after round 1.
        second_losses: the clients' training losses in round 2, by which it shows whether they train from it.
        fault: why the run counts for nothing, such as clients that go on from their own updates; else empty.
    """

    variant: str
    draw: int
    folder: str
    course: Course
    groups: Mapping[str, float] = field(default_factory=dict)
    clients: Mapping[str, float] = field(default_factory=dict)
    layer_errors: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    client_seconds: float = 0.0
    server_seconds: float = 0.0
    first_average: str = ""
    second_losses: Mapping[str, float] = field(default_factory=dict)
    fault: str = ""

    @property
    def has_failed(self) -> bool:
        """Whether an error ended it, perhaps one that passes: the same command tries it again."""
        return bool(self.fault) and not self.course.metric


@dataclass(frozen=True)
class IdleTrial:
    """A run to choose by that says nothing of the values it tried, which are then chosen last.

    Attributes:
        variant, draw: of the run.
        tried: its values by key.
        why: what is wrong with it.
        has_failed: as of a run.
    """

    variant: str
    draw: int
    tried: Mapping[str, str]
    why: str
    has_failed: bool = False


@dataclass(frozen=True)
class Variant:
    """What is compared: a method with the settings that the comparison gives it.

    Attributes:
        name: as runs name it.
        method: of aggregation; or a reference: "centralised", "local_only", "head_only".
        settings: overrides of the run file, as they would be typed.
        chosen: those of them that were chosen on the clients' validation, and from which values.
        kind: "method", or "reference": what no federation can be, shown for scale and not tested against.
    """

    name: str
    method: str
    settings: Mapping[str, str] = field(default_factory=dict)
    chosen: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    kind: Literal["method", "reference"] = "method"


@dataclass(frozen=True)
class Comparison:
    """All of it.

    Attributes:
        title: the run file's name.
        metric_name: an accuracy is between 0 and 1; of any other metric the name says what it is.
        baseline: the variant that the others are compared with.
        num_draws: as asked for; `runs` may have fewer as long as it is not over.
        command: makes it again.
        idle_trials: of the runs to choose by, those by which nothing can be chosen.
        names_clients: whether a client of one name has the same examples in every draw, as where each has a group of
            the data; else a name says nothing, and clients are told by their places from the worst to the best.
    """

    title: str
    metric_name: str
    baseline: str
    num_draws: int
    variants: tuple[Variant, ...]
    runs: tuple[RunResult, ...]
    command: str = ""
    idle_trials: tuple[IdleTrial, ...] = ()
    names_clients: bool = True


CODEC = Codec(Comparison)
