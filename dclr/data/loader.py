"""The webdataset pipeline: plan -> tar bytes -> record -> clips -> batch, as a list of named, picklable stages.

Workers split whole batches (worker w of W makes batches w, w + W, ...), and torch's DataLoader takes them in turn: the order of
batches does not depend on the number of workers. Rank and world size are passed in, because a spawned worker cannot ask
torch.distributed for them (it would answer 0 of 1, and every rank would read everything).
"""

from __future__ import annotations

import math
import os
import sys
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds
from torch.utils.data import get_worker_info

from dclr.data import plan
from dclr.data.clips import CROPS, ClipConfig, eval_clips, eval_shapes, train_clips, train_shapes
from dclr.data.fetch import Arrivals, Cache, Row, fetch_ahead
from dclr.data.manifest import ShardSet
from dclr.data.plan import Plan
from dclr.errors import InputError
from dclr.hardware import keep_freed_memory
from dclr.record import FormatError, Record
from dclr.storage import RemoteFolder

Sample = dict[str, Any]
STATE = 1  # version of TrainLoader.state_dict
ON_ERROR = ("stop", "skip")
PREFETCH = 2  # batches that each worker has ready or in work
SLOTS = PREFETCH + 1  # and the one that the trainer takes over


@dataclass(frozen=True)
class Read:
    """A record of a batch: ``number`` of the pass, ``sample``, and the damaged sample that it stands in for, or -1."""

    number: int
    sample: int
    record: Record
    damaged: int = -1


Attempts = Generator[Read, None, None]  # for one place in a batch: what the plan names; when that is thrown back, a stand-in


def first_good(attempts: Attempts, cut: Callable[[Read], Sample]) -> Sample | None:
    """What ``cut`` makes of the first record whose pictures decode; None where there is none."""
    read = next(attempts, None)
    while read is not None:
        try:
            return cut(read)
        except FormatError as error:
            try:
                read = attempts.throw(error)
            except StopIteration:
                break
    return None


def _of_this_worker(every: Sequence[int]) -> Sequence[int]:
    worker = get_worker_info()
    return every[worker.id :: worker.num_workers] if worker else every


@dataclass
class TrainRows(torch.utils.data.IterableDataset):
    """Stage 1, training: this worker's rows of the rank's batches, of the steps ``first``, ``first + 1``, ... ``last - 1``."""

    plan: Plan
    rank: int
    world: int
    first: int
    last: int

    def __iter__(self) -> Iterator[Row]:
        for step in _of_this_worker(range(self.first, self.last)):
            numbers, samples = self.plan.rows(step, self.rank, self.world)
            yield list(zip(numbers.tolist(), samples.tolist(), strict=True))


@dataclass
class EvalRows(torch.utils.data.IterableDataset):
    """Stage 1, evaluation: this worker's videos, one a row."""

    samples_N: np.ndarray

    def __iter__(self) -> Iterator[Row]:
        for number in _of_this_worker(range(len(self.samples_N))):
            yield [(0, int(self.samples_N[number]))]


@dataclass
class ReadRecords:
    """Stage 2: rows of indices -> the records they name, fetched ahead where the set is behind a URL.

    A sample that cannot be read raises InputError naming it, or with ``skip`` is told on standard error, once, and replaced:
    in training by another one of the selection, drawn from (seed, pass, sample), so that no batch is short; in evaluation
    (no ``plan``) by nothing.
    """

    shards: ShardSet
    skip: bool
    plan: Plan | None = None
    cache: Cache | None = None
    told: set[int] = field(default_factory=set)

    def __call__(self, rows: Iterable[Row]) -> Iterator[list[Attempts]]:
        remote = isinstance(self.shards.root, RemoteFolder)
        for row, arrivals in fetch_ahead(self.shards, rows, self.cache) if remote else ((row, {}) for row in rows):
            yield [self._attempts(number, sample, arrivals) for number, sample in row]

    def _attempts(self, number: int, sample: int, arrivals: Arrivals) -> Attempts:
        chosen, attempt = sample, 0
        while True:
            try:
                record = self._record(chosen, arrivals)
            except InputError as error:
                damage = error
            else:
                try:
                    yield Read(number, chosen, record, sample if attempt else -1)
                    return
                except FormatError as error:  # its pictures do not decode, says :func:`first_good`
                    damage = self.shards.damage(chosen, str(error))
            if not self.skip:
                raise damage
            if chosen not in self.told:
                self.told.add(chosen)
                print(f"skipped: {damage}", file=sys.stderr)
            if self.plan is None:
                return
            attempt += 1
            if attempt > len(self.plan.samples_N):
                raise InputError(f"{self.shards.root}: none of {attempt} samples tried could be read: copy the set again")
            chosen = self.plan.instead(number, sample, attempt)

    def _record(self, sample: int, arrivals: Arrivals) -> Record:
        if sample not in arrivals:
            return self.shards.read(sample)
        data = arrivals[sample].result()[sample]
        if isinstance(data, InputError):
            raise data
        return self.shards.record(sample, data)


@dataclass(frozen=True)
class Lent:
    """Pictures of a batch that lie in shared memory: uint8 of ``shape`` from byte ``start`` of a worker's slot on."""

    worker: int
    slot: int
    start: int
    shape: tuple[int, ...]


class Pages:
    """The shared memory that batches travel in from workers: :data:`SLOTS` slots a worker, used again and again.

    A worker that sends each batch in fresh shared memory spends a fifth of its time on page faults. Here clips are cut into
    its next slot, and the loader copies that out and frees it. Where no slot is free a batch goes by value.
    """

    def __init__(self, workers: int, size: int):
        self._slots = [[torch.UntypedStorage._new_shared(size) for _ in range(SLOTS)] for _ in range(workers)]
        self._free = [torch.multiprocessing.get_context("spawn").Semaphore(SLOTS) for _ in range(workers)]
        self._used = 0  # by this worker

    def lend(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, Lent]:
        """Places for pictures of these shapes in this worker's next slot; none where it is not free, or this is no worker."""
        worker = get_worker_info()
        if worker is None or not self._free[worker.id].acquire(block=False):
            return {}
        self._used += 1
        ends = np.cumsum([math.prod(shape) for shape in shapes.values()]).tolist()
        return {
            name: Lent(worker.id, self._used % SLOTS, end - math.prod(shape), shape)
            for (name, shape), end in zip(shapes.items(), ends, strict=True)
        }

    def array(self, lent: Lent) -> np.ndarray:
        slot = torch.empty(0, dtype=torch.uint8).set_(self._slots[lent.worker][lent.slot])
        return slot.numpy()[lent.start : lent.start + math.prod(lent.shape)].reshape(lent.shape)

    def release(self, worker: int) -> None:
        """The slot that was lent first and not released yet is free again."""
        self._free[worker].release()

    def take_back(self) -> None:
        """The slot that this worker lent last is free again: no batch came of it."""
        worker = get_worker_info()
        assert worker is not None
        self._used -= 1
        self._free[worker.id].release()


@dataclass
class Cut:
    """A batch in the making: its samples, and the arrays (B, ...) that their pictures are rows of, by name."""

    pictures: dict[str, np.ndarray]
    lent: dict[str, Lent]
    samples: list[Sample] = field(default_factory=list)

    @classmethod
    def on(cls, pages: Pages | None, batch: int, shapes: dict[str, tuple[int, ...]]) -> Cut:
        """``batch`` rows of pictures of these shapes, on shared pages where that can be."""
        shapes = {name: (batch, *shape) for name, shape in shapes.items()}
        lent = pages.lend(shapes) if pages else {}
        if pages and lent:
            return cls({name: pages.array(place) for name, place in lent.items()}, lent)
        return cls({name: np.empty(shape, np.uint8) for name, shape in shapes.items()}, {})


def cut_batches(
    batches: Iterable[list[Attempts]],
    pages: Pages | None,
    shapes: dict[str, tuple[int, ...]],
    cut: Callable[[Read, dict[str, np.ndarray]], Sample],
) -> Iterator[Cut]:
    """What both kinds of cutting share. A batch of which nothing can be read (a video of an evaluation) is left out."""
    for batch in batches:
        out = Cut.on(pages, len(batch), shapes)
        for row, attempts in enumerate(batch):
            place = {name: array[row] for name, array in out.pictures.items()}
            sample = first_good(attempts, lambda read, place=place: cut(read, place))  # type: ignore[misc]
            if sample is not None:
                out.samples.append(sample)
        if out.samples:
            yield out
        elif pages and out.lent:
            pages.take_back()


@dataclass
class CutTrainClips:
    """Stage 3, training: records -> ``clips`` random clips each."""

    shards: ShardSet
    clip: ClipConfig
    clips: int
    seed: int
    kind: str | None
    pages: Pages | None = None

    def __call__(self, batches: Iterable[list[Attempts]]) -> Iterator[Cut]:
        shapes = train_shapes(self.clip, self.clips)

        def cut(read: Read, row: dict[str, np.ndarray]) -> Sample:
            clips = train_clips(read.record, self.clip, self.clips, self.seed, read.number, row)
            return clips | named(self.shards, read, self.kind)

        yield from cut_batches(batches, self.pages, shapes, cut)


@dataclass
class CutEvalClips:
    """Stage 3, evaluation: records -> ``clips`` uniform clips each, cut ``crops`` times."""

    shards: ShardSet
    clip: ClipConfig
    clips: int
    crops: int
    kind: str | None
    pages: Pages | None = None

    def __call__(self, batches: Iterable[list[Attempts]]) -> Iterator[Cut]:
        shapes = eval_shapes(self.clip, self.clips, self.crops)

        def cut(read: Read, row: dict[str, np.ndarray]) -> Sample:
            return eval_clips(read.record, self.clip, self.clips, self.crops, row) | named(self.shards, read, self.kind)

        yield from cut_batches(batches, self.pages, shapes, cut)


def named(shards: ShardSet, read: Read, kind: str | None) -> Sample:
    label = int(shards.labels[kind][read.sample]) if kind else -1
    return {"key": shards.keys[read.sample], "sample": read.sample, "label": label, "damaged": read.damaged}


def stack(batches: Iterable[Cut]) -> Iterator[Sample]:
    """Stage 4: samples -> one dict of arrays with the batch in front; keys stay a list, pictures lie where they were cut."""
    for cut in batches:
        batch: Sample = {}
        for name in cut.samples[0]:
            rows = [sample[name] for sample in cut.samples]
            batch[name] = cut.lent.get(name) or (rows if name == "key" else cut.pictures.get(name))
            if batch[name] is None:
                batch[name] = np.stack(rows)
        yield batch


def received(batch: Sample, pages: Pages | None) -> Sample:
    """A batch as tensors of this process, its slot free again."""
    lent = {name: value for name, value in batch.items() if isinstance(value, Lent)}
    if pages is not None and lent:
        batch |= {name: pages.array(value).copy() for name, value in lent.items()}
        pages.release(next(iter(lent.values())).worker)
    return {name: value if name == "key" else torch.from_numpy(value) for name, value in batch.items()}


def _one_core(worker: int) -> None:
    import cv2

    cv2.setNumThreads(0)  # a worker is one core; the pool of OpenCV would fight the others
    torch.set_num_threads(1)
    keep_freed_memory()


def _batches(
    rows: torch.utils.data.IterableDataset,
    read: ReadRecords,
    cut: CutTrainClips | CutEvalClips,
    workers: int,
    pictures: int,
) -> Iterator[Sample]:
    """What comes out of the pipeline; ``pictures`` are the bytes of them in a batch."""
    pages = Pages(workers, pictures) if workers else None
    loader = wds.WebLoader(
        wds.DataPipeline(rows, read, replace(cut, pages=pages), stack),
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=_one_core,
        multiprocessing_context="spawn" if workers else None,  # fork does not mix with CUDA, OpenCV or threads
        prefetch_factor=PREFETCH if workers else None,
    )
    for batch in loader:
        yield received(batch, pages)


def _as_it_is(batch: Sample) -> Sample:
    return batch


def open_set(place: str, on_error: str, cache: str | None, cache_size: float) -> tuple[ShardSet, Cache | None]:
    """The set that ``--shards`` names, and the cache of ``--cache`` and ``--cache-size`` (GB). With ``on_error="skip"`` a set
    with damaged shards is opened all the same, and they are told on standard error."""
    _check(None, None, on_error)
    shards = ShardSet(place, keep_damaged=on_error == "skip")
    for said in shards.damaged if os.environ.get("LOCAL_RANK", "0") == "0" else ():
        print(f"damaged: {said}", file=sys.stderr)
    kept = None if cache is None else Cache(Path(cache), int(cache_size * 1e9))
    _check(shards, kept, on_error)
    return shards, kept


def _check(shards: ShardSet | None, cache: Cache | None, on_error: str) -> None:
    if on_error not in ON_ERROR:
        raise InputError(f"--on-error {on_error}: expected one of {', '.join(ON_ERROR)}")
    if shards is not None and cache is not None and not isinstance(shards.root, RemoteFolder):
        raise InputError(f"--cache {cache.place}: {shards.root} is on this machine; leave --cache out")


class TrainLoader:
    """Training batches of one rank, epoch after epoch, that never loses its place.

    Iterating yields what is left of the current epoch; iterating again, the next one. The workers go on across epochs.
    Batch ``step`` depends on (set, selection, seed, batch, passes, last) alone: :meth:`state_dict` after any batch and
    :meth:`load_state_dict` in another process continue bit for bit, at no cost, with any number of ranks and workers
    (the joined global batches are then the same).

    A batch is a dict of :func:`dclr.data.clips.train_clips`' arrays as tensors with B = batch / world in front, plus ``key``
    (list of B str), ``sample`` and ``label`` int64 (B,) (-1 without a ``kind`` of label) and ``damaged`` int64 (B,): the sample
    that could not be read and that this one stands in for, -1 nearly always.

    Args:
        samples_N: what to train on, from :meth:`ShardSet.select`.
        clips: clips a video. batch: videos a step, over all ranks. passes: over the samples, in one epoch.
        epochs: where it ends; nothing is read ahead beyond.
        last: ``"drop"`` or ``"wrap"`` an epoch's last, partial batch.
        on_error: ``"stop"`` raises InputError for a sample that cannot be read; ``"skip"`` replaces it, :attr:`skipped` has
            those that this rank met.
    Raises:
        InputError: ``batch`` does not divide by ``world`` or exceeds the samples, or ``cache`` for a set on this machine.
    """

    def __init__(
        self,
        shards: ShardSet,
        samples_N: np.ndarray,
        clip: ClipConfig,
        *,
        clips: int,
        batch: int,
        seed: int,
        epochs: int = sys.maxsize,
        passes: int = 1,
        last: str = "drop",
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        kind: str | None = None,
        cache: Cache | None = None,
        on_error: str = "stop",
    ):
        _check(shards, cache, on_error)
        self.plan = Plan(samples_N, shards.shard_N[samples_N], seed, batch, passes, last)
        self.plan.rows(0, rank, world)
        self.step, self.epochs = 0, epochs
        self.skipped: set[int] = set()
        self._share, self._workers, self._digest = (rank, world), workers, shards.digest
        self._stages = (
            ReadRecords(shards, on_error == "skip", self.plan, cache),
            CutTrainClips(shards, clip, clips, seed, kind),
        )
        self._clip = zlib.crc32(repr((clip, clips)).encode())
        self._pictures = batch // world * sum(map(math.prod, train_shapes(clip, clips).values()))
        self._batches: Iterator[Sample] | None = None

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self.plan.steps

    def __iter__(self) -> Iterator[Sample]:
        last = min(self.epochs * len(self), sys.maxsize)
        end = min((self.step // len(self) + 1) * len(self), last)
        while self.step < end:
            if self._batches is None:
                rows = TrainRows(self.plan, *self._share, self.step, last)
                self._batches = _batches(rows, *self._stages, self._workers, self._pictures)
            batch = next(self._batches)
            self.skipped.update(batch["damaged"][batch["damaged"] >= 0].tolist())
            self.step += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Where it is: a few integers and the manifest's hash. ``step`` counts the batches that were handed out."""
        plan = self.plan
        return {
            "version": STATE, "step": self.step, "seed": plan.seed, "batch": plan.batch, "passes": plan.passes,
            "wrap": int(plan.last == "wrap"), "samples": len(plan.samples_N), "selection": plan.selection,
            "clip": self._clip, "manifest": self._digest,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the batch that ``state`` was taken after; raises InputError naming what differs, found and expected."""
        for name, expected in self.state_dict().items():
            if name != "step" and state.get(name) != expected:
                raise InputError(
                    f"the loader's state says {name} {state.get(name)!r}, expected {expected!r}: "
                    "resume with the shard set, split, batch, seed and clips that the run began with"
                )
        if not isinstance(state.get("step"), int) or state["step"] < 0:
            raise InputError(f"the loader's state says step {state.get('step')!r}, expected a number of batches")
        self.step, self._batches = state["step"], None


def eval_loader(
    shards: ShardSet,
    samples_N: np.ndarray,
    clip: ClipConfig,
    *,
    clips: int,
    crops: int = 1,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    kind: str | None = None,
    cache: Cache | None = None,
    on_error: str = "stop",
) -> Iterator[Sample]:
    """One video a batch, every selected video exactly once over the ranks: rgb uint8 (1, clips * crops, T, S, S, 3) and names.
    With ``on_error="skip"`` a video that cannot be read is left out."""
    _check(shards, cache, on_error)
    if crops not in CROPS:
        raise InputError(f"--crops {crops}: expected 1 (the middle) or 3 (along the long side)")
    rows = EvalRows(plan.eval_share(samples_N, rank, world))
    read, cut = ReadRecords(shards, on_error == "skip", None, cache), CutEvalClips(shards, clip, clips, crops, kind)
    return _batches(rows, read, cut, workers, sum(map(math.prod, eval_shapes(clip, clips, crops).values())))
