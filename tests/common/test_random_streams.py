"""Random numbers that depend on their purpose alone."""

import itertools

import numpy as np

from fedlora.common.random_streams import stream, stream_seed


def test_a_stream_is_the_same_on_every_machine() -> None:
    # The first 63 bits of sha256("7/3/é/batches").
    assert stream_seed(7, purpose="batches", round=3, client="é") == 1127388923042397631


def test_streams_differ_in_seed_round_client_and_purpose() -> None:
    names = itertools.product((0, 1, 11), (0, 1, 11), ("", "1", "a", "a/b", "1/a"), ("cohort", "batches"))
    seeds = [stream_seed(seed, purpose=purpose, round=round, client=client) for seed, round, client, purpose in names]
    assert len(set(seeds)) == len(seeds)


def test_seeds_fit_where_torch_and_numpy_take_them() -> None:
    seeds = [stream_seed(seed, purpose="x") for seed in (*range(1000), 2**70)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62


def test_a_stream_leaves_the_global_state_alone() -> None:
    before = np.random.get_state()[1].copy()  # type: ignore[index]
    first, again = (stream(0, purpose="x").integers(0, 1000, 5) for _ in range(2))
    assert (first == again).all()
    assert (np.random.get_state()[1] == before).all()  # type: ignore[index]
