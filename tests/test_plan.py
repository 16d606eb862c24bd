"""The epoch is one list: a pure function, cut the same way for any number of ranks."""

import numpy as np
import pytest

from dclr.data import plan
from dclr.errors import InputError

SAMPLES = np.arange(0, 500, 2)
SHARDS = SAMPLES // 10


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_every_sample_exactly_once_an_epoch(epoch: int) -> None:
    assert sorted(plan.epoch_order(SAMPLES, SHARDS, 3, epoch)) == list(SAMPLES)


def test_the_order_depends_on_seed_and_epoch_and_nothing_else() -> None:
    first = plan.epoch_order(SAMPLES, SHARDS, 3, 0)
    np.testing.assert_array_equal(first, plan.epoch_order(SAMPLES, SHARDS, 3, 0))
    for seed, epoch in ((3, 1), (4, 0)):
        assert (first != plan.epoch_order(SAMPLES, SHARDS, seed, epoch)).mean() > 0.9


def test_samples_are_shuffled_across_shards_within_a_group() -> None:
    order = plan.epoch_order(SAMPLES, SHARDS, 0, 0)
    per_group = [set(SHARDS[np.searchsorted(SAMPLES, order[i : i + 80])]) for i in range(0, 240, 80)]
    assert all(len(shards) == plan.GROUP for shards in per_group)
    assert len(set(SHARDS[np.searchsorted(SAMPLES, order[:16])])) > 5


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_join_to_the_same_batches(world: int) -> None:
    order = plan.epoch_order(SAMPLES, SHARDS, 0, 0)
    shares = [plan.rank_batches(order, 16, rank, world) for rank in range(world)]
    assert all(len(share) == 250 // 16 for share in shares)
    np.testing.assert_array_equal(np.concatenate(shares, axis=1), plan.rank_batches(order, 16, 0, 1))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_an_evaluation_counts_every_video_once(world: int) -> None:
    shares = [plan.eval_share(SAMPLES, rank, world) for rank in range(world)]
    assert sorted(np.concatenate(shares)) == list(SAMPLES)


def test_batches_that_cannot_be_made_are_refused() -> None:
    with pytest.raises(InputError, match="does not divide over 3 processes"):
        plan.epoch_steps(100, 8, 3)
    with pytest.raises(InputError, match="5 samples selected, fewer than one batch of 8"):
        plan.epoch_steps(5, 8, 1)


def test_generators_differ_for_any_part_of_their_key() -> None:
    keys = [(0, 0, "a", 0), (1, 0, "a", 0), (0, 1, "a", 0), (0, 0, "b", 0), (0, 0, "a", 1), (0, 0, "a\0", 0)]
    assert len({plan.generator(*key).random() for key in keys}) == len(keys)
    assert plan.generator(0, 0, "a", 0).random() == plan.generator(0, 0, "a", 0).random()
