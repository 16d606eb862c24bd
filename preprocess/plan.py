"""Which video goes into which shard, fixed before work starts: a pure function of the sorted list, file sizes and options.

A :class:`Job` is one shard to make, with everything that decides its bytes; its ``recipe`` is the hash of that, and a shard on
disk counts as done only if its index names the same recipe. A :class:`RunPlan` is a whole run, kept as plan.json in the set's
folder: what merge, retry and a second start need.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
import numpy as np

from dclr.cues import CUES
from dclr.data.manifest import SHARD_NAME
from dclr.errors import InputError
from dclr.parse import Rate, Whole, from_json, parsing
from dclr.record import DEFAULT_FPS, FORMAT_VERSION
from dclr.settings import flags
from dclr.storage import Folder
from preprocess.datasets import Video, VideoSet
from preprocess.pool import Lost, Pool
from preprocess.transcode import QUALITY, OpenedVideo, Options, Span, TranscodeError, stored_size

PLAN = "plan.json"
PLAN_BYTES = 1 << 30  # of it and of failures.jsonl, which name each file that is not in the set
MISSING, LEFT_OUT = "missing", "left-out"  # stages of a failure that nothing was tried for
PROBE_SECONDS = 15.0
PROBED = 32  # videos whose headers are read to learn how many output bytes a source byte gives
# Bytes a stored pixel at size 128 (benchmarks/quality.py prints bytes a frame of real clips)
BYTES_A_PIXEL = {"jpeg": 0.34, "h264": 0.05}
CUE_SHARE = 0.35  # of the frames' bytes that a cue adds whose pictures are stored as frames are
SMALL_CUE = 0.03  # bytes a stored pixel of video that a cue adds whose pictures are JPEGs of their own size
FALLBACK_RATIO = 3.5  # output bytes a source byte where no header can be read: UCF101's at size 128


@dataclass(frozen=True)
class Task:
    """One video to make a sample (or one a segment) of, under ``key``, from the ``file`` at this address of its root."""

    video: Video
    key: str
    class_name: str | None
    file: str


@dataclass(frozen=True)
class Job:
    """One shard: its ``name`` without suffix, its tasks in order (a :class:`Task` each, or what another
    :class:`preprocess.run.Work` takes), its estimated bytes, and the ``failures`` that are known before it is made."""

    name: str
    tasks: tuple[Any, ...]
    estimate: float
    recipe: str
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True)
class Failure:
    """A video or file that is not in the set: one line of failures.jsonl, with what a second try needs."""

    path: str
    stage: str  # missing, fetch, open, decode, size, span, length, timeout, crash or error; left-out: no video of the set's
    reason: str
    seconds: Rate
    labels: dict[str, Whole] = field(default_factory=dict)
    splits: tuple[str, ...] = ()
    span: Span | None = None

    def dumps(self) -> str:
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)


@dataclass(frozen=True)
class First:
    """``first`` of a :class:`RunPlan`."""

    cues: list[str]
    shards: dict[str, str]


@dataclass(frozen=True)
class RunPlan:
    """A run as plan.json keeps it. ``keep``: shards of the set that was there before (append, retry) in order; ``shards``:
    name -> recipe of those to make; ``failures``: videos that are missing; ``listed`` and ``left_out`` as in :class:`VideoSet`,
    which decide no byte of the set. ``first``: of a set that got cues later, ``cues`` and ``shards`` as it was made."""

    dataset: str
    root: str
    classes: dict[str, list[str]]
    options: dict[str, Any]
    keep: list[str]
    shards: dict[str, str]
    failures: tuple[Failure, ...]
    ratio: Rate  # output bytes a source byte that the shards were cut by
    version: int = FORMAT_VERSION
    listed: Whole = field(default=0, compare=False)
    left_out: dict[str, str] = field(default_factory=dict, compare=False)
    first: dict[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """All shards of the set, in order."""
        return [*self.keep, *self.shards]

    def dumps(self) -> str:
        table = dataclasses.asdict(self)
        if not self.first:
            del table["first"]
        return json.dumps(table, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def loads(cls, text: str | bytes, name: str = PLAN) -> RunPlan:
        """Parse and check; raises InputError naming the file."""
        with parsing(name, "a plan of this version", "remove it and start again"):
            plan = from_json(text, cls)
            if plan.version != FORMAT_VERSION or not all(SHARD_NAME.fullmatch(f"{shard}.tar") for shard in plan.names):
                raise ValueError(f"version {plan.version}, shards {plan.names[:3]}...")
            if plan.first:
                msgspec.convert(plan.first, First)
        return plan

    @classmethod
    def load(cls, folder: Folder) -> RunPlan | None:
        """The plan in a set's folder; None where there is none."""
        return (
            None if folder.size(PLAN) is None else cls.loads(folder.read_whole(PLAN, PLAN_BYTES, "a plan"), f"{folder}/{PLAN}")
        )


def options_of(plan: RunPlan) -> Options:
    """What the plan's set is made with; raises InputError where that cannot be."""
    with parsing(PLAN, "of options that a set can have", "make the set again"):
        try:
            return Options(**{name: value for name, value in plan.options.items() if name in Options.__dataclass_fields__})
        except InputError as error:
            raise InputError(f"{PLAN}: the set is made with {str(error).removeprefix('--')}; make it again") from None


def manifest_options(options: Options, source: VideoSet) -> dict[str, Any]:
    """What a set was made with, as its manifest says it."""
    return options_table(options) | {"cues": list(options.cues)} | source.options


def options_table(options: Options) -> dict[str, Any]:
    """Options by name. One that did not always exist is left out at its default, so that older sets and plans still agree."""
    later = {name: one.default for name, one in flags(Options).items() if one.said.before is not ...}
    return {name: value for name, value in dataclasses.asdict(options).items() if name not in later or value != later[name]}


def output_ratio(source: VideoSet, options: Options) -> float:
    """Estimated output bytes a source byte, from the headers of up to :data:`PROBED` evenly spaced videos (none is decoded)."""
    chosen = [source.videos[at] for at in np.unique(np.linspace(0, len(source.videos) - 1, PROBED).astype(int))]
    with Pool(partial(_probe, root=source.root, options=options), 2, PROBE_SECONDS) as pool:  # a header may hang too
        opened = [(video, source.root.address(video.path)) for video in chosen]
        probed = [sizes for sizes in pool.map(opened) if not isinstance(sizes, Lost)]
    read, written = (sum(sizes[n] for sizes in probed) for n in (0, 1))
    return written / read if read and written else FALLBACK_RATIO


def _probe(of: tuple[Video, str], root: Folder, options: Options) -> tuple[float, float]:
    """(source bytes, estimated output bytes) of a video at an address; zeros where its header cannot be read."""
    video, file = of
    try:
        with root.local(file) as path, OpenedVideo(path) as opened:
            stream, container = opened.stream, opened.container
            sar = opened.sar if options.sar == "square" else 1
            width, height = stored_size(max(stream.width, 1) * sar, max(stream.height, 1), options.size)
            seconds = float(stream.duration * stream.time_base) if stream.duration else (container.duration or 0) / 1e6
            frames = min(seconds, 1e6 if options.segment else options.max_seconds) * (options.fps or opened.fps or DEFAULT_FPS)
    except (TranscodeError, InputError, OSError, ValueError):
        return 0.0, 0.0
    return video.bytes, max(frames, 0.0) * width * height * pixel_bytes(options)


def pixel_bytes(options: Options) -> float:
    """Estimated bytes of a sample a stored pixel of video."""
    default = QUALITY[options.codec][0]
    quality = options.quality or default
    finer = 2 ** ((quality - default) / 10) if options.codec == "jpeg" else 2 ** ((default - quality) / 6)
    coarser = (128 / options.size) ** 0.5  # larger frames of the same scene are smoother
    qualities = [CUES[name].quality for name in options.cues if CUES[name].picture]
    alike, small = qualities.count(None), len(qualities) - qualities.count(None)
    share = 1 + CUE_SHARE * alike * (3 if options.codec != "jpeg" else 1)
    return BYTES_A_PIXEL[options.codec] * finer * coarser * share + SMALL_CUE * small


def jobs(source: VideoSet, keys: Sequence[str], options: Options, ratio: float, first_shard: int = 0) -> list[Job]:
    """The shards of ``source.videos``, numbered from ``first_shard``, for an :func:`output_ratio`; a video is never split over
    two."""
    kind = next(iter(source.classes), None)
    limit = options.shard_size * 1_000_000
    made: list[Job] = []
    tasks: list[Task] = []
    filled = 0.0

    def close() -> None:
        name = f"shard-{first_shard + len(made):06d}"
        made.append(Job(name, tuple(tasks), filled, recipe(name, tasks, options)))

    for video, key in zip(source.videos, keys, strict=True):
        estimate = video.bytes * ratio
        if tasks and filled + estimate > limit:
            close()
            tasks, filled = [], 0.0
        label = video.labels.get(kind) if kind else None
        name = None if kind is None or label is None else source.classes[kind][label]
        tasks.append(Task(video, key, name, source.root.address(video.path)))
        filled += estimate
    close()
    return made


def recipe(name: str, tasks: Sequence[Task], options: Options) -> str:
    """Hash of everything that decides a shard's bytes: options, and each video's path, size, span, labels, splits and key."""
    described = [dataclasses.asdict(task) for task in tasks]
    for task in described:
        del task["file"]  # where its bytes lie
    document = [name, FORMAT_VERSION, options_table(options), described]
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
