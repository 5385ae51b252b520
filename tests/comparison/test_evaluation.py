"""What is made of the runs of a comparison: what counts, what is paired, and what is said of it in a sentence."""

import math
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from made_comparisons import BASELINE, comparison, run

from fedlora.comparison.evaluation import evaluate
from fedlora.comparison.finding import about_power, about_references, about_tuning, alike, headline, left_out
from fedlora.comparison.results import Variant
from fedlora.comparison.tables import clients
from fedlora.comparison.wording import is_lower_better


def test_differences_are_those_of_the_draws_that_both_have() -> None:
    made = comparison({"flora": 0.1})
    made_runs = tuple(each for each in made.runs if (each.variant, each.draw) not in ((BASELINE, 1), ("flora", 2)))
    found = evaluate(comparison({"flora": 0.1}, runs=made_runs))
    flora = found.methods[1]
    assert flora.difference is not None
    assert sorted(flora.difference.by_draw) == [0, 3, 4, 5, 6, 7, 8, 9]
    assert flora.difference.values.mean == pytest.approx(0.1, abs=0.01)
    assert (found.baseline.missing, flora.missing) == ((1,), (2,))
    assert [note for note in left_out(found) if "flora" in note] == [
        "flora has no run that counts of draw 2: nothing is paired there."
    ]


def test_a_run_with_a_fault_or_without_a_score_counts_for_nothing_and_is_named() -> None:
    extra = (
        run("flora", 3, 0.9, fault="client-1's updates do not depend on the others'"),
        run("flora", 4, math.nan),
    )
    found = evaluate(comparison({"flora": 0.1}, extra=extra))
    flora = found.methods[1]
    assert [each.draw for each in flora.runs] == [0, 1, 2, 5, 6, 7, 8, 9]
    assert flora.metric is not None
    assert flora.metric.mean < 0.65
    notes = left_out(found)
    assert notes[0] == "flora, draw 3, counts for nothing: client-1's updates do not depend on the others'."
    assert "flora, draw 4" in notes[1]
    assert "flatters" in notes[1]
    assert "draws 3-4" in notes[2]


def test_the_worst_is_each_runs_and_then_the_mean() -> None:
    groups = ({"a": 0.2, "b": 0.6}, {"a": 0.8, "b": 0.4})
    extra = [run("flora", draw, 0.5, groups=groups[draw], clients={}) for draw in (0, 1)]
    flora = evaluate(comparison({"flora": 0.0}, num_draws=2, extra=extra)).methods[1]
    assert flora.worst_group is not None
    assert flora.worst_group.mean == pytest.approx(0.3)
    assert flora.groups["a"].mean == pytest.approx(0.5)
    assert flora.worst_client is None


def test_clients_that_other_draws_do_not_have_are_told_by_their_places() -> None:
    scores = ({"client-0": 0.2, "client-1": 0.9, "client-2": 0.6}, {"client-0": 0.8, "client-1": 0.4})
    extra = [run("flora", draw, 0.5, clients=of_draw) for draw, of_draw in enumerate(scores)]
    for metric_name, worst, best in (("accuracy", 0.3, 0.85), ("log loss", 0.85, 0.3)):
        made = comparison(
            {"flora": 0.0}, num_draws=2, extra=extra, names_clients=False, metric_name=metric_name
        )  # fmt: skip
        flora = evaluate(made).methods[1]
        found = {place: values.mean for place, values in flora.clients.items()}
        assert found == pytest.approx({"the worst": worst, "the middle one": 0.6, "the best": best})
        assert flora.worst_client is not None
        assert flora.worst_client.mean == pytest.approx(worst)
    shown = clients(evaluate(made))
    assert shown is not None
    assert [row[0] for row in shown.rows] == ["the worst", "the middle one", "the best"]


def test_of_a_loss_the_worst_is_the_highest_and_the_target_is_reached_from_above() -> None:
    course = {"metric": (3.0, 1.0, 0.5)}
    extra = [run("flora", 0, 0.0, course=course, groups={"a": 0.2, "b": 0.6})]
    found = evaluate(comparison({"flora": 0.0}, num_draws=1, extra=extra, metric_name="log loss"), target=1.2)
    flora = found.methods[1]
    assert flora.worst_group is not None
    assert flora.worst_group.mean == 0.6
    assert flora.cost.rounds_to_target is not None
    assert flora.cost.rounds_to_target.mean == 1
    assert flora.cost.gain_per_megabyte is not None
    assert flora.cost.gain_per_megabyte.mean == pytest.approx(2.5 / 4)


def test_rounds_and_megabytes_to_the_target_are_of_the_runs_that_reach_it() -> None:
    courses = [{"metric": (0.1, 0.7, 0.8)}, {"metric": (0.1, 0.2, 0.3)}, {"metric": (0.1, 0.4, 0.6)}]
    extra = [run("flora", draw, 0.0, course=course) for draw, course in enumerate(courses)]
    found = evaluate(comparison({"flora": 0.0}, num_draws=3, extra=extra), target=0.6)
    cost = found.methods[1].cost
    assert cost.rounds_to_target is not None
    assert cost.megabytes_to_target is not None
    assert (cost.rounds_to_target.mean, cost.rounds_to_target.num) == (1.5, 2)
    assert (cost.megabytes_to_target.mean, cost.megabytes_to_target.num) == (3.0, 2)


def test_without_a_target_it_is_the_baselines_mean() -> None:
    found = evaluate(comparison({"flora": 0.1}))
    assert found.baseline.metric is not None
    assert found.target == found.baseline.metric.mean


def test_references_are_beside_the_others_and_not_tested() -> None:
    variants = (
        Variant(BASELINE, BASELINE),
        Variant("flora", "flora"),
        Variant("local_only", "local_only", kind="reference"),
    )
    found = evaluate(comparison({"flora": 0.1, "local_only": -0.2}, variants=variants))
    assert [row.variant.name for row in found.references] == ["local_only"]
    assert "every client in every round" in about_references(found)
    assert "centralised" not in about_references(found)
    assert about_references(evaluate(comparison({"flora": 0.1}))) == ""
    assert list(found.differences) == ["flora"]
    assert found.differences["flora"].corrected_p == found.differences["flora"].p


def test_every_comparison_with_the_baseline_is_corrected_for() -> None:
    found = evaluate(comparison({"flora": 0.1, "rolora": -0.1, "ffa_lora": 0.0}, spread=0.05)).differences
    assert found["flora"].corrected_p == pytest.approx(3 * found["flora"].p)
    assert found["ffa_lora"].corrected_p == found["ffa_lora"].p
    assert not found["ffa_lora"].is_shown


def test_a_baseline_that_is_not_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="the baseline flex_lora is none of the methods compared"):
        evaluate(comparison({"flora": 0.1}, baseline="flex_lora"))


@pytest.mark.parametrize(
    ("leads", "num_draws", "metric_name", "said"),
    [
        ({"flora": 0.1}, 10, "accuracy", "flora is ahead of fedit by 10.0 points [9.4, 10.6], 10 draws."),
        (
            {"flora": 0.1, "rolora": 0.2}, 10, "accuracy",
            "rolora is ahead of fedit by 20.0 points [19.4, 20.6], 10 draws. So is 1 more of the 2 compared.",
        ),
        (
            {"flora": -0.1, "rolora": 0.0}, 10, "accuracy",
            "Nothing is shown to be ahead of fedit; flora is behind by 10.0 points [9.4, 10.6], 10 draws.",
        ),
        (
            {"flora": 0.0}, 10, "accuracy",
            "No difference from fedit is shown in 10 draws; flora: +0.0 points (p = 1).",
        ),
        (
            {"flora": 0.001, "rolora": -0.004}, 10, "accuracy",
            "No difference from fedit is shown in 10 draws; the largest is -0.4 points (p = 0.48 by Holm), of rolora.",
        ),
        (
            {"flora": 0.1}, 5, "accuracy",
            "flora is 10.0 points ahead of fedit on the mean of 5 draws, but 5 draws cannot show a difference.",
        ),
        (
            {"flora": 0.1}, 1, "accuracy",
            "flora is 10.0 points ahead of fedit in the one draw, but 1 draw cannot show a difference.",
        ),
        (
            {"flora": -0.1}, 10, "perplexity",
            "flora is ahead of fedit by 0.100 in perplexity [0.0940, 0.106], 10 draws.",
        ),
        ({}, 10, "accuracy", "Nothing can be compared with fedit: no draw has a run of it and of another method."),
    ],
)  # fmt: skip
def test_the_headline_says_no_more_than_the_draws_carry(
    leads: dict[str, float], num_draws: int, metric_name: str, said: str
) -> None:
    assert headline(evaluate(comparison(leads, num_draws=num_draws, metric_name=metric_name))) == said


@pytest.mark.parametrize(
    ("leads", "num_draws", "said"),
    [
        ({"flora": 0.1}, 2, "2 draws can show no difference of whatever size: no p is below 0.5, or 0.5 by Holm's"),
        (
            {"flora": 0.1},
            5,
            "5 draws can show no difference of whatever size: no p is below 0.0625, or 0.0625 by Holm's correction for "
            "1 comparison, and 0.05 is called significant.",
        ),
        (
            {"flora": 0.1, "rolora": 0.1},
            6,
            "6 draws can show no difference of whatever size: no p is below 0.0312, or 0.0625 by Holm's correction for "
            "2 comparisons",
        ),
        (
            {"flora": 0.1},
            10,
            "over the whole test set (5 %, power 80 %, corrected for 1 comparison) is 1.0 points; the smal",
        ),
        (
            {"flora": 0.1, "rolora": 0.1},
            10,
            "over the whole test set (5 %, power 80 %, corrected for 2 comparisons) is 1.2 points; the smal",
        ),
        ({"flora": 0.1}, 10, "points; the smallest p that 10 can reach is 0.00195."),
    ],
)
def test_what_so_many_draws_can_show_is_said(leads: dict[str, float], num_draws: int, said: str) -> None:
    assert said in about_power(evaluate(comparison(leads, num_draws=num_draws)))


def test_an_unequal_budget_of_tuning_is_said() -> None:
    key = "train.learning_rate"
    three, settings = ("1e-3", "2e-3", "4e-3"), {key: "2e-3"}
    equal = tuple(Variant(name, name, settings, {key: three}) for name in (BASELINE, "flora"))
    more = (equal[0], Variant("flora", "flora", settings, {key: (*three, "8e-3", "1.6e-2")}))
    texts = [about_tuning(evaluate(comparison({"flora": 0.1}, variants=variants))) for variants in (equal, more)]
    assert texts[0].endswith("train.learning_rate, from equally many values for each variant.")
    assert "not from equally many values" in texts[1]
    assert "Nothing was tuned" in about_tuning(evaluate(comparison({"flora": 0.1})))


@pytest.mark.parametrize(("taken", "end"), [("0.004", "largest"), ("1e-3", "smallest")])
def test_a_choice_at_an_end_of_what_there_was_is_said(taken: str, end: str) -> None:
    key, values = "train.learning_rate", ("4e-3", "1e-3", "2e-3")
    variants = (
        Variant(BASELINE, BASELINE, {key: "2e-3"}, {key: values}),
        Variant(
            "flora", "flora", {key: taken, "train.schedule": "cosine"}, {key: values, "train.schedule": ("cosine",)}
        ),
    )
    said = about_tuning(evaluate(comparison({"flora": 0.1}, variants=variants)))
    assert "Other values than fedit have chosen, so that their differences are of both: flora." in said
    assert said.endswith(f"What lies beyond might be better still for flora ({end} train.learning_rate).")


def test_two_methods_that_do_the_same_to_the_last_digit_are_named() -> None:
    made = comparison({"flora": 0.0, "rolora": 0.0}, spread=0.0, extra=[run("rolora", 4, 0.7)])
    assert alike(evaluate(made)) == [
        "fedit and flora have the same metric in each round of each draw: do they differ in what they do?"
    ]
    assert alike(evaluate(comparison({"flora": 0.0}, runs=()))) == []


@pytest.mark.parametrize("name", ["loss", "log loss", "perplexity", "mean absolute error"])
def test_less_of_a_loss_is_better(name: str) -> None:
    assert is_lower_better(name)
    assert not is_lower_better("token accuracy")


def test_a_difference_that_no_size_would_show_has_no_smallest_one() -> None:
    """Six draws show a single difference, and not two at once; nor without an interval, which takes a spread."""
    alone, two = (
        evaluate(comparison(leads, num_draws=6)).differences for leads in ({"flora": 0.1}, {"flora": 0.1, "rolora": 0})
    )
    assert alone["flora"].smallest is not None
    assert [each.smallest for each in two.values()] == [None, None]
    same = evaluate(comparison({"flora": 0.1}, spread=1e-12)).differences["flora"]
    assert (same.interval, same.smallest) == (None, None)
