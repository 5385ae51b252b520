"""Settings that do nothing are named, and those that do something, or have their default, are not."""

from pathlib import Path
from typing import Any

import pytest

from fedlora.common.config import Occasion, RunConfig, idle_settings
from fedlora.common.run_file import load_run, parse_run, to_toml
from fedlora.simulation import preset

LANGUAGE: dict[str, Any] = {
    "model": {"name": "hub/small"},
    "task": {"kind": "causal_lm"},
    "data": {"path": "chats.jsonl"},
    "partition": {"by": "iid"},
}
PRIVATE_EXAMPLES = ("privacy.unit=example", "privacy.epsilon=1.0", "privacy.clip=1.0")
SIMULATION, SERVER, SUPERLINK = (Occasion(place) for place in ("simulation", "server", "superlink"))  # type: ignore[arg-type]


def run(*overrides: str, base: dict[str, Any] | None = None) -> RunConfig:
    return parse_run(base or {}, overrides)


def idle(config: RunConfig, occasion: Occasion | None = None) -> list[str]:
    return [line.split(" = ")[0] for line in idle_settings(config, occasion)]


@pytest.mark.parametrize(
    ("settings", "cure"),
    [
        (["evaluation.early_stopping=3", "data.validation=0"], ["data.validation=0.1"]),
        (["evaluation.early_stopping=3", "evaluation.client_examples=0"], ["evaluation.client_examples=5"]),
        (["evaluation.early_stopping=9"], ["federation.rounds=11"]),
        (["evaluation.round_examples=9", "data.test=0"], ["data.test=0.2"]),
        (["evaluation.round_examples=9", "federation.rounds=1"], ["federation.rounds=2"]),
        (["evaluation.max_new_tokens=9"], None),
        (["evaluation.client_examples=9", "data.validation=0"], ["data.validation=0.1"]),
        (["data.validation=0.3", "evaluation.client_examples=0"], ["evaluation.client_examples=5"]),
        (["train.momentum=0.5"], ["train.optimizer=sgd"]),
        (["train.micro_batch_size=16"], ["train.batch_size=32"]),
        (["train.proximal_mu=0.1", "train.steps=1"], ["train.steps=2"]),
        (["train.optimizer_state=shared", "federation.rounds=1"], ["federation.rounds=2"]),
        (["train.client_momentum=0.5", "federation.rounds=1"], ["federation.rounds=2"]),
        (
            ["train.optimizer_state=shared", "train.optimizer=sgd", "train.momentum=0.0"],
            ["train.momentum=0.5"],
        ),
        (["train.shared_second_moments=scalar"], ["train.optimizer_state=shared"]),
        (["privacy.delta=1e-6"], [*PRIVATE_EXAMPLES]),
        (["train.max_grad_norm=0.5", *PRIVATE_EXAMPLES], None),
        (["evaluation.client_examples=9", *PRIVATE_EXAMPLES], None),
        (
            ["train.shared_second_moments=scalar", "train.optimizer_state=shared", "train.optimizer=sgd"],
            ["train.optimizer=adamw"],
        ),
        (["federation.fraction=0.5", "federation.cohort=3"], None),
        (["federation.oversample=2.0"], ["federation.cohort=3"]),
        (["federation.deadline_deviations=5.0"], ['federation.deadline="adaptive"']),
        (["federation.norm_limit=5.0", "federation.cohort=2"], ["federation.cohort=3"]),
        (["federation.weighting=uniform", "federation.cohort=1"], ["federation.cohort=2"]),
        (["federation.max_share=0.5", "federation.cohort=1"], ["federation.cohort=2"]),
        (["federation.max_share=0.5", "federation.weighting=uniform"], ["federation.weighting=examples"]),
        (["robust.clip=2.0", "federation.cohort=1"], ["federation.cohort=2"]),
        (["aggregation.steps=9", "aggregation.method=lora_fair_cosine"], ["aggregation.solver=sgd"]),
        (["lora.client_ranks={a = 8}"], ["lora.rank=9"]),
        (["lora.init=gaussian", "federation.start_from=folder"], None),
        (["model.revision=main"], ["model.name=owner/model"]),
        (["model.pooling=mean", "model.head=auto"], ["model.head=linear"]),
        (["data.group=site"], ["data.path=scans.parquet"]),
        (["data.image=scan"], ["data.path=scans.parquet"]),
        (["data.label=kind"], ["data.path=scans.parquet"]),
        (["data.text=note"], None),
        (["robust.gauge_limit=0.5"], ["robust.regauge=true"]),
        (["federation.server_acts_on=product"], ["federation.server_optimizer=adam"]),
        (["federation.server_learning_rate=0.5"], ["federation.server_optimizer=momentum"]),
        (["federation.server_momentum=0.9"], ["federation.server_optimizer=momentum"]),
        (["federation.server_momentum=0.9", "federation.server_optimizer=yogi"], None),
        (["federation.server_beta_1=0.5"], ["federation.server_optimizer=yogi"]),
        (["federation.server_beta_2=0.5", "federation.server_optimizer=momentum"], None),
        (["federation.server_tau=0.5"], ["federation.server_optimizer=adam"]),
        (
            ["federation.server_optimizer=momentum", "federation.server_momentum=0.0"],
            ["federation.server_learning_rate=0.5"],
        ),
        (["federation.server_optimizer=momentum", "federation.rounds=1"], ["federation.rounds=2"]),
    ],
)
def test_a_setting_is_idle_until_what_it_needs_is_set(settings: list[str], cure: list[str] | None) -> None:
    key = settings[0].split("=")[0]
    assert key in idle(run(*settings))
    if cure is not None:
        assert key not in idle(run(*settings, *cure))


@pytest.mark.parametrize(
    ("settings", "cure"),
    [
        (["evaluation.generate=8", "data.test=0"], ["data.test=0.1"]),
        (["train.packing=true", "train.batch_size=1"], ["train.batch_size=2"]),
        (['task.chat_template="{{ x }}"', "data.format=text"], ["data.format=messages"]),
        (["data.prompt=q", "data.format=messages"], ["data.format=prompt_completion"]),
        (["data.text=t", "data.format=messages"], ["data.format=auto"]),
        (["data.label=kind"], ["partition.by=dirichlet"]),
        (["model.head=auto"], None),
        (["data.image=scan"], None),
    ],
)
def test_so_it_is_with_a_language_model(settings: list[str], cure: list[str] | None) -> None:
    key = settings[0].split("=")[0]
    assert key in idle(run(*settings, base=LANGUAGE))
    if cure is not None:
        assert key not in idle(run(*settings, *cure, base=LANGUAGE))


@pytest.mark.parametrize(
    ("setting", "nothing_at", "something_at"),
    [
        ("exchange.precision=int8", (SIMULATION, SUPERLINK), (SERVER, None)),
        ("exchange.published=2", (SIMULATION, SUPERLINK), (SERVER, None)),
        ("exchange.publish_margin=0.1", (SIMULATION, SUPERLINK, Occasion("server", 0, 0)), (SERVER, None)),
        ("federation.sites=4", (SIMULATION,), (SERVER, SUPERLINK, None)),
        ("federation.patience=5.0", (SIMULATION, SUPERLINK), (SERVER, None)),
        ("federation.late=next_round", (SIMULATION,), (SERVER, SUPERLINK, None)),
        ("federation.deadline=5.0", (), (SIMULATION, SERVER, SUPERLINK, None)),
        ("federation.quorum=1.0", (), (SIMULATION, SERVER, SUPERLINK, None)),
        ("train.device=cuda", (SERVER, SUPERLINK), (SIMULATION, None)),
        ("data.path=pictures", (SERVER, Occasion(has_given_data=True)), (SIMULATION, None)),
        ("data.test=held_out", (SERVER, SUPERLINK), (SIMULATION, None)),
        ("data.label=kind", (SIMULATION, None), (SERVER, Occasion(has_given_data=True))),
        ("partition.by=iid", (SERVER, Occasion(has_given_data=True)), (SIMULATION, None)),
        ("evaluation.round_examples=9", (Occasion(num_test=0),), (Occasion(num_test=1),)),
        ("evaluation.early_stopping=3", (Occasion(num_validation=0),), (Occasion(num_validation=1),)),
        ("federation.norm_limit=9.0", (Occasion(num_clients=2),), (Occasion(num_clients=3),)),
    ],
)
def test_some_do_nothing_at_some_places_only(
    setting: str, nothing_at: tuple[Occasion | None, ...], something_at: tuple[Occasion | None, ...]
) -> None:
    key = setting.split("=")[0]
    assert [key in idle(run(setting), occasion) for occasion in nothing_at] == [True] * len(nothing_at)
    assert [key in idle(run(setting), occasion) for occasion in something_at] == [False] * len(something_at)


def test_a_line_says_the_value_and_why() -> None:
    assert idle_settings(run("train.momentum=0.5")) == (
        'train.momentum = 0.5 does nothing here: train.optimizer = "adamw" has its own',
    )


def test_what_has_its_default_is_not_named_even_where_the_file_sets_it(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(to_toml(RunConfig()))
    for occasion in (None, SIMULATION, SERVER, SUPERLINK):
        assert idle(load_run(path), occasion) == []


@pytest.mark.parametrize("name", ["digits", "emoji"])
def test_the_shipped_runs_set_nothing_for_nothing(name: str) -> None:
    assert idle(preset(name), SIMULATION) == []
