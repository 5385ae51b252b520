"""What a run may be given anew when it goes on: more rounds, another wait; and nothing that its rounds are made of."""

from pathlib import Path

import pytest

from fedlora.common.config import RunConfig
from fedlora.common.errors import StoreError
from fedlora.common.run_file import load_run, parse_run
from fedlora.server.disk.claim import Claim
from fedlora.server.disk.prolonging import CHANGEABLE

OTHERS = {
    "federation.rounds": 20,
    "federation.sites": 3,
    "federation.quorum": 0.7,
    "federation.deadline": 60.0,
    "federation.deadline_deviations": 4.0,
    "federation.patience": 5.0,
    "evaluation.round_examples": 10,
    "evaluation.early_stopping": 2,
    "exchange.published": 9,
    "exchange.publish_margin": 0.5,
}


def run_with(*overrides: str) -> RunConfig:
    return parse_run({}, overrides)


def begun(folder: Path, config: RunConfig, *, num_over: int = 0) -> Path:
    """Leave a run of which so many rounds are over."""
    with Claim(folder, config, resume=False):
        (folder / "manifest.json").write_text("{}")
    for number in range(num_over + 1):
        (folder / "rounds" / f"{number:04d}").mkdir(parents=True)
        (folder / "rounds" / f"{number:04d}" / "report.json").touch()
    return folder


def test_every_key_that_may_change_does_and_stays_changed(tmp_path: Path) -> None:
    assert sorted(OTHERS) == sorted(CHANGEABLE)
    begun(tmp_path, run_with(), num_over=3)
    other = run_with(*(f"{key}={value}" for key, value in OTHERS.items()))
    with Claim(tmp_path, other, resume=True) as claim:
        assert len(claim.notes) == len(OTHERS)
        assert "federation.rounds is changed from 10 to 20" in claim.notes
    assert load_run(tmp_path / "run.toml") == other
    with Claim(tmp_path, other, resume=True) as claim:
        assert claim.notes == ()


@pytest.mark.parametrize(
    "override",
    ["train.learning_rate=0.5", "train.schedule=cosine", "lora.rank=4", "run.seed=7", "aggregation.ridge=9.0",
     "federation.fraction=0.5", "federation.norm_limit=7.0", "exchange.precision=int8", "data.validation=0.3"],
)  # fmt: skip
def test_what_the_rounds_so_far_are_made_of_stays(tmp_path: Path, override: str) -> None:
    before = (begun(tmp_path, run_with()) / "run.toml").read_bytes()
    with pytest.raises(StoreError, match=override.partition("=")[0]) as caught:
        Claim(tmp_path, run_with("federation.rounds=20", override), resume=True)
    assert "federation.rounds is" not in str(caught.value)
    assert "may change" in str(caught.value)
    assert (tmp_path / "run.toml").read_bytes() == before


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_run_is_not_made_shorter_than_it_is(tmp_path: Path, rounds: int) -> None:
    begun(tmp_path, run_with(), num_over=3)
    with pytest.raises(StoreError, match=rf"federation.rounds is {rounds}, but 3 rounds are over; expected 4 or more"):
        Claim(tmp_path, run_with(f"federation.rounds={rounds}"), resume=True)
    with Claim(tmp_path, run_with("federation.rounds=4"), resume=True):
        pass


@pytest.mark.parametrize(
    ("settings", "is_said"),
    [
        ((), False),
        (("train.schedule=cosine",), True),
        (("train.schedule=linear",), True),
        (("train.warmup=0.1",), True),
    ],
)
def test_a_schedule_over_all_rounds_is_said_to_jump(tmp_path: Path, settings: tuple[str, ...], is_said: bool) -> None:
    begun(tmp_path, run_with(*settings), num_over=10)
    with Claim(tmp_path, run_with("federation.rounds=20", *settings), resume=True) as claim:
        jump = "from round 11 on the learning rate is that of a run of 20, so it may jump there"
        assert any(jump in note for note in claim.notes) == is_said


def test_a_folder_in_use_keeps_its_run_file(tmp_path: Path) -> None:
    begun(tmp_path, run_with())
    with Claim(tmp_path, run_with(), resume=True):
        with pytest.raises(StoreError, match="in use by another process"):
            Claim(tmp_path, run_with("federation.rounds=20"), resume=True)
        assert load_run(tmp_path / "run.toml") == run_with()
