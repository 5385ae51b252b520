"""Federated runs of a tiny language model: learning, best round, early end, generated answers, plain PEFT."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from fedlora.adapters import load_adapter, pack
from fedlora.common.config import RunConfig
from fedlora.common.errors import RunError
from fedlora.common.method_names import DEFAULT
from fedlora.finished.trained import load_trained
from fedlora.methods.flora import Flora
from fedlora.simulation import SimulationResult, simulate

MakeRun = Callable[..., RunConfig]

SECTIONS: dict[str, dict[str, object]] = {
    "lora": {"rank": 4, "target_modules": "all-linear", "modules_to_save": ["lm_head"]},
    "train": {"steps": 20, "batch_size": 16, "learning_rate": 0.02, "packing": True, "schedule": "linear"},
    "federation": {"rounds": 3, "weighting": "tokens"},
    "evaluation": {"generate": 6, "max_new_tokens": 8},
}


def run(config: RunConfig, out: Path, workers: int = 2) -> SimulationResult:
    return simulate(config, out=out, num_workers=workers)


@pytest.fixture(scope="module")
def finished(chat_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> SimulationResult:
    """Return a finished run, the same for all tests of this file."""
    return run(chat_run(**SECTIONS), tmp_path_factory.mktemp("runs") / "run")


def test_a_language_model_learns_and_says_so_per_token(finished: SimulationResult) -> None:
    first, last = finished.reports[0].held_out, finished.reports[-1].held_out
    assert first is not None
    assert last is not None
    assert last.overall.num_tokens == first.overall.num_tokens > last.overall.num_examples
    assert last.overall.loss < 0.8 * first.overall.loss
    assert last.overall.metric > first.overall.metric + 0.1
    assert json.loads((finished.folder / "manifest.json").read_text())["metric"] == "token accuracy"


def test_clients_weigh_by_the_tokens_that_they_trained_on(finished: SimulationResult) -> None:
    for report in finished.reports[1:]:
        assert all(part.num_tokens > part.num_examples for part in report.clients.values())


def test_answers_are_generated_before_the_first_round_and_after_the_last(finished: SimulationResult) -> None:
    counts = [
        0 if report.held_out is None or report.held_out.generated_overall is None
        else report.held_out.generated_overall.num_examples
        for report in finished.reports
    ]  # fmt: skip
    assert counts == [6, 0, 0, 6]
    assert "Some of them" in (finished.folder / "report.html").read_text()
    last = finished.reports[-1].held_out
    assert last is not None
    assert set(last.generated) <= {"de", "en", "fr"}
    assert last.generated_overall is not None
    assert 0 <= last.generated_overall.exact_match <= last.generated_overall.rouge_l <= 1


def test_the_best_round_by_the_clients_validation_is_kept(finished: SimulationResult) -> None:
    before = [list(report.clients.values()) for report in finished.reports[1:]]
    losses = [
        sum(part.before.loss * part.before.num_tokens for part in parts if part.before)
        / sum(part.before.num_tokens for part in parts if part.before)
        for parts in before
    ]
    assert finished.reports[-1].validation is not None
    losses.append(finished.reports[-1].validation.loss)
    best = json.loads((finished.folder / "best" / "best.json").read_text())
    assert best["round"] == losses.index(min(losses))
    assert best["loss"] == pytest.approx(min(losses))
    if best["round"] == 3:
        assert pack(load_adapter(finished.folder / "best")) == pack(load_adapter(finished.folder / "adapter"))


def test_the_adapter_loads_in_plain_peft_and_generates(finished: SimulationResult, tiny_language_model: Path) -> None:
    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_language_model), str(finished.folder / "adapter")
    ).eval()
    trained = load_trained(finished.folder)
    tokens = torch.arange(5, 25)[None]
    torch.testing.assert_close(plain(input_ids=tokens).logits, trained.model(input_ids=tokens).logits)
    answers = trained.generate(["abc", "dd"], max_new_tokens=4)
    assert len(answers) == 2


def test_a_run_ends_early_where_validation_does_not_become_better(chat_run: MakeRun, tmp_path: Path) -> None:
    hopeless = {"train": {"steps": 1, "learning_rate": 1.0}, "federation": {"rounds": 9}}
    result = run(chat_run(**hopeless, evaluation={"early_stopping": 2}), tmp_path / "run")
    assert len(result.reports) < 10
    assert [report.ended_early for report in result.reports] == [False] * (len(result.reports) - 1) + [True]
    assert result.reports[-1].held_out is not None
    assert result.reports[-1].held_out.is_complete
    last = result.reports[-1].round
    # Known when it ended: two rounds after the best one; its own validation came after that.
    assert json.loads((tmp_path / "run" / "best" / "best.json").read_text())["round"] in (last - 3, last)
    # It is over, also for a process that goes on with it.
    again = simulate(chat_run(**hopeless, evaluation={"early_stopping": 2}), out=tmp_path / "run", resume=True)
    assert len(again.reports) == len(result.reports)
    assert "ended early" in (tmp_path / "run" / "report.html").read_text()


def test_kept_moments_and_a_start_out_of_the_base_weights_do_not_depend_on_the_workers(
    chat_run: MakeRun, tmp_path: Path
) -> None:
    sections = {"train": {"optimizer_state": "keep"}, "federation": {"rounds": 2}, "lora": {"init": "pissa"}}
    results = [run(chat_run(**sections), tmp_path / f"run-{workers}", workers) for workers in (1, 3)]
    assert results[0].reports[-1].adapter_sha256 == results[1].reports[-1].adapter_sha256
    reset = run(chat_run(**{**sections, "train": {"optimizer_state": "reset"}}), tmp_path / "reset")
    assert reset.reports[1].adapter_sha256 == results[0].reports[1].adapter_sha256
    assert reset.reports[2].adapter_sha256 != results[0].reports[2].adapter_sha256


def test_kept_moments_are_not_those_of_pairs_that_a_round_replaces(chat_run: MakeRun, tmp_path: Path) -> None:
    """There is nothing beside the pairs, so that of moments nothing is left."""

    def last(method: str, state: str) -> str:
        config = chat_run(train={"optimizer_state": state}, federation={"rounds": 2}, aggregation={"method": method})
        return run(config, tmp_path / f"{method}-{state}").reports[-1].adapter_sha256

    assert last(Flora.name, "keep") == last(Flora.name, "reset")
    assert last(DEFAULT, "keep") != last(DEFAULT, "reset")


def test_a_client_whose_examples_are_all_too_long_is_told_what_to_do(chat_run: MakeRun, tmp_path: Path) -> None:
    told = r"all \d+ training examples are left out: longer than task\.max_length.*too_long = \"cut\""
    with pytest.raises(RunError, match=told):
        run(chat_run(task={"max_length": 8}), tmp_path / "run")


def test_prompts_and_answers_may_come_from_python(chat_run: MakeRun, tmp_path: Path) -> None:
    pairs = [("ab", "ba"), ("abc", "cba"), ("cd", "dc"), ("dab", "bad")] * 5
    config = chat_run(federation={"rounds": 1}, train={"steps": 1})
    result = simulate(config, out=tmp_path / "run", clients={"a": pairs, "b": pairs[:8]}, test=pairs[:4], num_workers=1)
    assert sorted(result.reports[-1].clients) == ["a", "b"]
    assert result.reports[-1].held_out is not None
    assert result.reports[-1].held_out.overall.num_tokens > 4
