"""Random numbers that depend on a key alone: never on a worker, a rank, or what was drawn before."""

from __future__ import annotations

import hashlib

import numpy as np


def generator(*key: object) -> np.random.Generator:
    """A generator that depends on nothing but ``key``, such as (seed, epoch, sample key, clip)."""
    digest = hashlib.blake2b("\0".join(map(str, key)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))
