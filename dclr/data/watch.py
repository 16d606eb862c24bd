"""No wait for a loader's processes is without an end: of one that is killed, stopped or hangs, one line says which it was and
which shard it was at.

A worker keeps three numbers in shared memory: how often it went on to a sample, that sample, and until when it waits for a
store. The trainer looks at them once a second while it waits for a batch, and at no other time: a long step, a checkpoint or a
test of its own never counts. A thread asks for the batches, because what a worker has sent half before it was stopped keeps the
thread that reads it.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from dclr import patience
from dclr.data.workers import GLANCE, signals_blocked, stop_workers
from dclr.errors import FeedLost, WorkerLost
from dclr.patience import Interrupted, interruptible
from dclr.threads import state_of

WHEREABOUTS = ON, PLACE, UNTIL = range(3)  # how often; the sample + 1, below 0 once it is done with; time.monotonic()
START = 60.0  # seconds in which processes that have begun with no sample may start, at least
WORKERS_SAID = 3  # workers in an error, at most
STATES = {"T": "stopped by a signal", "t": "stopped by a debugger", "D": "waiting for its disk"}
MEANS: dict[int, str] = {
    signal.SIGKILL: "where memory ran out, a smaller --workers needs less",
    signal.SIGBUS: "where its shard was cut short, copy it again",
}
ELSE = "where that comes at one place again, python -m preprocess verify SET --deep tells what is wrong there"

_mine = np.zeros(len(WHEREABOUTS))


def report_to(numbers: np.ndarray) -> None:
    """In a worker: what it says of itself goes into these numbers, float64 (3,) in shared memory."""
    global _mine
    _mine = numbers
    patience.tell_waits(_waits, everywhere=True)


def at(sample: int) -> None:
    """This process goes on to a sample."""
    _mine[PLACE] = sample + 1
    _mine[ON] += 1


def done() -> None:
    """This process is done with its samples: a batch is made."""
    _mine[PLACE] = -abs(_mine[PLACE])


def _waits(seconds: float) -> None:
    _mine[UNTIL] = max(_mine[UNTIL], time.monotonic() + seconds)


def watched(loader: DataLoader[Any], numbers_W3: np.ndarray, where: Callable[[int], str], minutes: float) -> Iterator[Any]:
    """What the workers of ``loader`` make; ``where`` names the place of a sample.

    Raises:
        WorkerLost: a worker ended by itself; or for so many ``minutes`` the batch that is asked for did not come, and no worker
            went on to a sample or waited for a store, whose waits :mod:`dclr.patience` ends.
        Interrupted: a signal ended the wait.
    """
    asked, made = SimpleQueue[bool](), SimpleQueue[Any]()
    threading.Thread(target=_ask, args=(loader, asked, made), daemon=True).start()
    watch = _Watch(numbers_W3, where, 60 * minutes)
    try:
        watch.workers = watch.wait(made)
        while True:
            asked.put(True)
            batch = watch.wait(made)
            if batch is None:
                return
            yield batch
    except (Interrupted, FeedLost):  # the run ends, and its workers may wait for long
        stop_workers()
        raise
    finally:
        asked.put(False)


def _ask(loader: DataLoader[Any], asked: SimpleQueue[bool], made: SimpleQueue[Any]) -> None:
    """The workers, then a batch for each time that one is asked for, None after the last, or the error that ended it."""
    with signals_blocked():
        try:
            batches = iter(loader)
            made.put(batches._workers)  # type: ignore[attr-defined]
            while asked.get():
                made.put(next(batches, None))
        except BaseException as error:
            made.put(error)


class _Watch:
    """The trainer's look at its ``workers``, by their numbers."""

    def __init__(self, numbers_W3: np.ndarray, where: Callable[[int], str], seconds: float):
        self.workers: Sequence[BaseProcess] = ()
        self._numbers, self._where, self._most = numbers_W3, where, seconds
        self._checked = time.monotonic()

    def wait(self, made: SimpleQueue[Any]) -> Any:
        self._idle, self._before = 0.0, self._numbers[:, ON].copy()
        self._looked = time.monotonic()
        if self._looked - self._checked > GLANCE:
            self._require_alive()
        while True:
            try:
                with interruptible():
                    found = made.get(timeout=GLANCE)
            except Empty:
                self._look()
                continue
            if isinstance(found, BaseException):
                self._require_alive()  # torch notices too, and does not say which it was
                raise found
            return found

    def _look(self) -> None:
        now, on = time.monotonic(), self._numbers[:, ON].copy()
        self._idle += min(now - self._looked, 2 * GLANCE)  # this process may have been stopped itself
        self._require_alive()
        if (on != self._before).any() or now < self._numbers[:, UNTIL].max():
            self._idle, self._before = 0.0, on
        self._looked = now
        begun = self._numbers[:, PLACE].any()
        if self._idle >= (self._most if begun else max(self._most, START)):
            raise WorkerLost(self._stalled())

    def _require_alive(self) -> None:
        self._checked = time.monotonic()
        for number, worker in enumerate(self.workers):
            if code := worker.exitcode:
                how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
                raise WorkerLost(f"{self._named(number)}, {how}; {MEANS.get(-code, ELSE)}")

    def _stalled(self) -> str:
        states = {number: state_of(worker.pid) for number, worker in enumerate(self.workers) if worker.is_alive()}
        odd = [number for number, state in states.items() if state in STATES]
        busy = [number for number in states if self._numbers[number, PLACE] > 0]
        named = [
            self._named(number) + (f", {STATES[states[number]]}" if number in odd else "")
            for number in (odd or busy or list(states))[:WORKERS_SAID]
        ]
        who = "; ".join(named) or "the loader's processes do not start; is the machine busy, or its disk silent?"
        return f"no batch for {self._most / 60:g} minutes (--stall-minutes): {who}" + (f"; {ELSE}" if named and not odd else "")

    def _named(self, number: int) -> str:
        place = int(self._numbers[number, PLACE])
        at = f", {'at' if place > 0 else 'after'} {self._where(abs(place) - 1)}" if place else ""
        return f"loader worker {number} (process {self.workers[number].pid}){at}"
