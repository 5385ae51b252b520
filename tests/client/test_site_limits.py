"""What a site's own file says comes first: when it takes part, with which base model, and what it tells."""

import logging
import math
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from site_bench import RUN, Bench, StartBench, adapter, evaluate, train

from fedlora.client.site.rounding import rounded, rounded_score
from fedlora.common.messages import Score
from fedlora.server.record.best_round import best_round, has_stalled
from fedlora.v1 import session_pb2

START = adapter()


def around_now() -> str:
    """Return quiet hours that begin an hour ago and end in an hour."""
    now = datetime.now()
    return f"{now - timedelta(hours=1):%H:%M}-{now + timedelta(hours=1):%H:%M}"


def test_an_operator_pauses_and_resumes(bench: Bench) -> None:
    bench.is_paused = True
    bench.site.look()
    assert bench.readiness().reason == "paused"
    bench.ask("1", train(), START)
    bench.ask("2", evaluate(), START)
    assert [bench.answer().failure.code, bench.answer().failure.code] == ["paused", "paused"]
    bench.is_paused = False
    bench.site.look()
    assert bench.readiness().HasField("description")
    bench.ask("3", train(), START)
    assert bench.answer().train.status == "ok"
    assert (bench.num("trainings"), bench.num("evaluations")) == (1, 0)


def test_what_was_trained_before_the_pause_is_still_delivered(bench: Bench) -> None:
    bench.ask("1", train(), START)
    first = bench.answer()
    bench.is_paused = True
    bench.connect()
    assert bench.readiness().reason == "paused"
    bench.ask("1", train(), START)
    assert bench.answer() == first


def test_in_quiet_hours_nothing_is_trained(start_bench: StartBench) -> None:
    bench = start_bench(limits={"quiet_hours": around_now()})
    bench.connect()
    assert bench.readiness().reason == "quiet_hours"
    bench.ask("1", train(), START)
    assert bench.answer().failure.code == "quiet_hours"
    assert bench.num("trainings") == 0


def test_a_base_model_that_is_not_allowed_is_not_trained(start_bench: StartBench) -> None:
    bench = start_bench(limits={"base_models": ["some/other", "sha256:other"]})
    bench.connect()
    assert bench.readiness().reason == "base_model_not_allowed"
    bench.ask("1", train(), START)
    assert bench.answer().failure.code == "base_model_not_allowed"
    assert bench.num("trainings") == 0


@pytest.mark.parametrize("name", [RUN.model.name, "sha256:base"])
def test_a_base_model_is_allowed_by_name_or_fingerprint(start_bench: StartBench, name: str) -> None:
    bench = start_bench(limits={"base_models": ["some/other", name]})
    bench.connect()
    assert bench.readiness().HasField("description")


def test_a_rehearsal_that_fails_is_told_by_its_code(start_bench: StartBench) -> None:
    bench = start_bench()
    bench.order("data")
    bench.connect()
    assert bench.readiness().reason == "data"
    bench.connect()
    assert bench.readiness().reason == "data"
    assert bench.num("rehearsals") == 1


def test_who_was_turned_away_stays_away(bench: Bench) -> None:
    away = session_pb2.TurnedAway(reason="other_base_model")
    bench.site.take(session_pb2.ConnectResponse(turned_away=away))
    bench.site.look()
    assert bench.is_silent(), "the server knows"
    bench.connect()
    assert bench.readiness().reason == "other_base_model"


def test_numbers_that_a_site_keeps_are_in_no_answer(start_bench: StartBench) -> None:
    bench = start_bench(limits={"metrics": []})
    bench.connect()
    bench.readiness()
    bench.ask("1", train(), START)
    receipt = bench.answer().train
    assert list(receipt.withheld) == ["loss", "scores"]
    assert math.isnan(receipt.loss)
    assert not receipt.HasField("before")
    assert not receipt.HasField("after")
    assert receipt.num_examples == 10
    bench.ask("2", evaluate(), START)
    assert bench.answer().failure.code == "withheld"


def test_no_score_over_a_few_examples_leaves(start_bench: StartBench, caplog: pytest.LogCaptureFixture) -> None:
    bench = start_bench(limits={"least_examples": 5})
    bench.connect()
    bench.readiness()
    with caplog.at_level(logging.INFO):
        bench.ask("1", train(), START)
        receipt = bench.answer().train
        bench.ask("2", evaluate(), START)
        assert bench.answer().failure.code == "withheld"
    assert (receipt.status, list(receipt.withheld), receipt.loss) == ("ok", ["scores"], 0.5)
    assert not receipt.HasField("before")
    assert "withheld: the score is of 4 examples, fewer than limits.least_examples = 5" in caplog.text


@pytest.mark.parametrize(
    ("value", "num", "expected"),
    [(0.7123, 20, 0.7), (0.7123, 64, 0.7), (0.7323, 64, 0.75), (0.7123, 1000, 0.71), (2.34567, 12_800, 2.346)],
)
def test_a_score_is_as_exact_as_its_examples_support(value: float, num: int, expected: float) -> None:
    assert rounded(value, num) == expected
    assert abs(rounded(value, num) - value) <= 1 / (4 * math.sqrt(num))


def test_a_loss_of_a_task_of_ones_own_is_rounded_in_its_own_scale() -> None:
    assert rounded(12_345.6, 100, is_relative=True) == 12_500
    assert rounded(0.00012345, 100, is_relative=True) == 0.000125
    assert [rounded(value, 100) for value in (0.0, math.inf)] == [0.0, math.inf]


def test_rounds_whose_scores_are_rounded_to_the_same_are_no_progress() -> None:
    losses = {1: 1.312, 2: 1.188, 3: 1.193, 4: 1.207}
    scores = {round: rounded_score(Score(64, loss, 0.5), is_relative=False) for round, loss in losses.items()}
    assert best_round(scores) == 2
    assert has_stalled(scores, patience=2)
    assert not has_stalled(scores, patience=3)


def test_the_scores_of_a_sites_groups_leave_as_one_without_predictions(bench: Bench) -> None:
    bench.ask("1", evaluate(), START)
    found = bench.answer().evaluate
    assert list(found.groups) == ["north"]
    # 3 of 4, as exact as four examples support.
    assert (found.groups["north"].num_examples, found.groups["north"].metric) == (4, 0.8)
    assert not found.predictions
    bench.connect()
    bench.readiness()
    bench.ask("1", evaluate(), START)
    assert bench.answer().evaluate == found
    assert bench.num("evaluations") == 1


@pytest.mark.parametrize("run", ["../../elsewhere", "..", ""])
def test_a_run_that_would_name_another_folder_is_refused_and_nothing_is_touched(bench: Bench, run: str) -> None:
    (bench.state / "identity.json").write_text("the key")
    years = [bench.state.parent / "elsewhere" / "0001", bench.state / "0001", bench.state / "outbox" / "0001"]
    for year in years:
        year.mkdir(parents=True)
    request = train()
    request.run = run
    bench.ask("1", request, START)
    assert bench.answer().failure.code == "run"
    bench.acknowledge("1")
    assert (bench.state / "identity.json").read_text() == "the key"
    assert all(year.is_dir() for year in years)
    assert bench.num("trainings") == 0
