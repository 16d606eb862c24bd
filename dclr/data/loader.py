"""The webdataset pipeline: plan -> tar bytes -> record -> clips -> batch, as a list of named, picklable stages.

Each worker makes whole batches: worker w of W makes batches w, w + W, and so on. torch's DataLoader takes one of each worker in
turn, so the order of batches does not depend on the number of workers. Rank and world size are arguments: a spawned worker that
asked torch.distributed would be told rank 0 of 1, and every rank would read everything.
"""

from __future__ import annotations

import math
import os
import sys
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import webdataset as wds
from torch.utils.data import get_worker_info

from dclr import distributed
from dclr.data import plan, watch
from dclr.data.clips import CROPS, ClipConfig, eval_clips, eval_shapes, train_clips, train_shapes
from dclr.data.config import ON_ERROR, STALL
from dclr.data.fetch import Arrivals, Cache, Row, fetch_ahead
from dclr.data.manifest import MANIFEST, ShardSet
from dclr.data.pages import PREFETCH, Cut, Pages, Sample, Shapes, received, stack
from dclr.data.plan import Mixture, Permutations, Plan, whole_parts
from dclr.data.workers import start_worker, worker_context
from dclr.errors import InputError
from dclr.patience import MINUTES, interruptible
from dclr.record import FormatError, Record
from dclr.storage import open_folder
from dclr.text import plain

STATE = 1  # version of TrainLoader.state_dict
S = TypeVar("S", int, str)


@dataclass(frozen=True)
class Read:
    """A record of a batch: the ``number`` of its pass, its ``sample``, and the ``damaged`` sample that it replaces, or -1."""

    number: int
    sample: int
    record: Record
    damaged: int = -1


Attempts = Generator[Read, None, None]  # for one place in a batch: what the plan names; when that is thrown back, a stand-in


def _of_this_worker(every: Sequence[int]) -> Sequence[int]:
    worker = get_worker_info()
    return every[worker.id :: worker.num_workers] if worker else every


@dataclass
class TrainRows(torch.utils.data.IterableDataset):
    """Stage 1, training: the rows of this worker, which are the rank's shares of its batches among the steps ``first`` to
    ``last - 1``."""

    plan: Plan
    rank: int
    world: int
    first: int
    last: int

    def __iter__(self) -> Iterator[Row]:
        for step in _of_this_worker(range(self.first, self.last)):
            numbers, samples = self.plan.rows(step, self.rank, self.world)
            yield list(zip(numbers.tolist(), samples.tolist(), strict=True))


@dataclass(frozen=True)
class Beside:
    """What an evaluation has beside the RGB clips of its videos.

    Attributes:
        names: of the pictures that :func:`dclr.data.clips.eval_clips` makes, beside rgb.
        seed: what they are drawn from.
        partner: sample -> the sample that lends it its background. Pictures of ground are of this one.
    """

    names: tuple[str, ...] = ()
    seed: int = 0
    partner: Mapping[int, int] = field(default_factory=dict)


RGB_ALONE = Beside()


@dataclass
class EvalRows(torch.utils.data.IterableDataset):
    """Stage 1, evaluation: this worker's videos, one a row, as number 0; number 1 is its partner where it has one."""

    samples_N: np.ndarray
    partner: Mapping[int, int]

    def __iter__(self) -> Iterator[Row]:
        for place in _of_this_worker(range(len(self.samples_N))):
            sample = int(self.samples_N[place])
            yield [(0, sample), *([(1, self.partner[sample])] if sample in self.partner else [])]


@dataclass
class ReadRecords:
    """Stage 2: rows of indices -> the records that they name. Behind a URL they are fetched ahead of their use.

    A sample that cannot be read raises InputError with its name. With ``skip`` it is named on standard error, once. In training
    another sample of the selection, drawn from (seed, pass, sample), replaces it, so that no batch is short. In evaluation
    (``plan`` None) it is left out.
    """

    shards: ShardSet
    skip: bool
    plan: Plan | None = None
    cache: Cache | None = None
    told: set[int] = field(default_factory=set)

    def __call__(self, rows: Iterable[Row]) -> Iterator[list[Attempts]]:
        for row, arrivals in fetch_ahead(self.shards, rows, self.cache) if self.shards.remote else ((row, {}) for row in rows):
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
                except FormatError as error:  # its pictures do not decode, says :class:`CutClips`
                    damage = self.shards.damage(chosen, str(error))
            if not self.skip:
                raise damage
            if chosen not in self.told:
                self.told.add(chosen)
                print(f"skipped: {damage}", file=sys.stderr)
            if self.plan is None:
                return
            attempt += 1
            if attempt > len(self.plan.source):
                raise InputError(f"{self.shards}: none of {attempt} samples tried could be read: copy the set again")
            chosen = self.plan.source.instead(number, sample, attempt)

    def _record(self, sample: int, arrivals: Arrivals) -> Record:
        watch.at(sample)
        if sample not in arrivals:
            return self.shards.read(sample)
        data = arrivals[sample].result()[sample]
        if isinstance(data, InputError):
            raise data
        return self.shards.record(sample, data)


@dataclass
class CutClips:
    """Stage 3: records -> clips. ``make`` cuts the clips of a record into its row of the batch's pictures. A batch of an
    evaluation with a damaged record is left out."""

    shards: ShardSet
    kind: str | None
    shapes: Shapes
    make: Callable[..., Sample]
    pages: Pages | None = None

    def __call__(self, batches: Iterable[list[Attempts]]) -> Iterator[Cut]:
        for batch in batches:
            cut = Cut.on(self.pages, len(batch), self.shapes)
            for row, attempts in enumerate(batch):
                sample = self._first_good(attempts, {name: array[row] for name, array in cut.pictures.items()})
                if sample is not None:
                    cut.samples.append(sample)
            if len(cut.samples) == len(batch):
                yield cut
            elif self.pages and cut.lent:
                self.pages.take_back(next(iter(cut.lent.values())).worker)

    def _first_good(self, attempts: Attempts, pictures: dict[str, np.ndarray]) -> Sample | None:
        read = next(attempts, None)
        while read is not None:
            try:
                return self.make(read.record, epoch=read.number, pictures=pictures) | self._names(read)
            except FormatError as error:  # a picture does not decode
                try:
                    read = attempts.throw(error)
                except StopIteration:
                    break
        return None

    def _names(self, read: Read) -> Sample:
        label = int(self.shards.labels[self.kind][read.sample]) if self.kind else -1
        key, video = self.shards.keys[read.sample], self.shards.video_N[read.sample]  # of several sets, unlike the record's
        return {"key": key, "sample": read.sample, "label": label, "damaged": read.damaged, "video": video}


def _eval_clips(record: Record, epoch: int, names: Sequence[str], **how: Any) -> Sample:
    """The clips of an evaluation, the same each time: of a video all but its background, of its partner (1) that."""
    own = ("rgb", "moving", "ground") if epoch else [name for name in names if name != "ground"]
    return eval_clips(record, names=own, **how)


def _batches(
    rows: torch.utils.data.IterableDataset, read: ReadRecords, cut: CutClips, batch: int, workers: int, stall_minutes: float
) -> Iterator[Sample]:
    """The batches of the pipeline, ``batch`` samples each. Raises Interrupted where a signal ends the wait for one, and
    WorkerLost as :func:`dclr.data.watch.watched`."""
    pages = Pages(workers, batch * sum(math.prod(shape) for shape in cut.shapes.values())) if workers else None
    loader = torch.utils.data.DataLoader(
        wds.DataPipeline(rows, read, replace(cut, pages=pages), stack),
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=partial(start_worker, dict(os.environ), pages),
        multiprocessing_context=worker_context() if workers else None,
        prefetch_factor=PREFETCH if workers else None,
        generator=torch.Generator(),  # or it would draw from torch's own, whose state checkpoints keep
    )
    for made in watch.watched(loader, pages.numbers(), cut.shards.place, stall_minutes) if pages else _in_this_process(loader):
        yield received(made, pages)


def _in_this_process(loader: torch.utils.data.DataLoader) -> Iterator[Any]:
    batches = iter(loader)
    while True:
        with interruptible():
            made = next(batches, None)
        if made is None:
            return
        yield made


def _as_it_is(batch: Any) -> Any:
    return batch


def open_sets(
    places: Sequence[str], on_error: str, cache: str | None, cache_size: float, patience: float = MINUTES
) -> tuple[list[ShardSet], Cache | None]:
    """Open the sets that ``--shards`` names, and the cache that ``--cache`` and ``--cache-size`` (GB) name, None without one.
    Stores that do not answer are waited for ``patience`` minutes, now and by loaders.

    With ``on_error="skip"`` a set with damaged shards is opened all the same; they are named on standard error."""
    _check(on_error)
    sets = [ShardSet(open_folder(place, patience), keep_damaged=on_error == "skip") for place in places]
    for said in [said for shards in sets for said in shards.damaged] if os.environ.get("LOCAL_RANK", "0") == "0" else ():
        print(f"damaged: {said}", file=sys.stderr)
    for shards in (one for one in sets if one.remote):
        shards.root.read(MANIFEST, 0, 1)  # a server without byte ranges is named now, not at the first batch
    kept = None if cache is None else Cache(Path(cache), int(cache_size * 1e9))
    _check(on_error, kept, *sets)
    return sets, kept


def _check(on_error: str, cache: Cache | None = None, *sets: ShardSet) -> None:
    if on_error not in ON_ERROR:
        raise InputError(f"--on-error {on_error}: expected one of {', '.join(ON_ERROR)}")
    if cache is not None and sets and not any(shards.remote for shards in sets):
        where = f"{', '.join(map(str, sets))} {'is' if len(sets) == 1 else 'are'}"
        raise InputError(f"--cache {cache.place}: {where} on this machine; leave --cache out")


class TrainLoader:
    """Training batches of one rank, epoch after epoch, from any place on.

    Iterating yields the rest of the current epoch. Iterating again yields the next epoch. The workers live across epochs.

    Batch ``step`` depends on (sets, selection, weights, seed, batch, passes, last) alone. So :meth:`state_dict` after any
    batch, and :meth:`load_state_dict` in another process, continue bit for bit at no cost. The number of ranks and workers may
    change: the joined global batches stay the same.

    A batch is a dict of :func:`dclr.data.clips.train_clips`' arrays as tensors with B = batch / world in front, plus ``key``
    (list of B str), ``sample`` and ``label`` int64 (B,) (-1 without a ``kind`` of label) and ``damaged`` int64 (B,): the sample
    that could not be read and that this one replaces, else -1.

    Args:
        shards: a set, or several as a :class:`dclr.data.sets.JoinedSets`.
        samples_N: what to train on, from :meth:`ShardSet.select`; of several sets from :meth:`ShardSet.numbers`.
        clips: clips a video. batch: videos a step, over all ranks. passes: over the samples, in one epoch.
        epochs: the loader ends after so many, and reads nothing ahead beyond them.
        last: ``"drop"`` or ``"wrap"`` an epoch's last, partial batch.
        weights: of several sets, the share of each in what is seen, in any unit; without them as they have samples.
        on_error: ``"stop"`` raises InputError for a sample that cannot be read. ``"skip"`` replaces it, and :attr:`skipped`
            has those that this rank met.
        stall_minutes: for how long a worker may not go on to another sample.
    Raises:
        InputError: ``batch`` does not divide by ``world``, it or ``world`` exceeds the samples, or ``cache`` for a set on this
            machine.
        WorkerLost: in an iteration: a worker was killed, or hangs (:mod:`dclr.data.watch`).
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
        weights: Sequence[float] = (),
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        kind: str | None = None,
        cache: Cache | None = None,
        on_error: str = "stop",
        stall_minutes: float = STALL,
    ):
        _check(on_error, cache, shards)
        if world > len(samples_N) * passes:
            raise InputError(
                f"{world} processes and {len(samples_N) * passes} samples selected: each process takes part in every batch, so "
                "start fewer processes or choose more splits"
            )
        self.plan = Plan(_source(shards, samples_N, seed, weights), batch, passes, last)
        self.plan.rows(0, rank, world)
        self.step, self.epochs = 0, epochs
        self.skipped: set[int] = set()
        self._share, self._workers, self._digest, self._seed = (rank, world), workers, shards.digest, seed
        self._stall_minutes = stall_minutes
        self._stages = (
            ReadRecords(shards, on_error == "skip", self.plan, cache),
            CutClips(shards, kind, train_shapes(clip, clips), partial(train_clips, clip=clip, clips=clips, seed=seed)),
        )
        said = repr((clip, clips))
        for later in ("cross_cuts", "clip_fps"):  # so that states of before them stay good
            said = said.replace(f", {later}={getattr(clip, later)}", "")
        said += "" if clip.cross_cuts or not shards.cuts_N[samples_N].any() else " within shots"
        said += "" if clip.clip_fps is None else f" at {clip.clip_fps} a second"
        self._clip = zlib.crc32(said.encode())
        self._batches: Iterator[Sample] | None = None
        if workers:
            worker_context()  # so that its server may be ready when the first batch is asked for

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self.plan.steps

    def __iter__(self) -> Iterator[Sample]:
        last = min(self.epochs * len(self), sys.maxsize)
        end = min((self.step // len(self) + 1) * len(self), last)
        while self.step < end:
            if self._batches is None:
                rows = TrainRows(self.plan, *self._share, self.step, last)
                share = self.plan.batch // self._share[1]
                self._batches = _batches(rows, *self._stages, share, self._workers, self._stall_minutes)
            batch = next(self._batches)
            self.skipped.update(batch["damaged"][batch["damaged"] >= 0].tolist())
            self.step += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Its place: a few integers and the manifest's hash. ``step`` is the number of batches that were handed out."""
        plan = self.plan
        return {
            "version": STATE, "step": self.step, "seed": self._seed, "batch": plan.batch, "passes": plan.passes,
            "wrap": int(plan.last == "wrap"), "samples": len(plan.source), "selection": plan.selection,
            "clip": self._clip, "manifest": self._digest,
        } | ({"parts": list(plan.source.parts)} if plan.source.parts else {})  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the batch after which ``state`` was taken. Raises InputError with what was found and what expected."""
        for name, expected in self.state_dict().items():
            if name != "step" and state.get(name) != expected:
                raise InputError(
                    f"the loader's state says {name} {plain(repr(state.get(name)), 80)}, expected {expected!r}: "
                    "resume with the sets, weights, split, batch, seed and clips that the run began with"
                )
        if type(state.get("step")) is not int or state["step"] < 0:
            raise InputError(f"the loader's state says step {plain(repr(state.get('step')), 80)}, expected a number of batches")
        self.step, self._batches = state["step"], None


def _source(shards: ShardSet, samples_N: np.ndarray, seed: int, weights: Sequence[float]) -> Permutations | Mixture:
    """The samples of a set, or of several in turns, pass after pass."""
    set_N = np.searchsorted(shards.first_S, samples_N, side="right") - 1
    of_S = [samples_N[set_N == number] for number in range(len(shards.roots))]
    for root, of in zip(shards.roots, of_S, strict=True):
        if not len(of):
            raise InputError(f"no sample of {root} is selected: choose more splits, or leave the set out")
    parts = whole_parts(weights, [len(of) for of in of_S])
    if len(parts) == 1:
        return Permutations(samples_N, shards.shard_N[samples_N], seed)
    return Mixture(tuple(Permutations(of, shards.shard_N[of], f"{seed}, set {n}") for n, of in enumerate(of_S)), parts)


def eval_loader(
    shards: ShardSet,
    samples_N: np.ndarray,
    clip: ClipConfig,
    *,
    clips: int,
    crops: int = 1,
    beside: Beside = RGB_ALONE,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    kind: str | None = None,
    cache: Cache | None = None,
    on_error: str = "stop",
    stall_minutes: float = STALL,
) -> Iterator[Sample]:
    """Evaluation batches of one rank, one video each; every selected video comes once over all ranks.

    A batch has ``rgb`` uint8 (1, clips * crops, T, S, S, 3), ``key``, ``sample`` and ``label``, and the pictures that
    ``beside`` names. Of a video that has a partner it has two rows. Row 1 is the partner's, and ``ground`` is there alone. With
    ``on_error="skip"`` a video that cannot be read, or whose partner cannot, is left out."""
    _check(on_error, cache, shards)
    if crops not in CROPS:
        raise InputError(f"--crops {crops}: expected 1 (the middle) or 3 (along the long side)")
    rows, names = EvalRows(plan.eval_share(samples_N, rank, world), beside.partner), ("rgb", *beside.names)
    make = partial(_eval_clips, clip=clip, clips=clips, crops=crops, names=names, seed=beside.seed)
    cut = CutClips(shards, kind, eval_shapes(clip, clips, crops, names), make)
    read = ReadRecords(shards, on_error == "skip", None, cache)
    return _batches(rows, read, cut, 1 + bool(beside.partner), workers, stall_minutes)


def all_skipped(skipped: set[S], samples: int, percent: float) -> set[S]:
    """The samples, by number or key, that some rank could not read so far. All ranks must call this at the same step.

    Raises InputError on every rank, so that none ends before the others, where they are more than ``percent`` of
    ``samples``."""
    found = {sample for part in distributed.joined_objects(sorted(skipped)) for sample in part}
    if len(found) > samples * percent / 100:
        raise InputError(
            f"{len(found)} of {samples} videos could not be read, more than --max-skipped {percent:g} percent: "
            "python -m preprocess verify names the faults; copy those shards again"
        )
    return found
