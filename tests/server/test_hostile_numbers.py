"""What a site says of itself is bounded, and counted for what it is: hostile sites on the stubs, over a real port."""

import math
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import pytest

sys.path.append(str(Path(__file__).parent))

from open_port import open_port, wait_until
from report_pages import text_of
from stub_runs import PortRun, run_config
from stub_site import SCORE, Behaviour, StubSite, honest, lying

from fedlora.aggregation import FedIT
from fedlora.common.fates import PARTS
from fedlora.methods import Method
from fedlora.server.record.events import ScoreNotFinite
from fedlora.server.record.round_report import CODEC, RoundReport
from fedlora.v1 import messages_pb2 as pb
from fedlora.v1 import session_pb2

MOST = 2**64 - 1
BILLION = {"num_examples": 10**9}


def telling(**fields: object) -> Behaviour:
    """Return what puts these into the receipt of a training."""

    def change(answer: session_pb2.Answer) -> None:
        if answer.HasField("train"):
            for name in fields:
                answer.train.ClearField(name)
            answer.train.MergeFrom(pb.TrainReceipt(**fields))

    return lying(change)


def judging(receipt: pb.EvaluateReceipt) -> Behaviour:
    """Return what answers evaluations with this."""

    def change(answer: session_pb2.Answer) -> None:
        if answer.HasField("evaluate"):
            answer.evaluate.CopyFrom(receipt)

    return lying(change)


def finished_run(
    folder: Path,
    behaviours: Mapping[str, Behaviour],
    *,
    says: Mapping[str, Mapping[str, Any]] = {},
    method: Method | None = None,
    **sections: dict[str, object],
) -> tuple[list[RoundReport], dict[str, StubSite]]:
    """Return the rounds of a run over sites that tell the truth or not, and the sites."""
    with open_port(folder / "port") as port, ExitStack() as stack:
        run = PortRun(folder / "run", port, run_config(len(behaviours), **sections), method=method)
        sites = {
            name: stack.enter_context(StubSite(name, folder / name, behave, says.get(name, {})).connect(port.address))
            for name, behave in behaviours.items()
        }
        return run.reports(), sites


# What it says of its training, and the code by which its update is refused; honest where it counts.
LIES: dict[str, tuple[Behaviour, str]] = {
    "most": (telling(num_examples=2**63 - 1), "unreadable"),
    "minus": (telling(num_examples=-1), "unreadable"),
    "another": (telling(num_examples=11), "num_examples"),
    "tokens": (telling(num_tokens=MOST), "unreadable"),
    "infinite": (telling(loss=1e300), "loss_not_finite"),
    "phases": (telling(seconds={f"phase {number} of many": 1e300 for number in range(1_500)}), ""),
    "flood": (telling(seconds={f"phase {number} of many": 1e300 for number in range(20_000)}), "unreadable"),
    "forever": (telling(seconds={"training": 1e300, "validation": math.nan, "forward": -1.0}), ""),
    "steps": (telling(num_steps=2**32 - 1), "unreadable"),
    "withheld": (telling(withheld=["x" * 100] * 500), ""),
    "scores": (telling(before=pb.Score(num_examples=10**9, loss=0.0, metric=1.0)), ""),
    "negative": (telling(before=pb.Score(num_examples=4, loss=-1e29, metric=1.0)), ""),
    "nan": (telling(before=pb.Score(num_examples=4, loss=math.nan, metric=1.0)), ""),
    "metric": (telling(after=pb.Score(num_examples=4, loss=1.0, metric=1e29)), ""),
}


LiedTo = tuple[list[RoundReport], dict[str, StubSite]]


@pytest.fixture(scope="module")
def lied_to(tmp_path_factory: pytest.TempPathFactory) -> LiedTo:
    """Return the rounds of a run of two honest sites and one of each lie, and the sites."""
    folder = tmp_path_factory.mktemp("lied to")
    lies = {"honest": honest, "upright": honest, **{name: lie for name, (lie, _) in LIES.items()}}
    return finished_run(folder, lies, federation={"rounds": 2, "quorum": 0.1}, evaluation={"client_examples": 4})


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
    reports, _ = finished_run(
        tmp_path,
        {"a": honest, "bb": honest, "owner": telling(**BILLION)},
        says={"owner": BILLION},
    )
    capped = {name: part.share for name, part in reports[1].clients.items() if part.share and part.share.is_capped}
    assert list(capped) == ["owner"]
    assert (capped["owner"].wanted, capped["owner"].given) == (pytest.approx(1.0, abs=1e-6), pytest.approx(10 / 12))


def test_a_share_of_the_run_file_is_the_most_that_a_site_weighs(tmp_path: Path) -> None:
    reports, _ = finished_run(
        tmp_path,
        {"a": honest, "bb": honest, "owner": telling(**BILLION)},
        says={"owner": BILLION},
        federation={"max_share": 0.4},
    )
    share = reports[1].clients["owner"].share
    assert share is not None
    assert share.given == pytest.approx(0.4)


def test_a_site_that_holds_more_than_any_site_is_not_let_in_and_the_others_go_on(tmp_path: Path) -> None:
    fates = {part: pb.FatesOfPart(num_examples={"cut": MOST}) for part in PARTS}
    says: dict[str, dict[str, Any]] = {
        "g1": {"num_examples": MOST}, "g2": {"num_held_out": MOST}, "g3": {"fates": fates}, "a": {}, "b": {},
    }  # fmt: skip
    with open_port(tmp_path / "port") as port, ExitStack() as stack:
        run = PortRun(tmp_path / "run", port, run_config(2))
        for name, said in says.items():
            if name == "a":
                wait_until(lambda: [port.states.get(greedy) for greedy in ("g1", "g2", "g3")] == ["not ready"] * 3)
            stack.enter_context(StubSite(name, tmp_path / name, says=said).connect(port.address))
        reports = run.reports()
    assert list(reports[1].clients) == ["a", "b"]


def test_a_site_that_comes_back_with_other_numbers_is_turned_away_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = run_config(2, federation={"rounds": 2, "patience": 0.1})
    with open_port(tmp_path / "port") as port, StubSite("a", tmp_path / "a").connect(port.address):
        run = PortRun(tmp_path / "run", port, config)
        with StubSite("b", tmp_path / "b").connect(port.address):
            wait_until((run.folder.path / "manifest.json").exists)
        with StubSite("b", tmp_path / "b", says={"num_examples": 10**6}).connect(port.address) as grown:
            wait_until(lambda: grown.turned_away == ["other_num_examples"])
            reports = run.reports()
    assert "b holds 1,000,000 training examples, and held 10 before" in caplog.text
    assert "a" in reports[2].clients
    assert "b" not in reports[2].clients


def test_a_site_answers_for_itself_alone_and_by_no_invented_groups(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    invented = {f"group {number}": pb.Score(num_examples=4, loss=0.0, metric=1.0) for number in range(1_500)}
    every = {
        "groups": judging(pb.EvaluateReceipt(groups=invented)),
        "others": judging(pb.EvaluateReceipt(groups={"honest": pb.Score(num_examples=10**9, loss=0.0, metric=1.0)})),
        "many": judging(pb.EvaluateReceipt(groups={"many": pb.Score(num_examples=10**9, loss=0.0, metric=1.0)})),
        "million": judging(pb.EvaluateReceipt(groups={"million": SCORE} | {str(n): SCORE for n in range(1_000)})),
    }
    reports, _ = finished_run(tmp_path, {"honest": honest, **every}, federation={"quorum": 0.1})
    for report in reports:
        assert report.held_out is not None
        assert set(report.held_out.groups) == {"honest", "million"}
        assert report.held_out.overall.num_examples == 8
        assert len(CODEC.dump(report)) < 10_000
    assert "a score of groups does not count: 1,500 groups, none of its name" in caplog.text
    assert "a score of many does not count: over 1,000,000,000 examples; expected at most 4" in caplog.text


def test_scores_that_are_not_finite_are_told_of_validation_and_of_held_out_sets(tmp_path: Path) -> None:
    nan = pb.Score(num_examples=4, loss=math.nan, metric=0.5)
    behaviours = {
        "honest": honest,
        "trains": telling(before=nan, after=nan),
        "judges": judging(pb.EvaluateReceipt(groups={"judges": nan})),
    }
    with open_port(tmp_path / "port") as port, ExitStack() as stack:
        config = run_config(len(behaviours), evaluation={"client_examples": 4})
        run = PortRun(tmp_path / "run", port, config)
        for name, behave in behaviours.items():
            stack.enter_context(StubSite(name, tmp_path / name, behave).connect(port.address))
        run.reports()
    told = [(event.round, event.site) for event in run.events if isinstance(event, ScoreNotFinite)]
    # The held-out set at the start and after the round, and the validation of the last adapter.
    assert sorted(told) == [(0, "judges"), (1, "judges"), (1, "judges"), (1, "trains")]


class OneRank(FedIT):
    """A method that does not take pairs of different ranks."""

    name: ClassVar[str] = "one_rank"
    allows_client_ranks: ClassVar[bool] = False


def test_a_site_that_says_it_trains_a_smaller_rank_ends_no_run_whose_method_takes_one_rank(tmp_path: Path) -> None:
    reports, _ = finished_run(
        tmp_path, {"a": honest, "small": honest}, says={"small": {"lora_rank": 1}}, method=OneRank()
    )
    assert list(reports[1].clients) == ["a", "small"]
