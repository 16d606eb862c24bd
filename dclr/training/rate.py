"""Learning rates: pure functions of the place in a run."""

from __future__ import annotations

from collections.abc import Sequence


def learning_rate(base: float, schedule: Sequence[int], epoch: int) -> float:
    """x 0.1 at each epoch of ``schedule``."""
    return base * 0.1 ** sum(epoch >= at for at in schedule)
