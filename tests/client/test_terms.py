"""What a site says to a run before anything of it is loaded: each key by which a server could choose for the site."""

import logging
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from site_bench import RUN, StartBench, adapter, train

from fedlora.client.site.printed_site import commented_site
from fedlora.client.site.site_file import SiteConfig, load_site
from fedlora.client.site.terms import objection_to, objection_to_what_was_loaded
from fedlora.common.config import RunConfig
from fedlora.common.messages import SiteDescription
from fedlora.common.run_file import parse_run

LM = {"model": {"name": "own/lm"}, "task": {"kind": "causal_lm"}, "partition": {"by": "iid"}}
ALLOWS_LM = {"base_models": ["own/lm"]}
WEDGES = r"(\w+\.)*(\w+)*!"


def site(limits: dict[str, object], **sections: dict[str, object]) -> SiteConfig:
    table = {"site": {"name": "north"}, "data": {"path": "north"}, **sections, "limits": limits}
    return SiteConfig.model_validate(table)


def code_of(run: RunConfig, config: SiteConfig) -> str:
    objection = objection_to(run, config)
    assert objection is None or objection.line.isprintable()
    return "" if objection is None else objection.code


@pytest.mark.parametrize(
    ("name", "revision", "limits", "is_allowed"),
    [
        ("package:fedlora.embedded/dinov2-small", None, {}, True),
        ("package:fedlora.embedded.deeper/dinov2-small", None, {}, False),
        ("package:antigravity/model", None, {}, False),
        ("package:antigravity/model", None, {"packages": ["antigravity"]}, True),
        ("package:antigravity/model", None, {"base_models": ["package:antigravity/model"]}, True),
        ("package:fedlora.embedded/dinov2-small", None, {"base_models": ["own/lm"]}, False),
        ("package:fedlora.embedded/dinov2-small", None, {"base_models": ["sha256:0"]}, True),
        ("/etc", None, {}, False),
        ("../models/secret", None, {}, False),
        ("some/encoder", None, {}, False),
        ("some/encoder", None, {"base_models": ["sha256:0"]}, False),
        ("some/encoder", "refs/pr/1", {"base_models": ["some/encoder@abc"]}, False),
        ("some/encoder", "abc", {"base_models": ["some/encoder@abc"]}, True),
        ("some/encoder", "abc", {"base_models": ["some/encoder"]}, True),
    ],
)
def test_only_a_base_model_that_a_site_names_is_loaded(
    name: str, revision: str | None, limits: dict[str, object], is_allowed: bool
) -> None:
    run = parse_run({"model": {"name": name, "revision": revision} if revision else {"name": name}})
    assert code_of(run, site(limits)) == ("" if is_allowed else "base_model_not_allowed")


def test_a_copy_of_ones_own_is_loaded_for_a_run_that_names_another_place(tmp_path: Path) -> None:
    run = parse_run({"model": {"name": "/srv/models/base"}})
    own = {"path": str(tmp_path)}
    assert code_of(run, site({}, model=own)) == ""
    assert code_of(run, site({"base_models": ["another"]}, model=own)) == "base_model_not_allowed"


@pytest.mark.parametrize(
    ("run", "limits", "expected", "mended"),
    [
        ({"run": {"name": "ward"}}, {"runs": ["war", "*x"]}, "run_not_allowed", {"runs": ["war", "*d"]}),
        ({"lora": {"rank": 257}}, {}, "over_a_limit", {"max_rank": 257}),
        ({"lora": {"rank_pattern": {"q_proj": 512}}}, {}, "over_a_limit", {"max_rank": 512}),
        ({"train": {"epochs": 101.0}}, {}, "over_a_limit", {"max_epochs": 101.0}),
        ({"train": {"batch_size": 2000}}, {}, "over_a_limit", {"max_batch_size": 2000}),
        ({"evaluation": {"batch_size": 2000}}, {}, "over_a_limit", {"max_batch_size": 2000}),
        ({"federation": {"rounds": 1001}}, {}, "over_a_limit", {"max_rounds": 1001}),
        ({"task": {"image_size": 100_000}}, {}, "over_a_limit", {"max_image_size": 100_000}),
        ({"lora": {"modules_to_save": ["embeddings"]}}, {}, "module_not_allowed", {"modules_to_save": ["embeddings"]}),
        ({"lora": {"target_modules": WEDGES}}, {}, "expression_not_allowed", {"allow": ["expressions"]}),
        ({"lora": {"exclude_modules": WEDGES}}, {}, "expression_not_allowed", {"allow": ["expressions"]}),
        ({"lora": {"rank_pattern": {WEDGES: 8}}}, {}, "expression_not_allowed", {"allow": ["expressions"]}),
        ({"lora": {"alpha_pattern": {WEDGES: 8.0}}}, {}, "expression_not_allowed", {"allow": ["expressions"]}),
        ({"data": {"image": "iris"}}, {}, "column_not_allowed", {"columns": ["iris"]}),
        ({"data": {"label": "salary"}}, {}, "column_not_allowed", {"columns": ["salary"]}),
        ({"task": {"kind": "own", "name": "stars"}}, {}, "task_not_allowed", {"tasks": ["stars"]}),
        (
            {**LM, "task": {"kind": "causal_lm", "max_length": 99_999}},
            ALLOWS_LM,
            "over_a_limit",
            {"max_length": 99_999},
        ),
        (
            {**LM, "task": {"kind": "causal_lm", "chat_template": "{{ messages }}"}},
            ALLOWS_LM,
            "chat_template_not_allowed",
            {"allow": ["chat_template"]},
        ),
        (
            {**LM, "evaluation": {"generate": 8, "max_new_tokens": 99_999}},
            ALLOWS_LM,
            "over_a_limit",
            {"max_length": 99_999},
        ),
        ({**LM, "data": {"group": "ward"}}, ALLOWS_LM, "column_not_allowed", {"columns": ["ward"]}),
    ],
)  # fmt: skip
def test_what_a_site_file_does_not_allow_is_refused_until_it_does(
    run: dict[str, dict[str, object]], limits: dict[str, object], expected: str, mended: dict[str, object]
) -> None:
    parsed = parse_run(run)
    assert code_of(parsed, site(limits)) == expected
    assert code_of(parsed, site({**limits, **mended})) == ""


PRIVATE = {"unit": "example", "epsilon": 2.0, "clip": 1.0}


@pytest.mark.parametrize(
    ("run", "limits", "line"),
    [
        ({}, {"secure_sums": True}, "privacy.secure_sums = false"),
        ({"privacy": {"secure_sums": True}}, {"secure_sums": True}, ""),
        ({}, {"least_cohort": 3}, "a round may have 2 sites"),
        ({"federation": {"sites": 8, "fraction": 0.3}}, {"least_cohort": 3}, "a round may have 2 sites"),
        ({"federation": {"sites": 2, "cohort": 3}}, {"least_cohort": 3}, ""),
        ({"federation": {"sites": 3}}, {"least_cohort": 3}, ""),
        ({}, {"epsilon": 8.0}, 'privacy.unit = "none"; expected "example", by limits.epsilon'),
        ({"privacy": PRIVATE}, {"epsilon": 1.0}, ""),
        ({}, {"epsilon_per_run": 2.0}, 'privacy.unit = "none"; expected "example", by limits.epsilon_per_run'),
        ({"privacy": PRIVATE}, {"epsilon_per_run": 1.5}, "privacy.epsilon = 2; expected at most"),
        (
            {"privacy": {"unit": "example", "noise_multiplier": 9.0, "clip": 1.0}},
            {"epsilon_per_run": 1.5},
            "no privacy.epsilon; expected at most",
        ),
        ({"privacy": PRIVATE}, {"epsilon_per_run": 2.0}, ""),
    ],
)
def test_a_run_with_less_privacy_than_the_site_file_asks_for_is_refused(
    run: dict[str, dict[str, object]], limits: dict[str, object], line: str
) -> None:
    objection = objection_to(parse_run(run), site(limits))
    assert (objection is None) == (line == "")
    if objection is not None:
        assert objection.code == "too_little_privacy"
        assert line in objection.line


def test_examples_are_not_private_where_the_site_trains_by_itself(tmp_path: Path) -> None:
    (tmp_path / "north.toml").write_text('[site]\nname = "north"\n')
    own = load_site(tmp_path / "north.toml", needs_data=False)
    objection = objection_to(parse_run({"privacy": PRIVATE}), own)
    assert objection is not None
    assert objection.code == "too_little_privacy"


@pytest.mark.parametrize(("delta", "is_allowed"), [(1e-5, True), (0.02, False)])
def test_a_delta_that_lets_an_example_out_is_no_privacy(delta: float, is_allowed: bool) -> None:
    description = SiteDescription("north", 100, 20, 20, "accuracy", (), "base", "sha256:0", "data", "0", 8)
    run = parse_run({"privacy": {**PRIVATE, "delta": delta}})
    objection = objection_to_what_was_loaded(run, site({"epsilon": 8.0}), description)
    assert (objection is None) == is_allowed


def test_a_column_that_the_site_itself_names_needs_no_leave() -> None:
    run = parse_run({"data": {"label": "salary"}})
    assert code_of(run, site({}, data={"path": "north", "label": "diagnosis"})) == ""


@pytest.mark.parametrize(
    ("train", "limits", "is_allowed"),
    [
        ({"steps": 1, "batch_size": 1}, {}, False),
        ({"steps": 2, "batch_size": 10}, {}, True),
        ({"steps": 20, "batch_size": 10}, {"max_steps": 1}, False),
        ({"epochs": 0.01, "batch_size": 4}, {}, False),
        ({"epochs": 1.0, "batch_size": 4}, {}, True),
        ({"steps": 1, "batch_size": 1}, {"least_examples": 1}, True),
    ],
)
def test_a_round_on_a_few_examples_is_not_trained(
    train: dict[str, object], limits: dict[str, object], is_allowed: bool
) -> None:
    description = SiteDescription("north", 100, 20, 20, "accuracy", (), "base", "sha256:0", "data", "0", 8)
    objection = objection_to_what_was_loaded(parse_run({"train": train}), site(limits), description)
    assert (objection is None) == is_allowed


def test_a_base_model_that_is_not_allowed_is_refused_before_a_worker_is_started(
    start_bench: StartBench, caplog: pytest.LogCaptureFixture
) -> None:
    bench = start_bench(limits={"base_models": ["some/other"]})
    with caplog.at_level(logging.ERROR):
        bench.connect()
        assert bench.readiness().reason == "base_model_not_allowed"
    assert f"the run's base model is '{RUN.model.name}', which this site does not load" in caplog.text
    bench.ask("1", train(), adapter())
    assert bench.answer().failure.code == "base_model_not_allowed"
    assert bench.num("rehearsals") == 0


def test_the_printed_site_file_is_one_and_has_every_key_with_its_default(tmp_path: Path) -> None:
    text = commented_site()
    (tmp_path / "site.toml").write_text(text)
    least = {"site": {"name": "my-site"}, "data": {"path": "pictures"}}
    assert load_site(tmp_path / "site.toml") == SiteConfig.model_validate(least)
    for name, section in SiteConfig.model_fields.items():
        assert f"[{name}]" in text
        for key in section.annotation.model_fields:  # type: ignore[union-attr]
            assert f"\n{key} = " in text or f"\n# {key} = " in text
