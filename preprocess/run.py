"""Many videos -> one shard set, on worker processes of this machine.

Which video goes into which shard is fixed before work starts, from the sorted list alone; workers only transcode, and their
results are written in that order. So the same input and options give the same bytes on any number of workers.
"""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dclr.data.manifest import FAILURES, MANIFEST, Manifest, Shard
from dclr.errors import InputError, make_folder
from dclr.record import pack
from preprocess.datasets import Source, Video, sample_keys
from preprocess.transcode import TranscodeError, transcode
from preprocess.write import ShardWriter, write_manifest

BYTES_A_SOURCE_BYTE = 3.5  # measured at quality 90: 3.5 on UCF101 at size 128, 2.4 and 1.2 on the embedded set at 64 and 32


@dataclass(frozen=True)
class Options:
    """What decides a set's bytes, kept in its manifest: stored short ``size`` in pixels, JPEG ``quality``, and how many
    estimated megabytes (10**6) go into a shard."""

    size: int = 128
    quality: int = 90
    shard_size: int = 256

    def __post_init__(self) -> None:
        for name, least, most in (("size", 16, 1024), ("quality", 1, 100), ("shard_size", 1, 100_000)):
            if not least <= getattr(self, name) <= most:
                flag = name.replace("_", "-")
                raise InputError(f"--{flag} {getattr(self, name)}: expected {least} to {most}")


@dataclass(frozen=True)
class Failure:
    """A video that is not in the set: one line of failures.jsonl."""

    path: str
    stage: str  # missing, open, decode, size or error
    reason: str
    seconds: float


@dataclass(frozen=True)
class Summary:
    """What came of it: the manifest, every failure, files on disk that no list names."""

    manifest: Manifest
    failures: list[Failure]
    unlisted: int


@dataclass(frozen=True)
class Sample:
    """A finished video: its tar bytes and number of frames."""

    data: bytes
    frames: int


def shard_of(source: Source, options: Options) -> list[int]:
    """The shard number of every video, from the sorted list and its file sizes alone."""
    limit, filled, number, numbers = options.shard_size * 1_000_000, 0.0, 0, []
    for video in source.videos:
        estimate = (source.root / video.path).stat().st_size * BYTES_A_SOURCE_BYTE * (options.size / 128) ** 0.7
        if filled and filled + estimate > limit:
            number, filled = number + 1, 0.0
        filled += estimate
        numbers.append(number)
    return numbers


def make_sample(root: Path, video: Video, key: str, class_name: str | None, options: Options) -> Sample | Failure:
    """One video to one sample; what goes wrong with it is returned, not raised (this runs in a worker)."""
    began = time.perf_counter()
    try:
        done = transcode(root / video.path, options.size, options.quality)
    except TranscodeError as error:
        return Failure(video.path, error.stage, str(error), round(time.perf_counter() - began, 3))
    except Exception as error:  # whatever a hostile file makes a library raise costs that one video
        return Failure(video.path, "error", f"{type(error).__name__}: {error}", round(time.perf_counter() - began, 3))
    meta: dict[str, Any] = {
        "video": video.path,
        "label": next(iter(video.labels.values()), None),
        "labels": video.labels,
        "class": class_name,
        "splits": list(video.splits),
        "fps": done.fps,
        "width": done.width,
        "height": done.height,
        "source": {"path": video.path, "width": done.source_width, "height": done.source_height},
    }
    return Sample(pack(key, done.frames, done.differences, done.energy_N, meta), len(done.frames))


def _in_order(pool: ProcessPoolExecutor, tasks: Iterable[tuple[Any, ...]], ahead: int) -> Iterator[Sample | Failure]:
    """Results in task order with at most ``ahead`` of them in memory."""
    waiting: deque[Future[Sample | Failure]] = deque()
    for task in tasks:
        waiting.append(pool.submit(make_sample, *task))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def check_out(out: Path) -> None:
    """Make the folder of the set; raises InputError where it cannot be made or holds a finished set."""
    make_folder(out)
    if (out / MANIFEST).exists():
        raise InputError(f"--out {out}: a finished shard set is there already; name another folder or remove it")


def build(source: Source, out: Path, options: Options, workers: int, limit: int | None = None) -> Summary:
    """Write the set to ``out`` and say what came of it; raises InputError where ``out`` holds a finished set already or no
    video could be used. A video that fails costs itself, not the run."""
    check_out(out)
    for pattern in ("shard-*.tar", "shard-*.jsonl", ".*.tmp"):  # without a manifest: what a killed run left
        for leftover in out.glob(pattern):
            leftover.unlink()
    videos, keys, shard_numbers = source.videos, sample_keys([v.path for v in source.videos]), shard_of(source, options)
    if limit is not None:
        videos, keys, shard_numbers = videos[:limit], keys[:limit], shard_numbers[:limit]
    kind = next(iter(source.classes), None)
    names = [source.classes[kind][video.labels[kind]] if kind else None for video in videos]
    failures = [Failure(v.path, "missing", "in the lists, not on disk", 0.0) for v in source.missing]
    shards: list[Shard | None] = []
    splits, frames = Counter[str](), 0
    with (
        ProcessPoolExecutor(workers, get_context("spawn")) as pool,
        (out / FAILURES).open("w", encoding="utf-8") as log,
        tqdm(total=len(videos), desc="transcoding", unit="video") as bar,
    ):
        for failure in failures:
            _log(log, failure)
        tasks = ((source.root, video, key, name, options) for video, key, name in zip(videos, keys, names, strict=True))
        results = _in_order(pool, tasks, 4 * workers)
        writer, current = None, -1
        try:
            for video, key, number, result in zip(videos, keys, shard_numbers, results, strict=True):
                if number != current:
                    shards += [writer.close()] if writer else []
                    writer, current = ShardWriter(out, f"shard-{number:06d}.tar"), number
                if isinstance(result, Failure):
                    failures.append(result)
                    _log(log, result)
                else:
                    assert writer is not None
                    writer.add(key, result.data, video, result.frames)
                    splits.update(video.splits)
                    frames += result.frames
                bar.update()
                elapsed = bar.format_dict["elapsed"] or 1
                bar.set_postfix(
                    {"frames/s": f"{frames / elapsed:.0f}", "failed": len(failures) - len(source.missing)}, refresh=False
                )
            shards += [writer.close()] if writer else []
        except BaseException:
            if writer:
                writer.abandon()
            raise
    written = [shard for shard in shards if shard]
    if not written:
        first = failures[len(source.missing)]
        raise InputError(f"none of the {len(videos)} videos could be transcoded; {first.path}: {first.reason}")
    made_with = asdict(options) | source.options | ({} if limit is None else {"limit": limit})
    by_stage = dict(sorted(Counter(failure.stage for failure in failures).items()))
    manifest = Manifest(source.name, tuple(written), dict(sorted(splits.items())), source.classes, made_with, by_stage)
    write_manifest(out, manifest)
    return Summary(manifest, failures, source.unlisted)


def _log(file: Any, failure: Failure) -> None:
    file.write(json.dumps(asdict(failure), ensure_ascii=False) + "\n")
    file.flush()
