"""The rules of a round."""

import math
import random
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlora.adapters import Adapter, LoraLayer, pack, unpack
from fedlora.aggregation import FedIT, FlexLora, Flora, LoraFair
from fedlora.common.messages import Score, merge_scores
from fedlora.server.rounds.completion import complete, weigh
from fedlora.server.rounds.draw import cohort, share
from fedlora.server.rounds.ending import quorum_size
from fedlora.server.rounds.starts import for_rank, start_of_round

few = settings(derandomize=True, database=None, deadline=None, max_examples=60)

NAMES = [f"client-{number}" for number in range(20)]
names = st.lists(st.text(min_size=1), min_size=1, max_size=30, unique=True)
fractions = st.floats(0, 1, exclude_min=True)


@few
@given(names, fractions, st.integers(0, 9), st.integers(1, 9), st.randoms(use_true_random=False))
def test_a_cohort_depends_on_seed_and_round_and_not_on_the_order_of_names(
    clients: list[str], fraction: float, seed: int, number: int, shuffle: random.Random
) -> None:
    chosen = cohort(clients, size=share(fraction, len(clients)), seed=seed, round=number)
    shuffled = shuffle.sample(clients, len(clients))
    assert cohort(shuffled, size=share(fraction, len(clients)), seed=seed, round=number) == chosen
    assert list(chosen) == sorted(set(chosen))
    assert set(chosen) <= set(clients)
    assert 1 <= len(chosen) <= len(clients)
    assert abs(len(chosen) - fraction * len(clients)) <= 0.5 or len(chosen) == 1


@pytest.mark.parametrize(
    ("fraction", "size"), [(1.0, 20), (0.5, 10), (0.26, 5), (0.125, 3), (0.1, 2), (0.01, 1), (1e-9, 1)]
)
def test_a_cohort_is_the_fraction_rounded_and_at_least_one(fraction: float, size: int) -> None:
    assert len(cohort(NAMES, size=share(fraction, len(NAMES)), seed=0, round=1)) == size


def test_every_client_is_there_with_a_fraction_of_one() -> None:
    assert cohort(reversed(NAMES), size=20, seed=0, round=1) == tuple(sorted(NAMES))  # type: ignore[arg-type]


def test_cohorts_differ_from_round_to_round_and_seed_to_seed_and_are_fair() -> None:
    drawn = [cohort(NAMES, size=5, seed=seed, round=number) for seed in (0, 1) for number in range(1, 201)]
    assert len(set(drawn)) > 380
    counts = Counter(name for chosen in drawn for name in chosen)
    assert all(60 <= counts[name] <= 140 for name in NAMES)  # 100 expected, within 4.6 standard deviations


@pytest.mark.parametrize(
    ("num_asked", "quorum", "needed"),
    [(10, 0.5, 5), (5, 0.5, 3), (1, 0.5, 1), (1, 0.01, 1), (10, 1.0, 10), (3, 0.34, 2), (0, 0.5, 1)],
)
def test_a_quorum_is_the_share_rounded_up_and_at_least_one(num_asked: int, quorum: float, needed: int) -> None:
    assert quorum_size(num_asked, quorum) == needed


def test_a_quorum_in_per_cent_of_a_hundred_clients_is_that_number() -> None:
    assert [quorum_size(100, percent / 100) for percent in range(1, 101)] == list(range(1, 101))


scores = st.builds(Score, st.integers(1, 1000), st.floats(-1e6, 1e6), st.floats(0, 1))


@few
@given(st.lists(scores, min_size=1, max_size=8))
def test_merged_scores_are_the_mean_over_all_examples(parts: list[Score]) -> None:
    merged = merge_scores(parts)
    total = sum(part.num_examples for part in parts)
    assert merged.num_examples == total
    losses = math.fsum(part.loss * part.num_examples for part in parts) / total
    assert merged.loss == pytest.approx(losses, rel=1e-9, abs=1e-6)
    assert 0 <= merged.metric <= 1 + 1e-9


def test_one_score_merges_to_itself_and_a_spoiled_one_is_not_hidden() -> None:
    assert merge_scores([Score(7, 0.25, 0.5)]) == Score(7, 0.25, 0.5)
    assert math.isnan(merge_scores([Score(7, 0.25, 0.5), Score(1, math.nan, 1.0)]).loss)


def constant(value: float) -> Adapter:
    return Adapter({"q": LoraLayer(torch.full((1, 2), value), torch.full((2, 1), value), 1.0)})


@pytest.mark.parametrize(("weighting", "mean"), [("examples", 3.0), ("uniform", 2.0)])
def test_a_round_is_completed_with_the_weights_that_were_asked_for(weighting: str, mean: float) -> None:
    result = complete(
        {"a": constant(0.0), "b": constant(4.0)},
        start=constant(0.0),
        weights=weigh({"a": 10, "b": 30}, weighting=weighting).by_client,
        method=FedIT(),
    )
    torch.testing.assert_close(result.adapter.layers["q"].A, torch.full((1, 2), mean))
    assert result.report.method == "fedit"


def test_the_order_in_which_updates_came_has_no_effect_on_any_bit() -> None:
    updates = {name: constant(0.1 * index) for index, name in enumerate(NAMES)}
    num_examples = {name: index + 1 for index, name in enumerate(NAMES)}
    one, other = (
        complete(
            dict(items),
            start=constant(0.0),
            weights=weigh(num_examples, weighting="examples").by_client,
            method=FedIT(),
        ).adapter.layers["q"]
        for items in (updates.items(), reversed(updates.items()))
    )
    assert torch.equal(one.A, other.A)
    assert torch.equal(one.B, other.B)


def random_adapter(rank: int = 6, *, config: dict[str, object] | None = None) -> Adapter:
    generator = torch.Generator().manual_seed(0)
    A, B = torch.randn(rank, 12, generator=generator), torch.randn(10, rank, generator=generator)
    change = LoraLayer(torch.ones(1, 12), torch.ones(10, 1), 1.0)
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 3 * rank} | (config or {})
    return Adapter({"q": LoraLayer(A, B, 3.0)}, {"head": torch.ones(2)}, settings, {"q": change})


def test_a_round_starts_from_the_last_rounds_adapter_unless_the_method_starts_afresh() -> None:
    adapter = random_adapter()
    assert start_of_round(adapter, plan=LoraFair().plan(1), seed=0, round=1) is adapter

    fresh = start_of_round(adapter, plan=Flora().plan(2), seed=0, round=2)
    assert not fresh.layers["q"].B.any()
    assert not torch.equal(fresh.layers["q"].A, adapter.layers["q"].A)
    assert 0.5 / 12**0.5 < float(fresh.layers["q"].A.abs().max()) <= 1 / 12**0.5
    assert (fresh.dense, fresh.config, fresh.base_change) == (adapter.dense, adapter.config, adapter.base_change)
    again, other = (start_of_round(adapter, plan=Flora().plan(2), seed=0, round=number) for number in (2, 3))
    assert torch.equal(again.layers["q"].A, fresh.layers["q"].A)
    assert not torch.equal(other.layers["q"].A, fresh.layers["q"].A)


def test_a_fresh_embedding_has_a_product_of_zero_and_can_be_trained() -> None:
    layer = LoraLayer(torch.ones(2, 7), torch.ones(5, 2), 1.0, is_embedding=True)
    fresh = start_of_round(Adapter({"words": layer}), plan=Flora().plan(1), seed=0, round=1).layers["words"]
    assert not fresh.A.any()
    assert fresh.B.all()
    assert fresh.is_embedding


@pytest.mark.parametrize("method", [FedIT(), LoraFair(), FlexLora(), Flora()])
@pytest.mark.parametrize("config", [{}, {"use_rslora": True, "lora_alpha": 3 * 6**0.5}])
def test_a_client_of_a_smaller_rank_gets_it_with_the_same_scaling(
    method: FedIT | LoraFair | FlexLora | Flora, config: dict[str, object]
) -> None:
    adapter = random_adapter(config=config)
    small = for_rank(adapter, 2, method=method)
    assert small.layers["q"].shapes() == "A (2, 12), B (10, 2)"
    assert small.layers["q"].scaling == 3.0
    assert unpack(pack(small)).layers["q"].scaling == pytest.approx(3.0)
    assert small.config["r"] == 2
    assert (small.dense, small.base_change) == (adapter.dense, adapter.base_change)
    assert for_rank(adapter, 6, method=method) is adapter


def test_a_smaller_rank_is_cut_by_fedit_solved_again_by_lora_fair_and_best_by_flex_lora() -> None:
    layer = random_adapter().layers["q"]
    whole = layer.B @ layer.A
    small = [for_rank(random_adapter(), 2, method=method).layers["q"] for method in (FedIT(), LoraFair(), FlexLora())]
    cut, solved, best = (float((whole - pair.B @ pair.A).norm()) for pair in small)
    assert torch.equal(small[0].A, layer.A[:2])
    assert torch.equal(small[0].B, layer.B[:, :2])
    assert torch.equal(small[1].A, layer.A[:2])
    assert best < solved < cut
    assert best == pytest.approx(float(torch.linalg.svdvals(whole)[2:].norm()), rel=1e-5)
