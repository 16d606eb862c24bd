"""Does the loader keep up? ``python benchmarks/loader.py [--data DIR]``, with ``pip install -e '.[bench]'`` for the peers.

One clip is 16 frames at stride 2, randomly cropped to 112x112 uint8, two a video, with the same draws everywhere. Alternating
rounds, medians with the spread:

- memory: decode + crop alone, one process on one core, shards in memory (the limit);
- one worker / two workers: our loader end to end, the parent on the other core / sharing both;
- stock: ``webdataset.WebDataset(...).shuffle().map()`` with the same cutting, one worker, on the same shards;
- PyAV, decord, torchcodec, OpenCV: the same clips from the source videos, one thread, one core, a file opened for two clips.

Then H.264 against JPEG shards, the cost of resuming at 90 % of an epoch, and of starting a worker.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

import av
import cv2
import numpy as np
import webdataset as wds

from dclr.data.clips import ClipConfig, crop_resize, frame_indices, random_resized_crop, random_start, train_clips
from dclr.data.loader import TrainLoader
from dclr.data.manifest import ShardSet
from dclr.data.workers import one_core, worker_context
from dclr.draws import generator
from dclr.record import Record, parse, unpack

ROUNDS = 5
CLIP = ClipConfig()
BATCH = 16
VIDEOS = 960  # a round of a loader
Timed = Callable[[], tuple[int, float]]  # clips, seconds


def memory(records: list[Record]) -> tuple[int, float]:
    began = time.perf_counter()
    for number in range(VIDEOS):
        train_clips(records[number % len(records)], CLIP, 2, 0, number)
    return 2 * VIDEOS, time.perf_counter() - began


class Running:
    """A loader that goes on for ever; a round times its next batches."""

    def __init__(self, batches: Iterator[dict]):
        self.batches = batches
        next(batches)

    def __call__(self) -> tuple[int, float]:
        for _ in range(4):  # what waited is used up
            next(self.batches)
        began, clips = time.perf_counter(), 0
        for _ in range(VIDEOS // BATCH):
            clips += 2 * len(next(self.batches)["key"])
        return clips, time.perf_counter() - began


def ours(shards: ShardSet, workers: int) -> Iterator[dict]:
    passes = -(-VIDEOS // len(shards))  # an epoch of a small set is several passes
    loader = TrainLoader(shards, np.arange(len(shards)), CLIP, clips=2, batch=BATCH, seed=0, passes=passes, workers=workers)
    while True:
        yield from loader


def cut(sample: dict) -> dict:
    """What the stock pipeline maps: the members of a sample as webdataset groups them -> the same clips as ours."""
    found = {name: memoryview(data) for name, data in sample.items() if not name.startswith("__")}
    record = parse(found | {"key": memoryview(sample["__key__"].encode())})
    return train_clips(record, CLIP, 2, 0, 0) | {"key": record.key}


def stock(shards: ShardSet) -> Iterator[dict]:
    urls = [str(Path(shards.root.place, shard.name)) for shard in shards.manifest.shards]
    urls *= 100_000 // len(shards)  # no epoch ends in a round
    pipeline = wds.WebDataset(urls, shardshuffle=len(urls), seed=0).shuffle(200).map(cut).batched(BATCH)
    return iter(
        wds.WebLoader(pipeline, batch_size=None, num_workers=1, worker_init_fn=one_core, multiprocessing_context="spawn")
    )


def drawn(path: Path, total: int) -> Iterator[tuple[np.ndarray, tuple[float, float, float, float], bool]]:
    """Two clips' frame numbers, boxes as shares of the frame and flips, as :func:`train_clips` draws them."""
    for number in range(2):
        rng = generator(0, 0, path.name, number)
        indices = frame_indices(random_start(total, CLIP, rng), total, CLIP)
        top, left, height, width = random_resized_crop(128, 170, CLIP.min_scale, rng)
        yield indices, (top / 128, left / 170, height / 128, width / 170), bool(rng.random() < CLIP.flip)


def finish(frames_THWC: np.ndarray, share: tuple[float, float, float, float], flip: bool) -> np.ndarray:
    height, width = frames_THWC.shape[1:3]
    box = tuple(int(part * side) for part, side in zip(share, (height, width, height, width), strict=True))
    out = np.empty((CLIP.frames, CLIP.size, CLIP.size, 3), np.uint8)
    crop_resize(frames_THWC, box, flip, out)  # type: ignore[arg-type]
    return out


def pyav(path: Path, total: int) -> None:
    """Seek to the key frame before each clip by time, decode from there (what a careful reader does)."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "NONE", 1
        rate, base = stream.average_rate, stream.time_base
        assert rate is not None and base is not None
        for indices, share, flip in drawn(path, total):
            wanted = set(indices.tolist())
            container.seek(int(indices.min() / rate / base), stream=stream)
            frames = {}
            for frame in container.decode(stream):
                number = round(float((frame.pts or 0) * base * rate))
                if number in wanted:
                    frames[number] = frame.to_ndarray(format="rgb24")
                if number >= indices.max():
                    break
            if frames:  # where pts lie, what came is repeated
                some = list(frames.values())
                finish(np.stack([some[min(n, len(some) - 1)] for n in range(CLIP.frames)]), share, flip)


def decord_(path: Path, total: int) -> None:
    import decord

    reader = decord.VideoReader(str(path), num_threads=1)
    for indices, share, flip in drawn(path, len(reader)):
        finish(reader.get_batch(indices).asnumpy(), share, flip)


def torchcodec_(path: Path, total: int) -> None:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="approximate")
    for indices, share, flip in drawn(path, min(total, len(decoder))):
        finish(decoder.get_frames_at(indices.tolist()).data.numpy(), share, flip)


def opencv(path: Path, total: int) -> None:
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    for indices, share, flip in drawn(path, int(capture.get(cv2.CAP_PROP_FRAME_COUNT))):
        capture.set(cv2.CAP_PROP_POS_FRAMES, int(indices.min()))
        frames, wanted = [], set(indices.tolist())
        for number in range(int(indices.min()), int(indices.max()) + 1):
            if not capture.grab():
                break
            if number in wanted:
                frames.append(cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB))
        finish(np.stack([frames[min(n, len(frames) - 1)] for n in range(CLIP.frames)]), share, flip)
    capture.release()


def from_source(read: Callable[[Path, int], None], videos: list[tuple[Path, int]]) -> tuple[int, float]:
    began = time.perf_counter()
    for path, total in videos:
        read(path, total)
    return 2 * len(videos), time.perf_counter() - began


def make(root: Path, out: Path, *more: str) -> ShardSet:
    command = [sys.executable, "-m", "preprocess", "folder", "--root", str(root), "--out", str(out), *more]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return ShardSet(out)


def records(shards: ShardSet, most: int) -> list[Record]:
    """Samples spread over the set, in memory."""
    return [unpack(shards.root.read(*shards.where(n))) for n in range(0, len(shards), max(1, len(shards) // most))][:most]


def show(name: str, rates: dict[str, list[float]], base: str, goals: dict[str, str]) -> None:
    print(f"\n{name}\n\n| | clips/s | ratio to {base} (spread) | goal |\n|---|---|---|---|")
    for what, some in rates.items():
        ratio = [a / b for a, b in zip(some, rates[base], strict=True)]
        spread = f"{statistics.median(ratio):.2f} ({min(ratio):.2f}-{max(ratio):.2f})"
        print(f"| {what} | {statistics.median(some):.0f} | {spread} | {goals.get(what, '')} |", flush=True)


def rounds(timed: dict[str, Timed], count: int = ROUNDS) -> dict[str, list[float]]:
    """Clips a second of each, in alternating rounds; one process is pinned to one core, loaders are not."""
    rates: dict[str, list[float]] = {name: [] for name in timed}
    every = os.sched_getaffinity(0)
    for _ in range(count):
        for name, run in timed.items():
            time.sleep(0.5)  # workers fill up what waits, and rest
            os.sched_setaffinity(0, every if isinstance(run, Running) else {min(every)})
            clips, seconds = run()
            rates[name].append(clips / seconds)
    os.sched_setaffinity(0, every)
    return rates


def best_of_peers(rates: dict[str, list[float]], peers: list[str]) -> None:
    best = max(peers, key=lambda peer: statistics.median(rates[peer]))
    for what in ("memory", "one worker"):
        if what in rates:
            ratio = [a / b for a, b in zip(rates[what], rates[best], strict=True)]
            spread = f"{statistics.median(ratio):.2f} ({min(ratio):.2f}-{max(ratio):.2f})"
            print(f"{what} / best of the peers ({best}): {spread}")


def peers_of(videos: list[tuple[Path, int]]) -> dict[str, Timed]:
    found: dict[str, Timed] = {}
    for name, read in (("PyAV", pyav), ("decord", decord_), ("torchcodec", torchcodec_), ("OpenCV", opencv)):
        try:
            read(*videos[0])
            found[name] = partial(from_source, read, videos)
        except (ImportError, RuntimeError, OSError) as error:
            print(f"{name} left out: {' '.join(str(error).split())[:100]}")
    return found


def frames_of(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(packet.size > 0 for packet in container.demux(video=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared/data")
    data = parser.parse_args().data
    one_core()
    with tempfile.TemporaryDirectory() as folder:
        for name, root, most, goal in (
            ("real UCF101", data / "ucf101/videos", 64, "2.7 of the best peer"),
            ("real Kinetics", data / "wild/kinetics", 48, "20 of the best peer"),
        ):
            if not root.is_dir():
                print(f"{name}: not at {root}")
                continue
            out = Path(folder) / name.replace(" ", "-")
            jpeg, h264 = make(root, out), make(root, Path(f"{out}-h264"), "--codec", "h264")
            files = sorted(path for path in root.rglob("*") if path.suffix in (".avi", ".mp4"))
            files = files[:: max(1, len(files) // most)][:most]
            videos = [(path, frames_of(path)) for path in files]
            timed: dict[str, Timed] = {"memory": partial(memory, records(jpeg, most))}
            timed |= {"one worker": Running(ours(jpeg, 1)), "stock webdataset, one worker": Running(stock(jpeg))}
            timed |= {"memory, h264": partial(memory, records(h264, most))}
            peers = peers_of(videos)
            rates = rounds(timed | peers)
            del timed
            show(name, rates, "memory", {"memory": goal, "one worker": "0.85, not below stock", "memory, h264": "0.65"})
            best_of_peers(rates, list(peers))
            two = rounds({"memory": partial(memory, records(jpeg, most)), "two workers": Running(ours(jpeg, 2))})
            show(f"{name}, two workers", two, "memory", {"two workers": "1.5"})
            both = rounds({"JPEG, one worker": Running(ours(jpeg, 1)), "h264, one worker": Running(ours(h264, 1))})
            show(f"{name}, loaders by codec", both, "JPEG, one worker", {"h264, one worker": "0.65"})
            if len(jpeg) > 10 * BATCH:
                resume(jpeg)
                start(jpeg)


def resume(shards: ShardSet) -> None:
    """Seconds to the first batch from the beginning and from 90 % of an epoch."""
    seconds: dict[str, list[float]] = {"the beginning": [], "90 % of an epoch": []}
    for _ in range(ROUNDS):
        for name, some in seconds.items():
            loader = TrainLoader(shards, np.arange(len(shards)), CLIP, clips=2, batch=BATCH, seed=0)
            state = loader.state_dict() | {"step": len(loader) * 9 // 10 if name[0] == "9" else 0}
            began = time.perf_counter()
            loader.load_state_dict(state)
            next(iter(loader))
            some.append(time.perf_counter() - began)
    print(f"\nfirst batch from {seconds_of(seconds)}")


def start(shards: ShardSet) -> None:
    """Seconds to the first batch of one worker: where this process has its server already, and where workers are spawned."""
    contexts = {"a fork of the server": worker_context(), "a spawned worker": get_context("spawn")}
    seconds: dict[str, list[float]] = {name: [] for name in contexts}
    next(ours(shards, 1))
    for _ in range(ROUNDS):
        for name, context in contexts.items():
            with patch("dclr.data.loader.worker_context", lambda context=context: context):
                began = time.perf_counter()
                next(ours(shards, 1))
                seconds[name].append(time.perf_counter() - began)
    print(f"first batch of {seconds_of(seconds)}")


def seconds_of(seconds: dict[str, list[float]]) -> str:
    return ", ".join(
        f"{name} {statistics.median(some):.3f} s ({min(some):.3f}-{max(some):.3f})" for name, some in seconds.items()
    )


if __name__ == "__main__":
    main()
