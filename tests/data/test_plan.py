"""The epoch is one list: a pure function, cut the same way for any number of ranks."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dclr.data import plan
from dclr.data.plan import Mixture, Permutations, Plan, turns, whole_parts
from dclr.draws import generator
from dclr.errors import InputError

SAMPLES = np.arange(0, 500, 2)
SHARDS = SAMPLES // 10
STREAM = Permutations(SAMPLES, SHARDS, 0)


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
    some = Plan(STREAM, 16, passes, last)
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
    some = Plan(STREAM, 16, 2, "wrap")
    steps = range(3 * some.steps)
    np.testing.assert_array_equal(joined(some, steps, world), joined(some, steps))


def test_a_step_needs_none_before_it() -> None:
    whole = joined(Plan(STREAM, 16, 3), range(100))
    for step in (99, 0, 45, 46, 47):
        np.testing.assert_array_equal(joined(Plan(STREAM, 16, 3), range(step, step + 1))[0], whole[step])


def test_passes_are_numbered_over_the_whole_run() -> None:
    """Each (pass, sample) pair once, so each pass draws clips of its own."""
    some = Plan(STREAM, 25, 3)
    pairs = [tuple(pair) for step in range(2 * some.steps) for pair in zip(*map(list, some.rows(step)), strict=True)]
    assert sorted(pairs) == list(itertools.product(range(6), SAMPLES))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_an_evaluation_counts_every_video_once(world: int) -> None:
    shares = [plan.eval_share(SAMPLES, rank, world) for rank in range(world)]
    assert sorted(np.concatenate(shares)) == list(SAMPLES)


def test_batches_that_cannot_be_made_are_refused() -> None:
    with pytest.raises(InputError, match="does not divide over 3 processes"):
        Plan(STREAM, 8).rows(0, 0, 3)
    with pytest.raises(InputError, match="5 samples selected, fewer than one batch of 8"):
        Plan(Permutations(SAMPLES[:5], SHARDS[:5], 0), 8)
    with pytest.raises(InputError, match="--last-batch pad: expected one of drop, wrap"):
        Plan(STREAM, 8, last="pad")


def test_a_stand_in_comes_from_the_selection_and_is_always_the_same() -> None:
    found = [STREAM.instead(number, 6, attempt) for number in range(5) for attempt in (1, 2)]
    assert set(found) <= set(SAMPLES) and len(set(found)) > 5
    assert found == [STREAM.instead(number, 6, attempt) for number in range(5) for attempt in (1, 2)]


def test_generators_differ_for_any_part_of_their_key() -> None:
    keys = [(0, 0, "a", 0), (1, 0, "a", 0), (0, 1, "a", 0), (0, 0, "b", 0), (0, 0, "a", 1), (0, 0, "a\0", 0)]
    assert len({generator(*key).random() for key in keys}) == len(keys)
    assert generator(0, 0, "a", 0).random() == generator(0, 0, "a", 0).random()


def test_draws_are_those_of_every_version() -> None:
    """Runs that were made before go on with the same bytes, so that neither the generator nor the order can change."""
    assert generator(0, 1, "a", 2).integers(0, 1000, 5).tolist() == [818, 862, 358, 995, 145]
    assert plan.epoch_order(np.arange(40), np.arange(40) // 2, 3, 1)[:8].tolist() == [27, 3, 35, 7, 2, 1, 6, 12]
    assert (Plan(STREAM, 8).selection, STREAM.instead(1, 6, 2)) == (548567451, 102)


def test_a_plan_is_by_default_one_pass_without_the_rest() -> None:
    some = Plan(STREAM, 16)
    assert (some.steps, some.left) == (15, 10)
    assert Plan(STREAM, 250).steps == 1 and Plan(STREAM, 125, last="wrap").steps == 2


def mixture(lengths: list[int], weights: list[float] | None = None, seed: int = 0) -> Mixture:
    """Sets of these lengths, whose samples are numbered one after another."""
    first_S = np.cumsum([0, *lengths])
    samples_S = [np.arange(first, last) for first, last in itertools.pairwise(first_S)]
    streams = tuple(Permutations(samples, samples // 10, f"{seed}, set {n}") for n, samples in enumerate(samples_S))
    return Mixture(streams, whole_parts(weights or [], lengths))


def stream(some: Plan, steps: int) -> np.ndarray:
    return joined(some, range(steps)).ravel()


LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=6)
WEIGHTS = st.lists(st.integers(1, 50).map(lambda tenths: tenths / 10), min_size=1, max_size=6)


@given(lengths=LENGTHS, weights=WEIGHTS, batch=st.integers(1, 7), last=st.sampled_from(plan.LAST_BATCH))
def test_any_first_samples_of_a_mixture_have_its_shares_to_one_sample(
    lengths: list[int], weights: list[float], batch: int, last: str
) -> None:
    """Over epochs too: nothing is dropped or seen again between them."""
    lengths = (lengths * len(weights))[: len(weights)]
    some = Plan(mixture(lengths, weights), min(batch, sum(lengths)), last=last)
    exact = [Fraction(str(weight)) for weight in weights]
    seen = stream(some, 2 * some.steps + 100 // some.batch)
    first_S = np.cumsum([0, *lengths])
    for number, weight in enumerate(exact):
        share = weight / sum(exact)
        count_n = np.cumsum((first_S[number] <= seen) & (seen < first_S[number + 1]))
        off_n = count_n * share.denominator - np.arange(1, len(seen) + 1) * share.numerator
        assert np.abs(off_n).max() < share.denominator


@given(lengths=LENGTHS)
def test_without_weights_each_round_of_all_samples_has_every_sample_once(lengths: list[int]) -> None:
    some = mixture(lengths)
    for number in range(3):
        passes, samples = some.at(number * len(some) + np.arange(len(some)))
        assert sorted(samples) == list(range(len(some))) and set(passes) == {number}


@given(lengths=LENGTHS, weights=WEIGHTS)
def test_each_set_of_a_mixture_comes_in_passes_of_its_own(lengths: list[int], weights: list[float]) -> None:
    """Its next pass begins when each of its samples was seen, whatever the others do."""
    lengths = (lengths * len(weights))[: len(weights)]
    some = mixture(lengths, weights)
    passes, samples = some.at(np.arange(150))
    for one in some.streams:
        here = np.isin(samples, one.samples_N)
        expected = one.at(np.arange(here.sum()))
        np.testing.assert_array_equal((passes[here], samples[here]), expected)
        for number, whole in enumerate(np.split(samples[here], range(len(one), here.sum(), len(one)))[:-1]):
            assert sorted(whole) == list(one.samples_N) and number in passes[here]


def test_sets_of_one_length_have_orders_of_their_own() -> None:
    some = mixture([100, 100])
    _, samples = some.at(np.arange(200))
    assert (samples[samples < 100] != samples[samples >= 100] - 100).mean() > 0.9
    assert (samples != mixture([100, 100], seed=1).at(np.arange(200))[1]).mean() > 0.9


@given(lengths=LENGTHS, weights=WEIGHTS, world=st.sampled_from([2, 3, 4]), step=st.integers(0, 10**9))
def test_ranks_join_to_the_batches_of_a_mixture_at_any_step(
    lengths: list[int], weights: list[float], world: int, step: int
) -> None:
    lengths = [12 * length for length in (lengths * len(weights))[: len(weights)]]
    one, other = (Plan(mixture(lengths, weights), 12) for _ in range(2))
    whole = joined(one, range(step, step + 3))
    np.testing.assert_array_equal(joined(other, range(step + 2, step + 3), world)[0], whole[2])


def test_an_epoch_of_a_mixture_has_as_many_samples_as_all_sets() -> None:
    down, up = (Plan(mixture([30, 23], [0.5, 0.5]), 8, last=last) for last in plan.LAST_BATCH)
    assert (down.steps, up.steps, down.left, up.left) == (6, 7, 0, 0)
    assert Plan(mixture([30, 23]), 8, passes=2).steps == 13
    np.testing.assert_array_equal(stream(down, 21), stream(up, 21))  # what an epoch is changes nothing of the order


def test_a_stand_in_is_of_the_set_of_the_damaged_sample() -> None:
    some = mixture([50, 30, 20])
    for sample, of in ((0, range(50)), (49, range(50)), (50, range(50, 80)), (99, range(80, 100))):
        assert {some.instead(number, sample, 1) for number in range(20)} <= set(of)


def test_weights_become_whole_parts_or_are_refused() -> None:
    assert whole_parts([0.7, 0.3], [5, 5]) == (7, 3) and whole_parts([1, 1e-3], [5, 5]) == (1000, 1)
    assert whole_parts([2, 1, 1], [5, 5, 5]) == (2, 1, 1) and whole_parts([], [240, 60]) == (4, 1)
    for weights, lengths in (([0.5], [5, 5]), ([0.5, 0.5, 0.5], [5, 5]), ([0.5, 0.0], [5, 5])):
        with pytest.raises(InputError, match=r"--weights 0.5.*: expected a number above 0 for each set of --shards.* 2"):
            whole_parts(weights, lengths)
    with pytest.raises(InputError, match=r"--weights 0.1234567 0.8765433: expected numbers with fewer digits"):
        whole_parts([0.1234567, 0.8765433], [5, 5])


def test_turns_are_those_of_every_version() -> None:
    """A run that mixes sets goes on with the same bytes."""
    assert "".join(map(str, turns([7, 3]))) == "0010010001"
    assert "".join(map(str, turns([5, 3, 1, 1]))) == "0101020103"
    assert mixture([30, 20]).at(np.arange(8))[1].tolist() == [27, 46, 19, 8, 40, 5, 43, 14]
