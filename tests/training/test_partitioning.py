"""Who holds which examples: every example at exactly one client, whatever the scheme."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlora.common.errors import DataError
from fedlora.training.partitioning import (
    Partition,
    client_names,
    members,
    partition_by_group,
    partition_by_size,
    partition_dirichlet,
    partition_iid,
    partition_label_shards,
)

few_examples = settings(derandomize=True, max_examples=30, deadline=None)


def labels_of(num_examples: int, num_labels: int) -> np.ndarray:
    return np.random.default_rng(num_examples).integers(0, num_labels, num_examples)


def assert_every_example_once(partition: Partition, num_examples: int) -> None:
    assert sorted(np.concatenate(list(partition.values())).tolist()) == list(range(num_examples))
    assert all(len(rows) and np.all(np.diff(rows) > 0) for rows in partition.values())
    assert list(partition) == sorted(partition)


@given(num_clients=st.integers(1, 12), extra=st.integers(0, 40), seed=st.integers(0, 9))
@few_examples
def test_iid_deals_every_example_to_one_client_in_parts_that_differ_by_one(
    num_clients: int, extra: int, seed: int
) -> None:
    partition = partition_iid(num_clients + extra, num_clients=num_clients, random=np.random.default_rng(seed))

    assert_every_example_once(partition, num_clients + extra)
    sizes = [len(rows) for rows in partition.values()]
    assert max(sizes) - min(sizes) <= 1


@given(num_clients=st.integers(1, 12), alpha=st.sampled_from([1e-300, 0.01, 0.3, 1.0, 1e6]), seed=st.integers(0, 9))
@few_examples
def test_dirichlet_deals_every_example_to_one_client_unless_a_client_is_left_without(
    num_clients: int, alpha: float, seed: int
) -> None:
    labels = labels_of(100, 7)
    try:
        partition = partition_dirichlet(
            labels, num_clients=num_clients, alpha=alpha, random=np.random.default_rng(seed)
        )
    except DataError:
        return  # a client is left without examples, as a test below expects
    assert_every_example_once(partition, 100)


@given(num_clients=st.integers(1, 6), shards=st.integers(1, 4), extra=st.integers(0, 30), seed=st.integers(0, 9))
@few_examples
def test_label_shards_deal_every_example_to_one_client(num_clients: int, shards: int, extra: int, seed: int) -> None:
    labels = labels_of(num_clients * shards + extra, 5)

    partition = partition_label_shards(
        labels, num_clients=num_clients, shards_per_client=shards, random=np.random.default_rng(seed)
    )

    assert_every_example_once(partition, len(labels))


@given(groups=st.lists(st.sampled_from(["en", "de", "fr"]), min_size=1))
@few_examples
def test_by_group_gives_one_client_for_each_group(groups: list[str]) -> None:
    partition = partition_by_group(np.array(groups))

    assert_every_example_once(partition, len(groups))
    assert partition.keys() == set(groups)
    assert all({groups[row] for row in rows} == {name} for name, rows in partition.items())


def test_a_large_alpha_gives_all_clients_the_same_mixture_and_a_small_one_few_labels() -> None:
    labels = np.repeat(np.arange(4), 100)

    def mixtures(alpha: float) -> np.ndarray:
        partition = partition_dirichlet(labels, num_clients=4, alpha=alpha, random=np.random.default_rng(3))
        return np.array([np.bincount(labels[rows], minlength=4) for rows in partition.values()])

    assert np.all(np.abs(mixtures(1e6) - 25) <= 1)
    assert mixtures(0.1).max() > 80


def test_two_shards_of_sorted_labels_hold_few_labels() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 20))

    partition = partition_label_shards(labels, num_clients=10, shards_per_client=2, random=np.random.default_rng(1))

    assert all(len(np.unique(labels[rows])) <= 2 for rows in partition.values())


def test_the_same_generator_gives_the_same_partition_and_another_one_another() -> None:
    def first_client(seed: int) -> list[int]:
        return partition_iid(50, num_clients=5, random=np.random.default_rng(seed))["client-1"].tolist()

    assert first_client(0) == first_client(0) != first_client(1)


def test_client_names_sort_in_the_order_of_their_numbers() -> None:
    assert client_names(3) == ["client-1", "client-2", "client-3"]
    assert client_names(12)[0] == "client-01"
    assert client_names(120) == sorted(client_names(120))


def test_members_are_the_ascending_indices_of_each_value_in_sorted_order() -> None:
    assert [rows.tolist() for rows in members(np.array(["b", "a", "b"]))] == [[1], [0, 2]]
    assert members(np.empty(0, np.int64)) == []


def test_a_client_left_without_examples_is_named_with_what_to_change() -> None:
    message = r"client-\d of 5 gets none of the 40 training examples; raise partition.alpha \(1e-09\)"
    with pytest.raises(DataError, match=message):
        partition_dirichlet(labels_of(40, 3), num_clients=5, alpha=1e-9, random=np.random.default_rng(0))


def test_more_clients_or_shards_than_examples_are_refused() -> None:
    random = np.random.default_rng(0)
    with pytest.raises(DataError, match=r"9 clients for 4 training examples; lower partition.num_clients to 4 or less"):
        partition_iid(4, num_clients=9, random=random)
    with pytest.raises(DataError, match="3 clients x 2 shards for 4 training examples"):
        partition_label_shards(labels_of(4, 2), num_clients=3, shards_per_client=2, random=random)


def test_by_group_without_groups_suggests_iid() -> None:
    with pytest.raises(DataError, match=r'have no groups.*or set partition.by = "iid"'):
        partition_by_group(np.array(["", ""]))


@given(num_clients=st.integers(1, 12), extra=st.integers(0, 40), alpha=st.floats(0.01, 100), seed=st.integers(0, 9))
@few_examples
def test_by_size_deals_every_example_to_one_client_and_leaves_none_without(
    num_clients: int, extra: int, alpha: float, seed: int
) -> None:
    partition = partition_by_size(
        num_clients + extra, num_clients=num_clients, alpha=alpha, random=np.random.default_rng(seed)
    )

    assert len(partition) == num_clients
    assert_every_example_once(partition, num_clients + extra)


def test_by_size_a_small_alpha_gives_most_to_few_and_a_large_one_to_all_as_many() -> None:
    def sizes(alpha: float) -> list[int]:
        partition = partition_by_size(10_000, num_clients=8, alpha=alpha, random=np.random.default_rng(1))
        return sorted(len(rows) for rows in partition.values())

    assert sum(sizes(0.1)[-2:]) > 7_000
    assert 1_200 < sizes(1e5)[0] <= sizes(1e5)[-1] < 1_300


def test_by_size_the_generator_decides_who_holds_what() -> None:
    def deal(seed: int) -> list[list[int]]:
        partition = partition_by_size(30, num_clients=4, alpha=1.0, random=np.random.default_rng(seed))
        return [rows.tolist() for rows in partition.values()]

    assert deal(0) == deal(0) != deal(1)
    with pytest.raises(DataError, match=r"5 clients for 4 training examples; lower partition.num_clients to 4 or less"):
        partition_by_size(4, num_clients=5, alpha=1.0, random=np.random.default_rng(0))
