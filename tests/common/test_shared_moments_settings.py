"""Shared moments in a run file: what of an optimiser is shared, with what it does not go, and how many steps count."""

import pytest

from fedlora.aggregation import METHODS
from fedlora.common.errors import ConfigError
from fedlora.common.run_file import parse_run
from fedlora.training.schedule import steps_of_round

SHARED = 'train.optimizer_state="shared"'


@pytest.mark.parametrize(
    ("settings", "form"),
    [
        ([], {}),
        (['train.optimizer_state="keep"'], {}),
        ([SHARED], {"exp_avg": True, "exp_avg_sq": True, "step": False}),
        ([SHARED, 'train.shared_second_moments="scalar"'], {"exp_avg": True, "exp_avg_sq": False, "step": False}),
        ([SHARED, "train.optimizer=sgd"], {"momentum_buffer": True}),
        ([SHARED, "train.optimizer=sgd", "train.momentum=0.0"], {}),
    ],
)
def test_what_is_shared_is_what_the_optimiser_keeps(settings: list[str], form: dict[str, bool]) -> None:
    assert parse_run({}, settings).train.shared_moments == form


@pytest.mark.parametrize("name", METHODS)
def test_it_goes_with_every_method_whose_pairs_go_on(name: str) -> None:
    settings = [f"aggregation.method={name}", SHARED]
    if name != "flora":
        assert parse_run({}, settings).train.optimizer_state == "shared"
        return
    with pytest.raises(ConfigError) as caught:
        parse_run({}, settings)
    (line,) = str(caught.value).splitlines()
    assert 'train.optimizer_state = "shared" has no pairs to go on with under aggregation.method = flora' in line


def test_pairs_of_another_basis_are_refused_in_a_line() -> None:
    with pytest.raises(ConfigError, match=r"does not go with robust\.regauge, which gives pairs another basis"):
        parse_run({}, [SHARED, "robust.regauge=true"])


@pytest.mark.parametrize(
    ("settings", "num_examples", "most"),
    [
        ({"steps": 8}, 10**6, 8),
        ({"steps": None, "epochs": 2.0, "batch_size": 16}, 160, 20),
        ({"steps": None, "epochs": 2.0, "batch_size": 16}, 3, 2),
        ({"steps": None, "epochs": 0.1, "batch_size": 16}, 3, 1),
    ],
)
def test_the_most_steps_of_a_round_are_those_of_the_largest_client(
    settings: dict[str, object], num_examples: int, most: int
) -> None:
    train = parse_run({"train": settings}, []).train
    assert train.most_steps(num_examples) == most
    assert all(steps_of_round(train, fewer) <= most for fewer in range(1, min(num_examples, 200) + 1))
