"""How much one client of several may count."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parent))

from report_pages import client, finished, start, text_of

from fedlora.common.messages import Score, merge_scores
from fedlora.server.record.best_round import best_round, has_stalled, scores_in
from fedlora.server.record.fair_shares import capped, merge_fairly
from fedlora.server.record.round_report import CODEC, Share
from fedlora.server.rounds.completion import weigh

few = settings(derandomize=True, database=None, deadline=None, max_examples=100)
sizes = st.dictionaries(st.text(min_size=1, max_size=3), st.integers(1, 10**9), min_size=1, max_size=12)


def test_nobody_weighs_more_than_ten_times_the_middle_one_and_ordinary_cohorts_are_left_alone() -> None:
    ordinary = {"a": 10.0, "b": 30.0, "c": 100.0}
    assert capped(ordinary) == ordinary
    assert capped({"a": 10.0, "b": 20.0, "liar": 1e9}) == {"a": 10.0, "b": 20.0, "liar": 200.0}
    assert capped({"a": 10.0, "liar": 1e9}) == {"a": 10.0, "liar": 100.0}
    assert capped({"alone": 1e9}) == {"alone": 1e9}


@few
@given(sizes, st.floats(0.01, 1))
def test_with_a_share_of_its_own_nobody_weighs_more_and_the_smaller_ones_keep_their_weights(
    numbers: dict[str, int], max_share: float
) -> None:
    weights = {name: float(number) for name, number in numbers.items()}
    found = capped(weights, max_share=max_share)
    least = max(max_share, 1 / len(weights))
    assert all(weight <= least * sum(found.values()) * (1 + 1e-9) for weight in found.values())
    most = max(found.values())
    assert all(found[name] == min(weights[name], most) for name in weights)
    if max(weights.values()) <= max_share * sum(weights.values()):
        assert found == weights


def test_a_cap_is_said_with_what_the_client_would_have_weighed() -> None:
    weights = weigh({"a": 100, "b": 100, "liar": 10**9}, weighting="examples")
    assert weights.by_client == {"a": 100.0, "b": 100.0, "liar": 1000.0}
    assert [name for name, share in weights.shares.items() if share.is_capped] == ["liar"]
    assert weights.shares["liar"].wanted == pytest.approx(1.0, abs=1e-6)
    assert weights.shares["liar"].given == pytest.approx(10 / 12)
    assert weights.shares["a"].given == pytest.approx(1 / 12)


def test_a_cap_holds_for_late_updates_too_and_uniform_weights_need_none() -> None:
    assert weigh({"a": 1, "b": 10**9}, weighting="uniform").by_client is None
    late = weigh({"a": 1, "b": 10**9}, weighting="uniform", ages={"a": 1, "b": 0})
    assert late.by_client == {"a": 0.5, "b": 1.0}
    third = weigh({"a": 30, "b": 30, "c": 60}, weighting="examples", max_share=0.4, ages={"a": 0, "b": 0, "c": 1})
    assert third.by_client == {"a": 30.0, "b": 30.0, "c": 30.0}
    assert not any(share.is_capped for share in third.shares.values())


scores = st.builds(Score, st.integers(1, 64), st.floats(0.5, 4), st.floats(0, 1))


@few
@given(st.dictionaries(st.text(max_size=2), st.builds(replace, scores, num_examples=st.just(64)), min_size=1))
def test_of_ordinary_clients_the_score_is_the_plain_mean_bit_for_bit(found: dict[str, Score]) -> None:
    assert merge_fairly(found) == merge_scores(list(found.values()))


def test_a_loss_that_is_not_finite_is_not_hidden() -> None:
    spoiled = {"a": Score(5, 1.0, 0.5), "b": Score(5, math.nan, 0.5), "c": Score(5, 1.0, 0.5)}
    assert math.isnan(merge_fairly(spoiled).loss)


def test_one_client_with_a_huge_loss_or_many_tokens_does_not_own_the_score() -> None:
    honest = {"a": Score(64, 1.0, 0.5, 640), "b": Score(64, 1.0, 0.5, 640)}
    assert merge_fairly({**honest, "liar": Score(64, 1e29, 0.0, 640)}).loss == pytest.approx(4.0)
    merged = merge_fairly({**honest, "liar": Score(64, 0.0, 1.0, 10**13)})
    assert merged.loss == pytest.approx(2 / 12)
    assert (merged.num_examples, merged.num_tokens) == (192, 10**13 + 1280)


def test_a_client_with_losses_of_1e29_but_for_its_favourite_round_does_not_choose_it() -> None:
    """The honest losses halve from round to round, and the liar praises the start."""
    reports = []
    for number in range(1, 5):
        honest = {name: client(before=0.5) for name in "abcdef"}
        loss = 64 * 0.5**number
        honest = {name: replace(part, before=Score(64, loss, 0.5)) for name, part in honest.items()}
        lie = replace(client(), before=Score(64, 0.0 if number == 1 else 1e29, 0.5))
        reports.append(finished(number, {**honest, "liar": lie}))
    found = {number: score for report in reports for number, score in scores_in(report).items()}
    assert best_round(found) == 3
    assert not has_stalled(found, patience=2)


def test_a_cap_is_in_the_report_and_in_the_round_on_disk() -> None:
    share = Share(0.999, 0.5)
    parts = {"mnist": client(), "serif": replace(client(), share=share)}
    report = finished(1, parts)
    assert CODEC.load(CODEC.dump(report)).clients["serif"].share == share
    said = "Weights were capped (federation.max_share): serif in round 1 (50 % in place of 100 %)."
    assert said in text_of(start(), report)
    assert "max_share): " not in text_of(start(), finished(1))
