"""How the clients' work becomes one: [federation] [robust] [evaluation] [exchange]."""

from typing import Literal

from pydantic import Field, model_validator

from fedlora.common.section import Count, Fraction, NonNegative, Positive, Section, Share


class FederationSection(Section):
    rounds: Count = Field(10, description="rounds of local training and aggregation")
    fraction: Share = Field(1.0, description="share of the clients sampled in each round (at least one)")
    weighting: Literal["examples", "tokens", "uniform"] = Field(
        "examples",
        description="a client's weight: its examples, the answer tokens that it trained on, or all alike",
    )
    max_share: Share | None = Field(
        None, description="the most that one client weighs of a round, of 1; else ten times the round's median weight"
    )
    quorum: Share = Field(0.5, description="share of the round's clients whose update must be accepted")
    sites: Count = Field(2, description="of a deployment: the first round waits until so many sites are ready")
    cohort: Count | None = Field(None, description="clients of a round by number, in place of fraction")
    oversample: float = Field(
        1.0, ge=1, le=10, description="so many times the cohort are asked, and its number of first updates counts"
    )
    deadline: Positive | Literal["adaptive"] | None = Field(
        None,
        description='seconds that a round waits for updates; "adaptive": by what the cohort has needed so far; left '
        "out, in a deployment: 20 times the median of all, an hour at least",
    )
    deadline_deviations: Positive = Field(
        3.0, description="of the adaptive deadline: the median and so many times the median absolute deviation"
    )
    patience: Positive = Field(
        120.0, description="seconds for which a round with a quorum waits for a site that has lost its connection"
    )
    answer_seconds: Positive = Field(
        3600.0,
        description="of a deployment: a site's time for any other answer, a score or the first adapter; who does not "
        "use it has a quarter of it the next time",
    )
    late: Literal["discard", "next_round"] = Field(
        "discard", description="next_round: a late update counts in a later round, its weight halved per round of age"
    )
    norm_limit: Positive = Field(
        100.0, description="an update this many times larger than its round's median is refused"
    )
    server_optimizer: Literal["none", "momentum", "adam", "yogi"] = Field(
        "none",
        description="steps from the round's start to what the method makes of the updates (FedAvgM, FedAdam, FedYogi)",
    )
    server_acts_on: Literal["factors", "product"] = Field(
        "factors", description="product: steps what A and B do together, and the pair is the best of its rank"
    )
    server_learning_rate: Positive | None = Field(
        None,
        description="left out: 1 for momentum; for adam and yogi 0.01 (product: 0.001), which is about what 8 steps at "
        "train.learning_rate = 1e-3 move a number",
    )
    server_momentum: Fraction = Field(
        0.5, description="so much of the last step is added to each change: up to 1 / (1 - it) times as far"
    )
    server_beta_1: Fraction = Field(0.9, description="of adam and yogi: how much of the mean change stays")
    server_beta_2: Fraction = Field(0.99, description="of adam and yogi: how much of the mean square stays")
    server_tau: Positive | None = Field(
        None, description="of adam and yogi, added to the root of the mean square; left out: 0.01, 0.001 on the product"
    )
    start_from: str | None = Field(None, description="an adapter folder to start from instead of a fresh adapter")


class RobustSection(Section):
    regauge: bool = Field(False, description="turn each update's A, B towards the round's start; its product stays")
    gauge_limit: Share = Field(
        0.95, description="of regauge: an update that is still so far from the start, of at most 1, is left out"
    )
    clip: Positive | None = Field(None, description="updates are pulled back to so many times the median change")
    select: Literal["all", "multi_krum"] = Field("all", description="multi_krum: leave out the updates far from others")
    attackers: int = Field(0, ge=0, description="of multi_krum: so many updates are left out")
    weighting: Literal["given", "geometric_median"] = Field(
        "given", description="geometric_median: updates far from the middle weigh less"
    )

    @model_validator(mode="after")
    def _krum_knows_how_many(self) -> "RobustSection":
        if (self.select == "multi_krum") != (self.attackers > 0):
            raise ValueError('select = "multi_krum" and attackers go together: set both, attackers to 1 or more')
        return self


class EvaluationSection(Section):
    round_examples: int = Field(
        256,
        ge=0,
        description="held-out examples judged after a round; the whole set before the first and after the last; of a "
        "deployment so many at each site, always the same",
    )
    client_examples: int = Field(
        64, ge=0, description="own validation examples that a client judges before and after training"
    )
    batch_size: Count | None = Field(
        None, description="examples a forward pass; as many as in training (train.micro_batch_size) if left out"
    )
    generate: int = Field(
        0, ge=0, description="of causal_lm: held-out prompts answered before the first round and after the last"
    )
    max_new_tokens: Count = Field(64, description="of a generated answer")
    early_stopping: int = Field(
        0,
        ge=0,
        description="end after so many rounds without a lower loss on the clients' validation; 0: never",
    )


class ExchangeSection(Section):
    precision: Literal["bfloat16", "float32", "int8"] = Field(
        "bfloat16", description="of the adapters on the wire, as differences; a simulation is always float32"
    )
    max_start_megabytes: Count = Field(8_000, description="the most that the run's first adapter may take")
    published: Count = Field(5, description="finished adapters that are kept for who serves them")
    publish_margin: NonNegative | None = Field(
        None,
        description="an adapter is published only if its loss on the clients' validation is at most so large a part "
        "above the lowest published (0.1: ten per cent); left out: whatever its loss",
    )
