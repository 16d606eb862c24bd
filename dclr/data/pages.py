"""How batches travel from a worker to the trainer: pictures in shared memory that is used again, the rest by value.

A worker that sends each batch in fresh shared memory spends a fifth of its time on page faults. Here a worker cuts clips into a
slot of its own shared memory. The trainer copies the slot out and frees it. Where no slot is free the batch is sent by value.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import get_worker_info

from dclr.data.watch import WHEREABOUTS, done
from dclr.errors import InputError

Sample = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]

PREFETCH = 2  # batches that each worker has ready or in work
SLOTS = PREFETCH + 1  # and the one that the trainer takes over


@dataclass(frozen=True)
class Lent:
    """Pictures of a batch that lie in shared memory: uint8 of ``shape`` from byte ``start`` of a worker's slot on."""

    worker: int
    slot: int
    start: int
    shape: tuple[int, ...]


class Pages:
    """:data:`SLOTS` slots of ``size`` bytes for each worker, made before the workers start and sent to them, behind the numbers
    of :mod:`dclr.data.watch`. All are one piece of memory, because a process is started with few open files.

    A worker takes its slots in turn, one for a batch; batches of one worker arrive in order, so the slot that :meth:`release`
    frees is always the one that it takes next.

    Raises InputError where the machine has no shared memory, or no place for semaphores.
    """

    def __init__(self, workers: int, size: int):
        self._size, self._first = size, workers * 8 * len(WHEREABOUTS)
        try:
            self._memory = _shared(self._first + workers * SLOTS * size)
            self._free = [torch.multiprocessing.get_context("spawn").Semaphore(SLOTS) for _ in range(workers)]
        except (RuntimeError, OSError) as error:
            why = str(error).splitlines()[0]
            way_out = "mount /dev/shm, or give more open files (ulimit -n) or --workers 0"
            raise InputError(f"--workers {workers}: no shared memory ({why}): {way_out}") from None
        self._used = 0  # by this worker

    def lend(self, shapes: Shapes) -> dict[str, Lent]:
        """Places for pictures of these shapes in this worker's next slot; none where it is in use, or outside of a worker."""
        worker = get_worker_info()
        if worker is None or not self._free[worker.id].acquire(block=False):
            return {}
        self._used += 1
        places, start = {}, 0
        for name, shape in shapes.items():
            places[name] = Lent(worker.id, self._used % SLOTS, start, shape)
            start += math.prod(shape)
        return places

    def _bytes(self) -> np.ndarray:
        return torch.empty(0, dtype=torch.uint8).set_(self._memory).numpy()

    def numbers(self) -> np.ndarray:
        """What workers say of themselves, float64 (workers, 3)."""
        return self._bytes()[: self._first].view(np.float64).reshape(-1, len(WHEREABOUTS))

    def array(self, lent: Lent) -> np.ndarray:
        start = self._first + (lent.worker * SLOTS + lent.slot) * self._size + lent.start
        every = self._bytes()
        return every[start : start + math.prod(lent.shape)].reshape(lent.shape)

    def release(self, worker: int) -> None:
        """The oldest of a worker's lent slots is free again."""
        self._free[worker].release()

    def take_back(self, worker: int) -> None:
        """In the worker: free the slot that it lent last, because no batch came of it."""
        self._used -= 1
        self._free[worker].release()


def _shared(size: int) -> torch.UntypedStorage:
    """Memory that processes started later share. None of it lies in /dev/shm, which is small in a container: a write to a page
    for which that has no room is SIGBUS, and ends the process."""
    file = os.memfd_create("dclr-pages")
    try:
        os.ftruncate(file, size)
        return torch.UntypedStorage._new_shared_fd_cpu(file, size)  # type: ignore[attr-defined]  # it keeps a copy of the number
    finally:
        os.close(file)


@dataclass
class Cut:
    """A batch in the making: its samples, and the arrays (B, ...) by name that their pictures are rows of."""

    pictures: dict[str, np.ndarray]
    lent: dict[str, Lent]
    samples: list[Sample] = field(default_factory=list)

    @classmethod
    def on(cls, pages: Pages | None, batch: int, shapes: Shapes) -> Cut:
        """``batch`` rows of pictures of these shapes, on shared pages where that can be."""
        shapes = {name: (batch, *shape) for name, shape in shapes.items()}
        lent = pages.lend(shapes) if pages else {}
        if pages and lent:
            return cls({name: pages.array(place) for name, place in lent.items()}, lent)
        return cls({name: np.empty(shape, np.uint8) for name, shape in shapes.items()}, {})


def stack(batches: Iterable[Cut]) -> Iterator[Sample]:
    """Stage 4: samples -> one dict of arrays with the batch in front; keys stay a list, pictures lie where they were cut."""
    for cut in batches:
        made = {
            name: [sample[name] for sample in cut.samples] if name == "key" else np.stack([s[name] for s in cut.samples])
            for name in cut.samples[0]
            if name not in cut.pictures
        } | (cut.lent or cut.pictures)
        done()
        yield made


def received(batch: Sample, pages: Pages | None) -> Sample:
    """A batch as tensors of this process; frees its slot."""
    lent = {name: value for name, value in batch.items() if isinstance(value, Lent)}
    if pages is not None and lent:
        batch |= {name: pages.array(value).copy() for name, value in lent.items()}
        pages.release(next(iter(lent.values())).worker)
    return {name: value if name == "key" else torch.from_numpy(value) for name, value in batch.items()}
