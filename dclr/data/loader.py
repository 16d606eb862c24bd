"""The webdataset pipeline: plan -> tar bytes -> record -> clips -> batch, as a list of named, picklable stages.

Workers split whole batches (worker w of W makes batches w, w + W, ...), and torch's DataLoader takes them in turn: the order of
batches does not depend on the number of workers. Rank and world size are passed in, because a spawned worker cannot ask
torch.distributed for them (it would answer 0 of 1, and every rank would read everything).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
import webdataset as wds
from torch.utils.data import get_worker_info

from dclr.data import plan
from dclr.data.clips import ClipConfig, eval_clips, train_clips
from dclr.data.manifest import ShardSet
from dclr.record import Record

Sample = dict[str, Any]


Row = list[tuple[int, int]]  # one batch: (pass over the set, sample index)
Records = list[tuple[int, int, Record]]  # the same, read


def _every_worker(rows: Iterator[Row]) -> Iterator[Row]:
    worker = get_worker_info()
    return islice(rows, worker.id, None, worker.num_workers) if worker else rows


@dataclass
class TrainRows(torch.utils.data.IterableDataset):
    """Stage 1, training: this worker's batches from step ``first`` to step ``last``, over as many epochs as that takes.

    An epoch is ``passes`` passes over the samples, one after another, cut into batches as one list.
    """

    samples_N: np.ndarray
    shard_N: np.ndarray
    seed: int
    batch: int
    passes: int
    rank: int
    world: int
    first: int
    last: int

    def __iter__(self) -> Iterator[Row]:
        return _every_worker(self._rows())

    def _rows(self) -> Iterator[Row]:
        steps = plan.epoch_steps(len(self.samples_N) * self.passes, self.batch, self.world)
        for epoch in range(self.first // steps, -(-self.last // steps)):
            passes = range(epoch * self.passes, (epoch + 1) * self.passes)
            orders = [plan.epoch_order(self.samples_N, self.shard_N, self.seed, number) for number in passes]
            samples = plan.rank_batches(np.concatenate(orders), self.batch, self.rank, self.world)
            numbers = plan.rank_batches(np.repeat(passes, len(self.samples_N)), self.batch, self.rank, self.world)
            for step in range(max(self.first - epoch * steps, 0), min(self.last - epoch * steps, steps)):
                yield list(zip(numbers[step].tolist(), samples[step].tolist(), strict=True))


@dataclass
class EvalRows(torch.utils.data.IterableDataset):
    """Stage 1, evaluation: this worker's videos, one a batch."""

    samples_N: np.ndarray

    def __iter__(self) -> Iterator[Row]:
        return _every_worker([(0, int(sample))] for sample in self.samples_N)


@dataclass
class ReadRecords:
    """Stage 2: rows of indices -> the records they name."""

    shards: ShardSet

    def __call__(self, rows: Iterable[Row]) -> Iterator[Records]:
        for row in rows:
            yield [(number, sample, self.shards.read(sample)) for number, sample in row]


@dataclass
class CutTrainClips:
    """Stage 3, training: records -> ``clips`` random clips each."""

    shards: ShardSet
    clip: ClipConfig
    clips: int
    seed: int
    kind: str | None

    def __call__(self, batches: Iterable[Records]) -> Iterator[list[Sample]]:
        for records in batches:
            yield [
                train_clips(record, self.clip, self.clips, self.seed, number) | named(self.shards, sample, self.kind)
                for number, sample, record in records
            ]


@dataclass
class CutEvalClips:
    """Stage 3, evaluation: records -> ``clips`` uniform centre-cropped clips each."""

    shards: ShardSet
    clip: ClipConfig
    clips: int
    kind: str | None

    def __call__(self, batches: Iterable[Records]) -> Iterator[list[Sample]]:
        for records in batches:
            yield [
                eval_clips(record, self.clip, self.clips) | named(self.shards, sample, self.kind)
                for _, sample, record in records
            ]


def named(shards: ShardSet, sample: int, kind: str | None) -> Sample:
    label = int(shards.labels[kind][sample]) if kind else -1
    return {"key": shards.keys[sample], "sample": np.array(sample), "label": np.array(label)}


def stack(batches: Iterable[list[Sample]]) -> Iterator[Sample]:
    """Stage 4: a list of samples -> one dict of tensors with the batch in front (names stay a list)."""
    for batch in batches:
        yield {
            name: [s[name] for s in batch] if name == "key" else torch.from_numpy(np.stack([s[name] for s in batch]))
            for name in batch[0]
        }


def _one_thread(worker: int) -> None:
    import cv2

    cv2.setNumThreads(0)  # a worker is one core; the pool of OpenCV would fight the others
    torch.set_num_threads(1)


def _loader(rows: torch.utils.data.IterableDataset, stages: list[Any], workers: int) -> Any:
    return wds.WebLoader(
        wds.DataPipeline(rows, *stages, stack),
        batch_size=None,
        num_workers=workers,
        worker_init_fn=_one_thread,
        multiprocessing_context="spawn" if workers else None,  # fork does not mix with CUDA, OpenCV or threads
        prefetch_factor=4 if workers else None,
    )


def train_loader(
    shards: ShardSet,
    samples_N: np.ndarray,
    clip: ClipConfig,
    *,
    clips: int,
    batch: int,
    seed: int,
    steps: tuple[int, int],
    passes: int = 1,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    kind: str | None = None,
) -> Any:
    """This rank's training batches of the global steps ``[first, last)``, epoch after epoch of ``passes`` passes.

    Each is a dict of :func:`dclr.data.clips.train_clips`' arrays as tensors with B = batch / world in front, plus
    ``key`` (list of B str), ``sample`` and ``label`` int64 (B,) (-1 without a ``kind`` of label). Raises InputError where
    ``batch`` does not divide by ``world`` or exceeds the number of samples.
    """
    plan.epoch_steps(len(samples_N) * passes, batch, world)
    rows = TrainRows(samples_N, shards.shard_N[samples_N], seed, batch, passes, rank, world, *steps)
    return _loader(rows, [ReadRecords(shards), CutTrainClips(shards, clip, clips, seed, kind)], workers)


def eval_loader(
    shards: ShardSet,
    samples_N: np.ndarray,
    clip: ClipConfig,
    *,
    clips: int,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    kind: str | None = None,
) -> Any:
    """One video a batch, every selected video exactly once over the ranks: rgb uint8 (1, clips, T, S, S, 3) and names."""
    rows = EvalRows(plan.eval_share(samples_N, rank, world))
    return _loader(rows, [ReadRecords(shards), CutEvalClips(shards, clip, clips, kind)], workers)
