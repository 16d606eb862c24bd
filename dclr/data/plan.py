"""Who reads what, when: a pure function of (selection, seed, epoch, global batch). No clock, no worker, no rank decides.

The epoch is one list of samples, cut into global batches; rank r of n takes the r-th of n equal slices of every batch, so each
rank has the same number of steps by construction and the joined batch is the same for any n.
"""

from __future__ import annotations

import hashlib

import numpy as np

from dclr.errors import InputError

GROUP = 16  # shards whose samples are shuffled together: what a reader of whole shards must hold


def generator(*key: object) -> np.random.Generator:
    """A generator that depends on nothing but ``key``, such as (seed, epoch, sample key, clip)."""
    digest = hashlib.blake2b("\0".join(map(str, key)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


def epoch_order(samples_N: np.ndarray, shard_N: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """The samples in the order of this epoch: shards shuffled, then samples within each group of :data:`GROUP` shards.

    Args:
        samples_N: int64 (N,), indices into the set. shard_N: int64 (N,), the shard each of them lies in.
    Returns:
        A permutation of ``samples_N``, int64 (N,), the same for any number of ranks and workers.
    """
    rng = generator("order", seed, epoch)
    shards = np.unique(shard_N)
    place = np.empty(int(shards.max()) + 1, np.int64)
    place[rng.permutation(shards)] = np.arange(len(shards)) // GROUP
    return samples_N[np.lexsort((rng.random(len(samples_N)), place[shard_N]))]


def epoch_steps(samples: int, batch: int, world: int) -> int:
    """Global batches in an epoch (the last partial one is dropped); raises InputError where a batch cannot be made."""
    if batch % world:
        raise InputError(f"a global batch of {batch} does not divide over {world} processes: choose a multiple of {world}")
    if samples < batch:
        raise InputError(f"{samples} samples selected, fewer than one batch of {batch}: choose a smaller -b or more splits")
    return samples // batch


def rank_batches(order_N: np.ndarray, batch: int, rank: int, world: int) -> np.ndarray:
    """Rank's share of every global batch: int64 (steps, batch / world), rows in step order."""
    steps = epoch_steps(len(order_N), batch, world)
    return order_N[: steps * batch].reshape(steps, world, batch // world)[:, rank]


def eval_share(samples_N: np.ndarray, rank: int, world: int) -> np.ndarray:
    """Rank's samples of an evaluation: disjoint over ranks, complete, no padding; ranks may differ by one sample."""
    return samples_N[rank::world]
