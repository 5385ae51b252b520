"""The report of a language model: perplexity, local training by round, tokens, generated answers, the best round."""

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))

from report_pages import Page, aggregation, finished, start, text_with_charts
from report_pages import render as render_any
from report_pages import text_of as text_of_any

from fedlora.common.messages import Generated, Score, merge_scores
from fedlora.server.record.round_report import ClientReport, HeldOutReport, RoundReport
from fedlora.server.record.totals import is_of_tokens, mean_loss
from fedlora.server.report import ShownAnswer
from fedlora.server.report.local_training import local_trainings, mean_local_trainings, tokens_by_client
from fedlora.server.report.numbers import as_perplexity, client_gains, loss_of, mean_gain, perplexity
from fedlora.server.report.wording import PERPLEXITY, amount_text, gain_text, score_text

SITES = ("north", "south")
NUM_ROUNDS = 4


def score(loss: float, *, num_examples: int = 40) -> Score:
    return Score(num_examples, loss, 1 / (1 + loss), 38 * num_examples)


def held_out(loss: float, **changes: Any) -> HeldOutReport:
    groups = {name: score(loss + 0.2 * place) for place, name in enumerate(SITES)}
    return HeldOutReport(merge_scores(list(groups.values())), groups, is_complete=True, **changes)


def client(*, before: float, after: float, **changes: Any) -> ClientReport:
    seconds = {"forward": 1.0, "backward": 2.0, "optimizer": 0.5, "training": 4.0}
    return replace(ClientReport(100, 8, after, score(before), score(after), seconds, num_tokens=1000), **changes)


def generated(exact_match: float, rouge_l: float) -> dict[str, Any]:
    part = Generated(8, exact_match, rouge_l)
    return {"generated": dict.fromkeys(SITES, part), "generated_overall": replace(part, num_examples=16)}


def run(validation: tuple[float, ...] = (6.0, 4.0, 3.0, 2.5, 2.6), **last: Any) -> tuple[RoundReport, ...]:
    """Return the reports of a run whose adapters have these losses on the clients' validation, from the start on."""
    reports = [replace(start(), held_out=held_out(6.0, **generated(0.0, 0.1)))]
    for number in range(1, len(validation)):
        clients = {name: client(before=validation[number - 1], after=validation[number] - 0.3) for name in SITES}
        reports.append(finished(number, clients, held_out=held_out(validation[number]), aggregation=aggregation()))
    ended = replace(reports[-1], held_out=held_out(validation[-1], **generated(0.25, 0.5)))
    return (*reports[:-1], replace(ended, validation=score(validation[-1]), **last))


def text_of(*reports: RoundReport, **changes: Any) -> str:
    text = text_of_any(*reports, **({"metric_name": "token accuracy"} | changes))
    return text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")


def render(*reports: RoundReport, **changes: Any) -> str:
    return render_any(*reports, **({"metric_name": "token accuracy"} | changes))


@pytest.fixture(scope="module")
def text() -> str:
    """Return the words of the page of a run whose third round is the best."""
    return text_with_charts(*run(), metric_name="token accuracy").replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")


def test_headline_says_what_accuracy_and_perplexity_did(text: str) -> None:
    assert re.search(r"Token accuracy on held-out examples rose from 1\d\.\d % to 2\d\.\d %, and perplexity fell", text)
    assert f"perplexity fell from {math.exp(6.1):.0f} to {math.exp(2.7):.1f}, in 4 rounds." in text


def test_groups_have_their_perplexity_beside_the_accuracy(text: str) -> None:
    assert "Held-out token accuracy and perplexity by group" in text
    assert f"{math.exp(6.0):.0f} {math.exp(2.6):.1f}" in text


def test_groups_may_differ_in_perplexity_alone() -> None:
    def nothing_right(report: RoundReport) -> RoundReport:
        assert report.held_out is not None
        groups = {name: replace(part, metric=0.0) for name, part in report.held_out.groups.items()}
        uneven = {**groups, "east": Score(3, 9.0, 0.0, 20)}
        return replace(report, held_out=HeldOutReport(merge_scores(list(uneven.values())), uneven, True))

    assert "all examples 83 0.0 % 0.0 %" in text_of(*map(nothing_right, run()))


def test_best_round_is_named_and_marked_in_the_curves(text: str) -> None:
    assert (
        "The best round by the clients' validation loss is round 3, with 2.50 per token against 2.60 after round 4; "
        "best/ holds its adapter." in text
    )
    assert text.count("best round") == 4  # Over the three curves, and in the sentence on Learning.


def test_last_round_may_be_the_best() -> None:
    assert "is the last one, 2, with 2.00 per token; best/ holds" in text_of(*run((6.0, 3.0, 2.0)))


def test_of_a_run_that_was_cut_off_the_last_round_is_not_judged() -> None:
    cut_off = run((6.0, 3.0, 2.0))
    text = text_of(*cut_off[:-1], replace(cut_off[-1], validation=None), num_rounds=10)
    assert "is the last that was judged so, 1, with 3.00 per token" in text


def test_a_run_that_only_becomes_worse_has_no_best_round() -> None:
    text = text_of(*run((2.0, 3.0, 4.0)))
    assert "no round is better than the start, which has 2.00 per token." in text
    assert "best/" not in text


def test_early_end_is_said_with_its_reason() -> None:
    text = text_of(*run((6.0, 2.5, 2.6, 2.7), ended_early=True), num_rounds=30)
    assert "ended early, after round 3 of 30: the clients' validation loss had not become lower for 2 rounds." in text
    assert "best by validation: 1, ended early" in text
    assert "ended early" not in text_of(*run())


def test_sampled_cohorts_make_the_best_round_less_sure() -> None:
    reports = list(run())
    reports[2] = replace(reports[2], cohort=("north",))
    assert "Not all clients are asked in every round" in text_of(*reports)


def test_local_training_is_shown_for_every_client_and_round(text: str) -> None:
    assert "Local training by round: perplexity on the client's own validation examples" in text
    assert re.search(r"north 1 8 3\.70 14\.3 % 21\.3 % 403 40\.4 1,000", text)


def test_tokens_are_counted_by_client_and_in_all(text: str) -> None:
    assert re.search(r"north 4,000 50\.0 % 250", text)
    assert re.search(r"all clients 8,000", text)
    assert "Answer tokens" not in text_of_any(start(), finished(1))


def test_generated_answers_are_scored_before_and_after(text: str) -> None:
    assert "16 held-out prompts were answered" in text
    assert "Equal to the given answer were 0.0 % before training and 25.0 % after." in text
    assert "all prompts 16 0.0 % 25.0 % 0.100 0.500" in text


def test_shown_answers_are_text_and_nothing_else() -> None:
    shown = [ShownAnswer("north", "<b>Who?</b>", "A & B", None, "A\nB")]
    page = Page(render(*run(), shown_answers=shown))
    assert not list(page.named("b"))
    assert all(words in page.text for words in ("<b>Who?</b>", "A & B", "A B"))


def test_narrowed_forward_passes_are_said_to_cost_the_last_bit() -> None:
    reports = list(run())
    for number in (2, 3):
        narrowed = {**reports[number].clients, "south": client(before=3.0, after=2.0, micro_batch_size=2)}
        reports[number] = replace(reports[number], clients=narrowed)
    assert "fewer were taken: south in rounds 2-3 (2 a forward pass)." in text_of(*reports)
    assert "not to the last bit" in text_of(*reports)
    assert "last bit" not in text_of(*run())


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"held_out": None}, id="no held-out set"),
        pytest.param({"held_out": held_out(math.inf)}, id="loss infinite"),
        pytest.param({"held_out": held_out(2000.0)}, id="perplexity beyond numbers"),
        pytest.param({"validation": None}, id="no validation after the last round"),
        pytest.param({"clients": {}}, id="nobody came"),
        pytest.param({"clients": {"a": client(before=math.nan, after=math.nan)}}, id="validation not finite"),
    ],
)
def test_incomplete_runs_of_a_language_model_have_a_report_too(change: Mapping[str, Any]) -> None:
    assert "digits" in text_with_charts(*(replace(report, **change) if report.round else report for report in run()))


def test_without_held_out_set_the_clients_validation_has_perplexity() -> None:
    text = text_of(*(replace(report, held_out=None) for report in run()))
    assert re.search(
        r"own validation examples rose from .* %, and perplexity fell from 403 to 9\.97, in 4 rounds", text
    )


def test_many_clients_are_drawn_by_their_mean() -> None:
    names = [f"client-{number:03}" for number in range(40)]
    clients = {name: client(before=3.0, after=2.0) for name in names}
    html = render(start(), *(finished(number, clients) for number in (1, 2)))
    assert "Mean of 40 clients" in html
    assert len(html) < 800_000


def test_perplexity_is_the_exponential_of_the_loss_per_token() -> None:
    assert perplexity(math.log(42.0)) == pytest.approx(42.0)
    assert perplexity(1e6) == math.inf
    assert (score_text(12345.6, PERPLEXITY), score_text(7.123, PERPLEXITY)) == ("12346", "7.12")
    assert gain_text(100.0, 7.5, PERPLEXITY) == "-92.5"
    losses = client_gains(run(), loss_of)
    assert as_perplexity(mean_gain(losses)).before == pytest.approx(math.exp(6.0))


def test_only_scores_over_tokens_have_a_perplexity() -> None:
    assert is_of_tokens(run())
    assert not is_of_tokens((start(), finished(1)))
    assert "erplexity" not in text_of_any(start(), finished(1))


def test_mean_loss_of_a_language_model_weighs_clients_by_their_tokens() -> None:
    clients = {"a": client(before=2.0, after=1.0, num_tokens=300), "b": client(before=2.0, after=3.0, num_tokens=100)}
    assert mean_loss(finished(1, clients)) == pytest.approx(1.5)


def test_local_trainings_are_sorted_by_client_and_averaged_by_round() -> None:
    rounds = (
        finished(1, {"b": client(before=4.0, after=3.0), "a": client(before=2.0, after=1.0)}),
        finished(2, {"a": client(before=1.0, after=0.5)}),
    )
    found = local_trainings(rounds, loss_of)
    assert list(found) == ["a", "b"]
    assert [(each.round, each.before, each.after) for each in mean_local_trainings(found)] == [
        (1, 3.0, 2.0),
        (2, 1.0, 0.5),
    ]
    assert tokens_by_client(rounds) == {"a": 2000, "b": 1000}


def test_large_amounts_are_written_shortly() -> None:
    assert [amount_text(count) for count in (999_999, 1_234_000, 2_500_000_000)] == [
        "999,999",
        "1.23 million",
        "2.50 billion",
    ]
