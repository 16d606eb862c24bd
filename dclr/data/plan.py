"""Which rank reads which samples at which step: a pure function of (selection, seed, epoch, global batch).

A set is a stream of its samples, pass after pass (:class:`Permutations`); several sets take turns in one (:class:`Mixture`).
An epoch is a piece of that stream, as one list, cut into global batches (:class:`Plan`). Rank r of n takes the r-th of n equal
slices of every batch, so each rank has the same number of steps by construction and the joined batch is the same for any n.
Nothing here is kept between steps: step 1,000,000 is as quick to find as step 0, which is what makes resuming exact and free.
"""

from __future__ import annotations

import heapq
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property

import numpy as np

from dclr.draws import generator
from dclr.errors import InputError

SHARDS_TOGETHER = 16  # shards whose samples are shuffled together
LAST_BATCH = ("drop", "wrap")  # what becomes of an epoch's last, partial global batch
MOST_PARTS = 1_000_000  # that weights may come to: turns are found one by one, a microsecond each


def epoch_order(samples_N: np.ndarray, shard_N: np.ndarray, seed: int | str, epoch: int) -> np.ndarray:
    """The samples in the order of this epoch: shards shuffled, then samples within groups of
    :data:`SHARDS_TOGETHER` shards.

    Args:
        samples_N: int64 (N,), indices into the set. shard_N: int64 (N,), the shard each of them lies in.
    Returns:
        A permutation of ``samples_N``, int64 (N,), the same for any number of ranks and workers.
    """
    rng = generator("order", seed, epoch)
    shards = np.unique(shard_N)
    place = np.empty(int(shards.max()) + 1, np.int64)
    place[rng.permutation(shards)] = np.arange(len(shards)) // SHARDS_TOGETHER
    by = rng.random(len(samples_N))
    by += place[shard_N]
    return samples_N[np.argsort(by)]


@dataclass(frozen=True, eq=False)
class Permutations:
    """The selected samples of a set, pass after pass without an end, each pass in an order of its own.

    Args:
        samples_N, shard_N: int64 (N,), as :func:`epoch_order` takes them.
    """

    samples_N: np.ndarray
    shard_N: np.ndarray
    seed: int | str
    _orders: dict[int, np.ndarray] = field(init=False, repr=False, default_factory=dict)
    parts = ()  # it is whole
    endless = False  # each epoch begins a pass

    def __len__(self) -> int:
        return len(self.samples_N)

    def at(self, place_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What comes at these places: two int64 (n,), the number of the pass and the sample."""
        passes = place_n // len(self)
        samples = np.empty(len(place_n), np.int64)
        for number in np.unique(passes):
            here = passes == number
            samples[here] = self._order(int(number))[place_n[here] % len(self)]
        return passes, samples

    def _order(self, number: int) -> np.ndarray:
        if number not in self._orders:
            while len(self._orders) > 1:  # a batch touches one pass, or two
                del self._orders[next(iter(self._orders))]
            self._orders[number] = epoch_order(self.samples_N, self.shard_N, self.seed, number)
        return self._orders[number]

    def instead(self, number: int, sample: int, attempt: int) -> int:
        """The sample that replaces a damaged one, drawn from (seed, pass, sample, attempt) alone."""
        return int(generator("instead", self.seed, number, sample, attempt).choice(self.samples_N))


def whole_parts(weights: Sequence[float], lengths: Sequence[int]) -> tuple[int, ...]:
    """How many turns in each round a set has, by the weights of all or, without these, by their lengths: the smallest integers
    in the same proportion. Raises InputError for weights that do not fit.

    >>> whole_parts([0.7, 0.3], lengths=[9, 9]), whole_parts([], lengths=[300, 200])
    ((7, 3), (3, 2))
    """
    if weights and (len(weights) != len(lengths) or min(weights) <= 0):
        raise InputError(
            f"--weights {' '.join(map(str, weights))}: expected a number above 0 for each set of --shards, which names "
            f"{len(lengths)}"
        )
    exact = [Fraction(str(weight)) for weight in weights or lengths]
    unit = math.lcm(*(share.denominator for share in exact))
    whole = [int(share * unit) for share in exact]
    parts = tuple(part // math.gcd(*whole) for part in whole)
    if weights and sum(parts) > MOST_PARTS:
        raise InputError(f"--weights {' '.join(map(str, weights))}: expected numbers with fewer digits, such as 0.7 0.3")
    return parts


def turns(parts: Sequence[int]) -> np.ndarray:
    """Whose turn it is in a round of P = sum(parts) turns, of which set s has ``parts[s]``: int64 (P,).

    Of the first n turns, over rounds without end, set s has less than one more and less than one fewer than n * parts[s] / P.
    Its turn number t, from 0, lies in the interval from t P / parts[s] to (t + 1) P / parts[s], rounded outwards; of the sets
    whose interval has begun the one is next whose interval ends first (proportionate fairness: Baruah et al., Algorithmica
    1996).

    >>> turns([3, 2]).tolist()
    [0, 1, 0, 0, 1]
    """
    total = sum(parts)
    begins = [(0, number, 0) for number in range(len(parts))]
    ends: list[tuple[int, int, int]] = []
    found = np.empty(total, np.int64)
    for turn in range(total):
        while begins and begins[0][0] <= turn:
            _, number, t = heapq.heappop(begins)
            heapq.heappush(ends, (-(-(t + 1) * total // parts[number]), number, t))
        _, number, t = heapq.heappop(ends)
        found[turn] = number
        heapq.heappush(begins, ((t + 1) * total // parts[number], number, t + 1))
    return found


@dataclass(frozen=True, eq=False)
class Mixture:
    """Several sets in one stream without an end: ``parts[s]`` of each sum(parts) samples are the next ones of set s, which are
    spread evenly (:func:`turns`). A set of which more than its samples are asked for goes on with its next pass.

    Args:
        streams: one a set; each has larger numbers of samples than those before it.
    """

    streams: tuple[Permutations, ...]
    parts: tuple[int, ...]
    endless = True  # each epoch begins where the one before it ended

    def __len__(self) -> int:
        return sum(map(len, self.streams))

    @cached_property
    def samples_N(self) -> np.ndarray:
        return np.concatenate([stream.samples_N for stream in self.streams])

    @cached_property
    def _round(self) -> tuple[np.ndarray, np.ndarray]:
        """The set whose turn it is, and how many turns of the same round it had before: two int64 (P,)."""
        set_P, before_P = turns(self.parts), np.empty(sum(self.parts), np.int64)
        before_P[np.argsort(set_P, kind="stable")] = np.concatenate([np.arange(part) for part in self.parts])
        return set_P, before_P

    def at(self, place_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What comes at these places: two int64 (n,), the number of the pass over its set and the sample."""
        set_P, before_P = self._round
        rounds, turn = np.divmod(place_n, len(set_P))
        passes, samples = np.empty(len(place_n), np.int64), np.empty(len(place_n), np.int64)
        for number, (stream, part) in enumerate(zip(self.streams, self.parts, strict=True)):
            here = set_P[turn] == number
            passes[here], samples[here] = stream.at(rounds[here] * part + before_P[turn[here]])
        return passes, samples

    def instead(self, number: int, sample: int, attempt: int) -> int:
        """The sample of the same set that replaces a damaged one, as in :meth:`Permutations.instead`."""
        stream = next(one for one in self.streams if sample <= one.samples_N.max())
        return stream.instead(number, sample, attempt)


@dataclass(frozen=True, eq=False)
class Plan:
    """Every global batch of a run.

    An epoch has as many samples as ``passes`` passes over all of ``source``, as one list, cut into global batches of ``batch``.
    The last partial one is dropped, or filled up from the epoch's beginning (``last`` of ``"wrap"``). Several sets have no such
    rest: the next epoch goes on where the last batch ended, and ``last`` says whether the number of batches is rounded down or
    up.

    Raises:
        InputError: fewer samples than a batch, or an unknown ``last``.
    """

    source: Permutations | Mixture
    batch: int
    passes: int = 1
    last: str = "drop"

    def __post_init__(self) -> None:
        if self.last not in LAST_BATCH:
            raise InputError(f"--last-batch {self.last}: expected one of {', '.join(LAST_BATCH)}")
        if self._listed < self.batch:
            raise InputError(
                f"{self._listed} samples selected, fewer than one batch of {self.batch}: choose a smaller -b or more splits"
            )

    @property
    def _listed(self) -> int:
        return len(self.source) * self.passes

    @property
    def steps(self) -> int:
        """Global batches in an epoch."""
        return self._listed // self.batch + (self.last == "wrap" and self._listed % self.batch > 0)

    @property
    def left(self) -> int:
        """Samples of an epoch's list in the last, partial global batch."""
        return 0 if self.source.endless else self._listed % self.batch

    @property
    def selection(self) -> int:
        """crc32 of the selected samples. Together with the manifest's hash it names the selection."""
        return zlib.crc32(self.source.samples_N.astype("<i8").tobytes())

    def rows(self, step: int, rank: int = 0, world: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """The share of ``rank`` in global batch ``step``, counted over all epochs: two int64 (batch / world,), the number of
        the pass over the set and the sample. Raises InputError where the batch does not divide over the ranks.

        >>> samples = np.arange(8)
        >>> plan = Plan(Permutations(samples, np.zeros(8, np.int64), seed=0), batch=4)
        >>> whole, half = plan.rows(step=1)[1], plan.rows(step=1, rank=1, world=2)[1]
        >>> plan.steps, whole[2:].tolist() == half.tolist()
        (2, True)
        """
        if self.batch % world:
            raise InputError(
                f"a global batch of {self.batch} does not divide over {world} processes: choose a multiple of {world}"
            )
        epoch, within = divmod(step, self.steps)
        share = self.batch // world
        length = self.steps * self.batch if self.source.endless else self._listed
        place_n = (within * self.batch + rank * share + np.arange(share)) % length
        return self.source.at(epoch * length + place_n)


def eval_share(samples_N: np.ndarray, rank: int, world: int) -> np.ndarray:
    """The samples of ``rank`` in an evaluation. The ranks share all samples, each once; they may differ by one sample.

    >>> [eval_share(np.arange(5), rank, world=2).tolist() for rank in range(2)]
    [[0, 2, 4], [1, 3]]
    """
    return samples_N[rank::world]
