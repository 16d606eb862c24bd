"""The epoch is one list: a pure function, cut the same way for any number of ranks."""

import itertools

import numpy as np
import pytest

from dclr.data import plan
from dclr.data.plan import Plan
from dclr.draws import generator
from dclr.errors import InputError

SAMPLES = np.arange(0, 500, 2)
SHARDS = SAMPLES // 10


def joined(some: Plan, steps: range, world: int = 1) -> np.ndarray:
    """(steps, batch): the global batches, put together from every rank's share."""
    return np.stack([np.concatenate([some.rows(step, rank, world)[1] for rank in range(world)]) for step in steps])


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
    assert all(len(shards) == plan.SHARDS_TOGETHER for shards in per_group)
    assert len(set(SHARDS[np.searchsorted(SAMPLES, order[:16])])) > 5


@pytest.mark.parametrize("last", plan.LAST_BATCH)
@pytest.mark.parametrize("passes", [1, 3])
def test_the_last_partial_batch_is_dropped_or_wrapped_and_counted(last: str, passes: int) -> None:
    some = Plan(SAMPLES, SHARDS, 0, 16, passes, last)
    assert some.left == 250 * passes % 16 and some.steps == 250 * passes // 16 + (last == "wrap")
    for epoch in (0, 1):
        batches = joined(some, range(epoch * some.steps, (epoch + 1) * some.steps))
        count = np.bincount(batches.ravel(), minlength=500)[SAMPLES]
        if last == "drop":
            assert count.max() == passes and (passes - count).sum() == some.left
        else:
            assert count.min() == passes and (count - passes).sum() == 16 - some.left
            np.testing.assert_array_equal(batches[-1, some.left :], batches[0, : 16 - some.left])


@pytest.mark.parametrize("world", [2, 4, 8])
def test_ranks_join_to_the_same_batches(world: int) -> None:
    some = Plan(SAMPLES, SHARDS, 0, 16, 2, "wrap")
    steps = range(3 * some.steps)
    np.testing.assert_array_equal(joined(some, steps, world), joined(some, steps))


def test_a_step_needs_none_before_it() -> None:
    whole = joined(Plan(SAMPLES, SHARDS, 0, 16, 3), range(100))
    for step in (99, 0, 45, 46, 47):
        np.testing.assert_array_equal(joined(Plan(SAMPLES, SHARDS, 0, 16, 3), range(step, step + 1))[0], whole[step])


def test_passes_are_numbered_over_the_whole_run() -> None:
    """Each (pass, sample) pair once, so each pass draws clips of its own."""
    some = Plan(SAMPLES, SHARDS, 0, 25, 3)
    pairs = [tuple(pair) for step in range(2 * some.steps) for pair in zip(*map(list, some.rows(step)), strict=True)]
    assert sorted(pairs) == list(itertools.product(range(6), SAMPLES))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_an_evaluation_counts_every_video_once(world: int) -> None:
    shares = [plan.eval_share(SAMPLES, rank, world) for rank in range(world)]
    assert sorted(np.concatenate(shares)) == list(SAMPLES)


def test_batches_that_cannot_be_made_are_refused() -> None:
    with pytest.raises(InputError, match="does not divide over 3 processes"):
        Plan(SAMPLES, SHARDS, 0, 8).rows(0, 0, 3)
    with pytest.raises(InputError, match="5 samples selected, fewer than one batch of 8"):
        Plan(SAMPLES[:5], SHARDS[:5], 0, 8)
    with pytest.raises(InputError, match="--last-batch pad: expected one of drop, wrap"):
        Plan(SAMPLES, SHARDS, 0, 8, last="pad")


def test_a_stand_in_comes_from_the_selection_and_is_always_the_same() -> None:
    some = Plan(SAMPLES, SHARDS, 0, 8)
    found = [some.instead(number, 6, attempt) for number in range(5) for attempt in (1, 2)]
    assert set(found) <= set(SAMPLES) and len(set(found)) > 5
    assert found == [some.instead(number, 6, attempt) for number in range(5) for attempt in (1, 2)]


def test_generators_differ_for_any_part_of_their_key() -> None:
    keys = [(0, 0, "a", 0), (1, 0, "a", 0), (0, 1, "a", 0), (0, 0, "b", 0), (0, 0, "a", 1), (0, 0, "a\0", 0)]
    assert len({generator(*key).random() for key in keys}) == len(keys)
    assert generator(0, 0, "a", 0).random() == generator(0, 0, "a", 0).random()


def test_draws_are_those_of_every_version() -> None:
    """Runs that were made before go on with the same bytes, so that neither the generator nor the order can change."""
    assert generator(0, 1, "a", 2).integers(0, 1000, 5).tolist() == [818, 862, 358, 995, 145]
    assert plan.epoch_order(np.arange(40), np.arange(40) // 2, 3, 1)[:8].tolist() == [27, 3, 35, 7, 2, 1, 6, 12]
    some = Plan(SAMPLES, SHARDS, 0, 8)
    assert (some.selection, some.instead(1, 6, 2)) == (548567451, 102)


def test_a_plan_is_by_default_one_pass_without_the_rest() -> None:
    some = Plan(SAMPLES, SHARDS, 0, 16)
    assert (some.steps, some.left) == (15, 10)
    assert Plan(SAMPLES, SHARDS, 0, 250).steps == 1 and Plan(SAMPLES, SHARDS, 0, 125, last="wrap").steps == 2
