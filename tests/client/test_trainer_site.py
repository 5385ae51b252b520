"""A site that brings a trainer of its own: its file, its limits, and what it is told before anything is loaded."""

import math
from pathlib import Path
from typing import Any

import pytest
import trainer_scripts as scripts

from fedlora.client.own_trainer import join
from fedlora.client.site.limits import allowed_training
from fedlora.client.site.site_file import SiteConfig, for_site, load_site
from fedlora.client.site.terms import objection_to, objection_to_what_was_loaded
from fedlora.common.config import RunConfig
from fedlora.common.errors import ConfigError
from fedlora.common.messages import SiteDescription, TrainReceipt
from fedlora.common.run_file import parse_run

RUN = parse_run({"train": {"steps": 4, "batch_size": 100}, "data": {"text": "diagnosis"}})


@pytest.fixture
def site(tmp_path: Path) -> Any:
    """Return a function that writes a site file and gives its path."""

    def write(*lines: str) -> Path:
        path = tmp_path / "north.toml"
        path.write_text("\n".join(['[site]\nname = "north"', *lines]))
        return path

    return write


def description(*, step_examples: int) -> SiteDescription:
    given = {"num_validation": 0, "num_held_out": 0, "metric_name": "accuracy", "labels": ()}
    words = {"base_model": "model", "base_model_fingerprint": "sha256:0", "data_fingerprint": "0", "version": "0"}
    return SiteDescription("north", 1000, **given, **words, lora_rank=8, step_examples=step_examples)


def test_a_site_file_without_data_is_that_of_a_site_with_a_trainer(site: Any, tmp_path: Path) -> None:
    path = site()
    with pytest.raises(ConfigError, match="data is missing"):
        load_site(path)
    config = load_site(path, needs_data=False)
    assert config.brings_trainer
    assert for_site(RUN, config, beside=tmp_path).data == RUN.data
    # No column of such a site is read by its name.
    assert objection_to(RUN, config) is None
    named = SiteConfig.model_validate({"site": {"name": "north"}, "data": {"path": "north"}})
    assert not named.brings_trainer
    assert (found := objection_to(RUN, named)) is not None
    assert found.code == "column_not_allowed"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ('[data]\npath = "x"', r"\[data\] is set, and the trainer decides on that; remove it"),
        ('[worker]\ndevice = "cpu"', "worker.device is set, and the trainer decides on that"),
    ],
)
def test_what_the_trainer_decides_is_not_in_the_site_file(site: Any, lines: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        join("127.0.0.1:1", scripts.make_trainer, site=site(lines), insecure=True)


def test_a_function_that_no_other_process_can_import_is_refused_before_anything_else(site: Any) -> None:
    with pytest.raises(ConfigError, match="no other process can import; define it with def at the outermost level"):
        join("127.0.0.1:1", lambda _client, _run: None, site=site(), insecure=True)


@pytest.mark.parametrize(("step_examples", "code"), [(4, "too_few_examples"), (5, ""), (0, "")])
def test_the_least_examples_of_a_round_are_counted_by_the_trainers_own_batches(
    site: Any, step_examples: int, code: str
) -> None:
    config = load_site(site('[limits]\nleast_examples = 20\nbase_models = ["sha256:0"]'), needs_data=False)
    found = objection_to_what_was_loaded(RUN, config, description(step_examples=step_examples))
    assert (found.code if found else "") == code


def test_a_loss_over_few_examples_is_told_no_more_exactly_than_these_support() -> None:
    limits = SiteConfig.model_validate({"site": {"name": "north"}, "data": {"path": "x"}}).limits
    receipt = TrainReceipt("run", 1, 0, "north", "ok", num_examples=1000, num_steps=4, loss=1.23456)
    told = [allowed_training(receipt, limits, RunConfig(), step_examples=number).loss for number in (250, 1)]
    assert told == [1.23, 1.2]
    assert not math.isnan(told[0])
