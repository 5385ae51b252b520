"""[privacy]: what a server learns of a client, and how much all that is made known can tell."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedlora.common.section import Positive, Section

# Beyond these float32 does not compute as the accountant does.
_LEAST, _MOST = 1e-6, 1e6

_Clips = Annotated[tuple[Positive, ...], Field(strict=False, min_length=1)]


class PrivacySection(Section):
    secure_sums: bool = Field(
        False,
        description="the server learns sums over the clients alone, and no single client's update; each client is told "
        "the others' names",
    )
    unit: Literal["none", "client", "example"] = Field(
        "none",
        description='whom differential privacy protects; "client": each client as a whole, in the global adapters, by '
        'noise that the server adds; "example": each example of a client, from the server and all others, by noise in '
        "the client's own steps",
    )
    epsilon: Positive | None = Field(
        None,
        description="the budget, over all rounds: the run ends before it is passed, or who would pass it trains no "
        "more; without noise_multiplier also what the noise is worked out from, for federation.rounds",
    )
    delta: Annotated[float, Field(gt=0, lt=1)] = Field(
        1e-5,
        description="the chance that epsilon does not hold; far below one over the number of clients, or examples",
    )
    noise_multiplier: Positive | None = Field(
        None, description="the noise's standard deviation, over the norm that clip leaves"
    )
    clip: Positive | _Clips | None = Field(
        None,
        description="the most that a norm may be: of an example's gradient over all that is trained; of what a client "
        "adds to a sum, where the method takes several sums in a round a list: one for each, in their order",
    )

    @property
    def clips(self) -> tuple[float, ...]:
        """The bounds, in their order."""
        if self.clip is None:
            return ()
        return self.clip if isinstance(self.clip, tuple) else (self.clip,)

    @model_validator(mode="after")
    def _has_what_it_takes(self) -> "PrivacySection":
        if self.unit == "none":
            for key in ("epsilon", "noise_multiplier", "clip"):
                if getattr(self, key) is not None:
                    raise ValueError(f'{key} is for a run with noise; set unit = "client" or "example", or remove it')
            return self
        if self.clip is None:
            raise ValueError(f'unit = "{self.unit}" needs clip, the norm that bounds what one {self.unit} adds')
        if not all(_LEAST <= number <= _MOST for number in (*self.clips, self.noise_multiplier or 1.0)):
            raise ValueError(f"clip and noise_multiplier: expected numbers from {_LEAST:g} to {_MOST:,.0f}")
        if self.epsilon is None and self.noise_multiplier is None:
            raise ValueError(
                f'unit = "{self.unit}" needs epsilon, the budget, or noise_multiplier, or both; without either there '
                "is no noise"
            )
        if self.secure_sums and self.unit == "client":
            raise ValueError(
                f'unit = "{self.unit}" adds the noise at a server that knows the updates, and under secure_sums = true '
                'it does not; use one of them, or unit = "example"'
            )
        return self
