"""Which rank reads which samples at which step: a pure function of (selection, seed, epoch, global batch).

The epoch is one list of samples, cut into global batches; rank r of n takes the r-th of n equal slices of every batch, so each
rank has the same number of steps by construction and the joined batch is the same for any n. Nothing here is kept between
steps: step 1,000,000 is as quick to find as step 0, which is what makes resuming exact and free.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from dclr.draws import generator
from dclr.errors import InputError

SHARDS_TOGETHER = 16  # shards whose samples are shuffled together
LAST_BATCH = ("drop", "wrap")  # what becomes of an epoch's last, partial global batch


def epoch_order(samples_N: np.ndarray, shard_N: np.ndarray, seed: int, epoch: int) -> np.ndarray:
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
class Plan:
    """Every global batch of a run.

    An epoch is ``passes`` passes over the N selected samples, one after another as one list, cut into global batches of
    ``batch``. The last partial one is dropped, or filled up from the epoch's beginning (``last`` of ``"wrap"``).

    Args:
        samples_N, shard_N: int64 (N,), as :func:`epoch_order` takes them.
    Raises:
        InputError: fewer samples than a batch, or an unknown ``last``.
    """

    samples_N: np.ndarray
    shard_N: np.ndarray
    seed: int
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
        return len(self.samples_N) * self.passes

    @property
    def steps(self) -> int:
        """Global batches in an epoch."""
        return self._listed // self.batch + (self.last == "wrap" and self.left > 0)

    @property
    def left(self) -> int:
        """Samples of an epoch's list in the last, partial global batch."""
        return self._listed % self.batch

    @property
    def selection(self) -> int:
        """crc32 of the selected samples. Together with the manifest's hash it names the selection."""
        return zlib.crc32(self.samples_N.astype("<i8").tobytes())

    def rows(self, step: int, rank: int = 0, world: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """The share of ``rank`` in global batch ``step``, counted over all epochs: two int64 (batch / world,), the number of
        the pass over the set and the sample. Raises InputError where the batch does not divide over the ranks.

        >>> samples = np.arange(8)
        >>> plan = Plan(samples, np.zeros(8, np.int64), seed=0, batch=4)
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
        place = (within * self.batch + rank * share + np.arange(share)) % self._listed
        passes = epoch * self.passes + place // len(self.samples_N)
        samples = np.empty(share, np.int64)
        for number in np.unique(passes):
            here = passes == number
            samples[here] = self._order(int(number))[place[here] % len(self.samples_N)]
        return passes, samples

    @lru_cache(maxsize=4)  # noqa: B019  a batch touches one pass, or two
    def _order(self, number: int) -> np.ndarray:
        return epoch_order(self.samples_N, self.shard_N, self.seed, number)

    def instead(self, number: int, sample: int, attempt: int) -> int:
        """The sample that replaces a damaged one, drawn from (seed, pass, sample, attempt) alone."""
        return int(generator("instead", self.seed, number, sample, attempt).choice(self.samples_N))


def eval_share(samples_N: np.ndarray, rank: int, world: int) -> np.ndarray:
    """The samples of ``rank`` in an evaluation. The ranks share all samples, each once; they may differ by one sample.

    >>> [eval_share(np.arange(5), rank, world=2).tolist() for rank in range(2)]
    [[0, 2, 4], [1, 3]]
    """
    return samples_N[rank::world]
