"""What a site's own file says comes first: when it takes part, with which base model, and what it tells."""

import math
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from site_bench import RUN, Bench, StartBench, adapter, evaluate, train

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


def test_the_scores_of_a_sites_groups_leave_as_one_without_predictions(bench: Bench) -> None:
    bench.ask("1", evaluate(), START)
    found = bench.answer().evaluate
    assert list(found.groups) == ["north"]
    assert (found.groups["north"].num_examples, found.groups["north"].metric) == (4, 0.75)
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
