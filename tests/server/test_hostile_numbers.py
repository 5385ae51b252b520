"""What a site says of itself is bounded, and counted for what it is: hostile sites on the stubs, over a real port."""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest

sys.path.append(str(Path(__file__).parent))

from open_port import wait_until
from report_pages import text_of
from stub_sites import StubSite, described, finished_run, nothing, served_run

from fedlora.aggregation import FedIT
from fedlora.common.fates import PARTS
from fedlora.server.record.round_report import CODEC, RoundReport
from fedlora.v1 import messages_pb2 as pb
from fedlora.v1 import session_pb2

MOST = 2**64 - 1


def lying(**fields: object) -> Callable[[session_pb2.Answer], None]:
    """Return what puts these into the receipt of a training."""

    def lie(answer: session_pb2.Answer) -> None:
        if answer.HasField("train"):
            for name in fields:
                answer.train.ClearField(name)
            answer.train.MergeFrom(pb.TrainReceipt(**fields))

    return lie


def judging(receipt: pb.EvaluateReceipt) -> Callable[[session_pb2.Answer], None]:
    """Return what answers evaluations with this."""

    def lie(answer: session_pb2.Answer) -> None:
        if answer.HasField("evaluate"):
            answer.evaluate.CopyFrom(receipt)

    return lie


# What it says of its training, and the code by which its update is refused; nothing where it counts.
LIES: dict[str, tuple[Callable[[session_pb2.Answer], None], str]] = {
    "most": (lying(num_examples=2**63 - 1), "unreadable"),
    "minus": (lying(num_examples=-1), "unreadable"),
    "another": (lying(num_examples=11), "num_examples"),
    "tokens": (lying(num_tokens=MOST), "unreadable"),
    "infinite": (lying(loss=1e300), "loss_not_finite"),
    "phases": (lying(seconds={f"phase {number} of many": 1e300 for number in range(1_500)}), ""),
    "flood": (lying(seconds={f"phase {number} of many": 1e300 for number in range(20_000)}), "unreadable"),
    "forever": (lying(seconds={"training": 1e300, "validation": math.nan, "forward": -1.0}), ""),
    "steps": (lying(num_steps=2**32 - 1), "unreadable"),
    "withheld": (lying(withheld=["x" * 100] * 500), ""),
    "scores": (lying(before=pb.Score(num_examples=10**9, loss=0.0, metric=1.0)), ""),
    "negative": (lying(before=pb.Score(num_examples=4, loss=-1e29, metric=1.0)), ""),
    "nan": (lying(before=pb.Score(num_examples=4, loss=math.nan, metric=1.0)), ""),
    "metric": (lying(after=pb.Score(num_examples=4, loss=1.0, metric=1e29)), ""),
}


LiedTo = tuple[list[RoundReport], dict[str, StubSite]]


@pytest.fixture(scope="module")
def lied_to(tmp_path_factory: pytest.TempPathFactory) -> LiedTo:
    """Return the rounds of a run of two honest sites and one of each lie, and the sites."""
    folder = tmp_path_factory.mktemp("lied to")
    lies = {"honest": nothing, "upright": nothing, **{name: lie for name, (lie, _) in LIES.items()}}
    return finished_run(folder, lies, rounds=2, quorum=0.1, evaluation={"client_examples": 4})


def test_what_no_site_can_say_is_refused_and_both_sides_know_why(lied_to: LiedTo) -> None:
    reports, sites = lied_to
    for report in reports[1:]:
        for name, (_, code) in LIES.items():
            assert (name, report.refused.get(name, "").partition(":")[0]) == (name, code)
            assert (name in report.clients) == (not code)
    assert {name: site.refused for name, site in sites.items()} == {
        name: [code] * 2 if code else [] for name, code in {"honest": "", "upright": "", **_codes()}.items()
    }
    assert "num_examples: 11; expected 10, as it described itself" in reports[1].refused["another"]


def _codes() -> dict[str, str]:
    return {name: code for name, (_, code) in LIES.items()}


def test_what_is_recorded_of_a_round_stays_small_and_makes_a_report(lied_to: LiedTo) -> None:
    reports, _ = lied_to
    assert set(reports[1].clients["phases"].seconds) == {"answered"}
    assert set(reports[1].clients["forever"].seconds) == {"answered"}
    assert len(CODEC.dump(reports[1])) < 10_000
    assert reports[1].clients["withheld"].loss == 0.5
    assert "phase 7" not in text_of(*reports)


def test_a_score_that_cannot_be_true_is_left_out_and_the_update_counts(lied_to: LiedTo) -> None:
    reports, _ = lied_to
    for report in reports[1:]:
        assert all(report.clients[name].before is None for name in ("scores", "negative", "nan"))
        assert (report.clients["metric"].after, report.clients["metric"].before) == (
            None,
            report.clients["honest"].before,
        )
    assert reports[2].validation is not None


def test_a_billion_examples_do_not_take_the_model_over_and_the_cap_is_in_the_report(tmp_path: Path) -> None:
    huge = described(num_examples=10**9)
    reports, _ = finished_run(
        tmp_path, {"a": nothing, "bb": nothing, "owner": lying(num_examples=10**9)}, descriptions={"owner": huge}
    )
    capped = {name: part.capped for name, part in reports[1].clients.items() if part.capped}
    assert list(capped) == ["owner"]
    assert (capped["owner"].before, capped["owner"].after) == (pytest.approx(1.0, abs=1e-6), pytest.approx(10 / 12))


def test_a_share_of_the_run_file_is_the_most_that_a_site_weighs(tmp_path: Path) -> None:
    huge = described(num_examples=10**9)
    reports, _ = finished_run(
        tmp_path,
        {"a": nothing, "bb": nothing, "owner": lying(num_examples=10**9)},
        descriptions={"owner": huge},
        max_share=0.4,
    )
    capped = reports[1].clients["owner"].capped
    assert capped is not None
    assert capped.after == pytest.approx(0.4)


def test_a_site_that_holds_more_than_any_site_is_not_let_in_and_the_others_go_on(tmp_path: Path) -> None:
    with served_run(tmp_path, num_sites=2) as run:
        fates = {part: pb.FatesOfPart(num_examples={"cut": MOST}) for part in PARTS}
        greedy = [described(num_examples=MOST), described(num_held_out=MOST), described(fates=fates)]
        with (
            StubSite(run.port.address, "g1", greedy[0]),
            StubSite(run.port.address, "g2", greedy[1]),
            StubSite(run.port.address, "g3", greedy[2]),
        ):
            wait_until(lambda: [run.port.states.get(f"g{number}") for number in (1, 2, 3)] == ["not ready"] * 3)
            with StubSite(run.port.address, "a", described()), StubSite(run.port.address, "b", described()):
                reports = run.reports()
    assert list(reports[1].clients) == ["a", "b"]


def test_a_site_that_comes_back_with_other_numbers_is_turned_away_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        served_run(tmp_path, num_sites=2, rounds=2, patience=0.1) as run,
        StubSite(run.port.address, "a", described()),
        StubSite(run.port.address, "b", described()) as before,
    ):
        wait_until((run.port.folder / "rounds-of-it" / "manifest.json").exists)
        before.__exit__()
        with StubSite(run.port.address, "b", described(num_examples=10**6)) as grown:
            wait_until(lambda: grown.turned_away == ["other_num_examples"])
            reports = run.reports()
    assert "b holds 1,000,000 training examples, and held 10 before" in caplog.text
    assert "a" in reports[2].clients
    assert "b" not in reports[2].clients


def test_a_site_answers_for_itself_alone_and_by_no_invented_groups(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    true = pb.Score(num_examples=4, loss=1.0, metric=0.5)
    invented = {f"group {number}": pb.Score(num_examples=4, loss=0.0, metric=1.0) for number in range(1_500)}
    every = {
        "groups": judging(pb.EvaluateReceipt(groups=invented)),
        "others": judging(pb.EvaluateReceipt(groups={"honest": pb.Score(num_examples=10**9, loss=0.0, metric=1.0)})),
        "many": judging(pb.EvaluateReceipt(groups={"many": pb.Score(num_examples=10**9, loss=0.0, metric=1.0)})),
        "million": judging(pb.EvaluateReceipt(groups={"million": true} | {str(n): true for n in range(1_000)})),
    }
    reports, _ = finished_run(tmp_path, {"honest": nothing, **every}, quorum=0.1)
    for report in reports:
        assert report.held_out is not None
        assert set(report.held_out.groups) == {"honest", "million"}
        assert report.held_out.overall.num_examples == 8
        assert len(CODEC.dump(report)) < 10_000
    assert "a score of groups does not count: 1,500 groups, none of its name" in caplog.text
    assert "a score of many does not count: over 1,000,000,000 examples; expected at most 4" in caplog.text


class OneRank(FedIT):
    """A method that does not take pairs of different ranks."""

    name: ClassVar[str] = "one_rank"
    allows_client_ranks: ClassVar[bool] = False


def test_a_site_that_says_it_trains_a_smaller_rank_ends_no_run_whose_method_takes_one_rank(tmp_path: Path) -> None:
    small = described(lora_rank=1)
    reports, _ = finished_run(
        tmp_path, {"a": nothing, "small": nothing}, descriptions={"small": small}, method=OneRank()
    )
    assert list(reports[1].clients) == ["a", "small"]
