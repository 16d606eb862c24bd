"""Worker processes for work that may hang or crash. Such a task is lost; the run goes on.

The pool of concurrent.futures breaks as a whole when one worker dies, and cannot stop a worker that hangs. Here each worker has
a pipe of its own. One that dies, or whose task takes too long and is killed, is replaced.
"""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from dclr.errors import Unreachable
from dclr.patience import tell_waits

T = TypeVar("T")
R = TypeVar("R")

LOOK = 1.0  # seconds between two looks at the time that tasks take
RECYCLE = 2000  # tasks of a worker before a new one takes its place: what libraries leak stays bounded


@dataclass(frozen=True)
class Lost:
    """A task without a result: ``stage`` is ``crash`` or ``timeout``."""

    stage: str
    reason: str
    seconds: float


@dataclass(frozen=True)
class Waits:
    """What a worker says before it waits for a store: that time is not the task's."""

    seconds: float


def _serve(function: Callable[[Any], Any], pipe: Connection) -> None:
    """A worker's life: tasks in, results out, until the parent closes its end or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    tell_waits(lambda seconds: pipe.send(Waits(seconds)))
    try:
        while True:
            task = pipe.recv()
            try:
                result = function(task)
            except Unreachable as error:
                result = error
            pipe.send(result)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


class _Worker:
    """A process, its pipe, and the task it has."""

    def __init__(self, function: Callable[[Any], Any]):
        context = get_context("spawn")  # fork deadlocks FFmpeg
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(function, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self.task: int | None = None
        self.began = 0.0
        self.done = 0

    def give(self, number: int, task: object) -> None:
        self.task, self.began = number, time.monotonic()
        with suppress(OSError):  # it died while it waited: reading its answer says so
            self.pipe.send(task)

    def stop(self) -> str:
        """Kill it if it lives and say how it ended."""
        self.pipe.close()
        self._process.join(0.2)
        self._process.kill()
        self._process.join()
        code = self._process.exitcode or 0
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"exit code {code}"
        self._process.close()
        return name


class Pool(Generic[T, R]):
    """``workers`` processes that compute ``function``; tasks over ``timeout`` seconds are killed. A context manager."""

    def __init__(self, function: Callable[[T], R], workers: int, timeout: float):
        self._function, self._count, self._timeout = function, workers, timeout
        self._workers: list[_Worker] = []

    def __enter__(self) -> Pool[T, R]:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.pipe.close()  # those that wait end by themselves while the others are being stopped
        for worker in self._workers:
            worker.stop()
        self._workers = []

    def map(self, tasks: Iterable[T]) -> Iterator[R | Lost]:
        """Results in the order of ``tasks``, with at most four a worker waiting for their turn. Raises Unreachable where a task
        does: the others would too."""
        source = iter(enumerate(tasks))
        results: dict[int, R | Lost] = {}
        order: deque[int] = deque()
        while True:
            while len(order) < 4 * self._count and (worker := self._idle()) is not None:
                number, task = next(source, (None, None))
                if number is None:
                    break
                order.append(number)
                worker.give(number, task)
            if not order:
                return
            while order and order[0] in results:
                yield results.pop(order.popleft())
            if any(worker.task is not None for worker in self._workers) and not (order and order[0] in results):
                results |= self._collect()

    def _idle(self) -> _Worker | None:
        for worker in self._workers:
            if worker.task is None:
                if worker.done < RECYCLE:
                    return worker
                self._drop(worker)
                break
        if len(self._workers) < self._count:
            self._workers.append(_Worker(self._function))
            return self._workers[-1]
        return None

    def _drop(self, worker: _Worker) -> str:
        self._workers.remove(worker)
        return worker.stop()

    def _collect(self) -> dict[int, R | Lost]:
        """Wait a moment for the next thing to happen: results, deaths, tasks out of time."""
        busy = {worker.pipe: worker for worker in self._workers if worker.task is not None}
        nearest, now = min(worker.began for worker in busy.values()) + self._timeout, time.monotonic()
        pause = min(LOOK, max(0.0, nearest - now))
        ready = wait(list(busy), pause)
        if (lost := time.monotonic() - now - pause) > LOOK:  # this process was stopped, as a suspended job is, or had no core
            for worker in busy.values():
                worker.began += lost
        out: dict[int, R | Lost] = {}
        for pipe in ready:
            worker = busy.pop(pipe)  # type: ignore[call-overload]
            assert worker.task is not None
            try:
                result = worker.pipe.recv()
                if isinstance(result, Unreachable):
                    raise result
                if isinstance(result, Waits):
                    worker.began += result.seconds
                    continue
                out[worker.task] = result
                worker.task, worker.done = None, worker.done + 1
            except (EOFError, OSError):
                seconds = time.monotonic() - worker.began
                out[worker.task] = Lost("crash", f"the process died with {self._drop(worker)}", seconds)
        for worker in busy.values():
            seconds = time.monotonic() - worker.began
            if seconds >= self._timeout:
                assert worker.task is not None
                self._drop(worker)
                out[worker.task] = Lost("timeout", f"not done after {self._timeout:g} seconds", seconds)
        return out
