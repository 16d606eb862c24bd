"""Signals that end a training: after the step it is in, with a checkpoint."""

from __future__ import annotations

import os
import signal
import time

from dclr import patience
from dclr.errors import AGAIN

PREEMPTED = AGAIN  # exit code after a signal
ONE_SIGNAL = 5.0  # seconds in which signals are one: torchrun sends on to its ranks what Slurm has sent them already


class Preemption:
    """SIGTERM or SIGINT ends the run after the step it is in, or at once where it waits for data, with a checkpoint; one that
    comes more than :data:`ONE_SIGNAL` after the first ends it without one."""

    def __init__(self) -> None:
        self.asked, self._since = False, 0.0

    def __enter__(self) -> Preemption:
        patience.begin()
        self._before = {number: signal.signal(number, self._caught) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        if not self.asked:  # else the same signal may still come again, while the process ends
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def _caught(self, number: int, _: object) -> None:
        if not self.asked:
            self.asked, self._since = True, time.monotonic()
            patience.interrupt()
        elif time.monotonic() - self._since > ONE_SIGNAL:
            os._exit(PREEMPTED)
