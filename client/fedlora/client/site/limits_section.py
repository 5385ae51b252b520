"""[limits] of the site file: what a site lets a run and its server do. What it does not name, they do not choose.

Each default is the site's own word, and a run that asks for more is refused before anything of it is loaded. Only
`max_steps`, `max_seconds` and `max_judged` are kept to without refusing.
"""

from datetime import time
from typing import Annotated, Literal

from pydantic import Field, field_validator

from fedlora.common.config import Count, Section
from fedlora.common.section import Positive

Names = Annotated[tuple[str, ...], Field(strict=False)]


class LimitsSection(Section):
    runs: Names = Field(
        (),
        description="the runs to take part in, by name, where * stands for any letters; if empty, all of the server's",
    )
    base_models: Names = Field(
        (),
        description="base models that may be loaded or fetched, as runs name them; NAME@REVISION pins one, sha256:... "
        "allows weights; if empty, those of `packages` and [model] path",
    )
    packages: Names = Field(
        ("fedlora.embedded",), description="installed packages in which a run may name its base model"
    )
    tasks: Names = Field((), description="tasks of task.kind = own that a run may name")
    columns: Names = Field(
        (), description="columns of the data that a run may name, beside those of [data] and the usual text, label ..."
    )
    modules_to_save: Names = Field((), description="modules that a run may train whole, beside the task's head")
    allow: Annotated[tuple[Literal["expressions", "chat_template"], ...], Field(strict=False)] = Field(
        (), description="expressions: layers chosen by regular expressions; chat_template: one that the run brings"
    )
    max_rank: Count = Field(256, description="the largest rank of a layer")
    max_epochs: Positive = Field(100.0, description="passes over the examples in a round")
    max_batch_size: Count = Field(1024, description="examples of a step or of a forward pass")
    max_length: Count = Field(32_768, description="tokens of an example, or of a generated answer")
    max_image_size: Count = Field(1024, description="pixels of a picture's side")
    max_rounds: Count = Field(1000, description="rounds of a run")
    max_steps: Count | None = Field(
        None, description="the most optimiser steps in a round; of a run that asks for more, so many are done"
    )
    max_seconds: Positive = Field(
        86_400.0, description="the longest training of a round; it ends after the step at work, and is sent as it is"
    )
    quiet_hours: str | None = Field(None, description='no training between these times of the day: "22:00-06:30"')
    metrics: Annotated[tuple[Literal["loss", "scores"], ...], Field(strict=False)] = Field(
        ("loss", "scores"), description="which numbers may leave beside the adapter"
    )
    secure_sums: bool = Field(
        False, description="take part only where the server learns sums over the sites alone (privacy.secure_sums)"
    )
    least_cohort: Count = Field(
        1, description="take part only where a round asks so many sites, as far as the run file says"
    )
    epsilon_per_run: Positive | None = Field(
        None,
        description='take part only where examples are private (privacy.unit = "example") and a run has no larger '
        "privacy.epsilon",
    )
    epsilon: Positive | None = Field(
        None,
        description="take part only where examples are private, and until all runs together have told this much of "
        "one, by the ledger of this site's folder",
    )
    least_examples: Count = Field(
        20, description="over fewer examples no score leaves, and on fewer in a round nothing is trained"
    )
    max_judged: Count = Field(1000, description="the most examples of one kind that are judged; the same every time")
    evaluations_per_round: Count = Field(
        8, description="adapters that are judged for one round; after that its scores are withheld"
    )
    samples: Count = Field(
        1,
        description="choices of examples whose scores leave in the life of the site's folder: a run with another seed, "
        "split or task is another choice, and two can be compared",
    )

    @field_validator("quiet_hours")
    @classmethod
    def _is_a_span(cls, text: str | None) -> str | None:
        if text is not None:
            quiet_span(text)
        return text


def quiet_span(text: str) -> tuple[time, time]:
    """Return begin and end of `HH:MM-HH:MM`, which may have seconds.

    Raises:
        ValueError: it is something else.
    """
    try:
        begin, end = (_time_of_day(part.strip()) for part in text.split("-"))
    except ValueError as error:
        raise ValueError(f'is {text!r}; expected two times of the day, such as "22:00-06:30"') from error
    return begin, end


def is_quiet(text: str | None, now: time) -> bool:
    """Return whether `now` is in the quiet hours, which may go over midnight."""
    if text is None:
        return False
    begin, end = quiet_span(text)
    return begin <= now < end if begin <= end else now >= begin or now < end


def _time_of_day(text: str) -> time:
    found = time.fromisoformat(text.zfill(len("09:05")))
    if ":" not in text or found.tzinfo is not None:
        raise ValueError(f"{text!r} is no time of this site's clock")
    return found
