"""Is making shards faster than ffmpeg? ``python benchmarks/transcode.py [--data DIR]``, with ffmpeg installed.

Ours and ``ffmpeg -threads 1`` (decode, scale by area, mjpeg; one process a file) on the same files, alternately, one core each,
medians of five rounds with the spread; then what each cue and codec costs a frame, decoding alone, and two workers against one.
What looking for cuts costs is processor time with it over that without it, on the same files in turn, median of nine.
Real clips are timed where ``--data`` has them; UCF101-like (320x240, mpeg4 avi) and Kinetics-like (340x256, h264 mp4)
videos are made here.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import cv2
import numpy as np

from dclr.record import pack, unpack
from dclr.storage import Folder
from preprocess import run
from preprocess import transcode as transcoding
from preprocess.datasets import folder, sample_keys
from preprocess.plan import jobs
from preprocess.transcode import OpenedVideo, Options, stored_size, transcode

ROUNDS = 5
SIZE = 128


def draw(frames: int, height: int, width: int, seed: int) -> np.ndarray:
    """Something like footage: a textured scene under a slowly moving camera, three moving things, grain. uint8 (N, H, W, 3)."""
    rng = np.random.default_rng(seed)
    scene = np.zeros((height + 80, width + 80, 3), np.float32)
    for cells in (5, 11, 23, 60):
        coarse = rng.uniform(-1, 1, (cells, cells, 3)).astype(np.float32)
        scene += cv2.resize(coarse, scene.shape[1::-1], interpolation=cv2.INTER_CUBIC) * (90 / cells**0.4)
    scene += 120
    things = []
    for side in rng.integers(30, 80, 3):
        checks = rng.uniform(0, 255, (6, 6, 3)).astype(np.float32)
        picture = cv2.resize(checks, (side, side), interpolation=cv2.INTER_NEAREST)
        things.append((picture, rng.uniform(0, 1, 2), rng.uniform(-0.01, 0.01, 2)))
    out = np.empty((frames, height, width, 3), np.uint8)
    drift = rng.uniform(-1, 1, 2)
    for t in range(frames):
        dx, dy = 40 + 35 * np.sin(drift * t / 40)
        frame = cv2.warpAffine(scene, np.array([[1, 0, -dx], [0, 1, -dy]], np.float32), (width, height))
        for picture, start, speed in things:
            side = len(picture)
            x, y = (((start + speed * t) % 1) * (width - side, height - side)).astype(int)
            frame[y : y + side, x : x + side] = picture
        out[t] = np.clip(frame + rng.normal(0, 2, (height, width, 1)), 0, 255)
    return out


def write(path: Path, frames: np.ndarray, codec: str, rate: int, options: dict[str, str], repeat: int = 1) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        if codec == "mpeg4":
            stream.bit_rate = 500_000
        for number in range(len(frames) * repeat):
            frame = av.VideoFrame.from_ndarray(frames[number % len(frames)])
            frame.pts, frame.time_base = number, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def made(folder: Path) -> dict[str, list[Path]]:
    """The videos that the benchmark makes itself, by what they are like."""
    kinds = {"UCF101-like": (200, 240, 320, "mpeg4", ".avi", 25), "Kinetics-like": (300, 256, 340, "libx264", ".mp4", 30)}
    out: dict[str, list[Path]] = {}
    for name, (frames, height, width, codec, suffix, rate) in kinds.items():
        options = {"crf": "23", "preset": "medium"} if codec == "libx264" else {}
        pictures = [draw(frames, height, width, seed) for seed in range(6)]
        out[name] = [folder / f"{name}-{seed}{suffix}" for seed in range(6)]
        for path, some in zip(out[name], pictures, strict=True):
            write(path, some, codec, rate, options)
        long = folder / f"{name}-long{suffix}"
        write(long, pictures[0], codec, rate, options, repeat=3000 // frames)
        out[f"one long {name} file"] = [long]
    return out


def ours(files: list[Path], options: Options) -> int:
    """Transcode and pack, as a worker does; returns frames."""
    total = 0
    for path in files:
        for sample in transcode(path, options):
            sum(len(piece) for piece in pack("k", sample.members, sample.meta))
            total += sample.meta.frames
    return total


def decode(files: list[Path]) -> int:
    total = 0
    for path in files:
        with OpenedVideo(path) as opened:
            total += sum(1 for _ in opened.frames())
    return total


def ffmpeg(files: list[Path], sizes: dict[Path, tuple[int, int]]) -> None:
    for path in files:
        width, height = sizes[path]
        read = ["ffmpeg", "-v", "quiet", "-nostdin", "-threads", "1", "-filter_threads", "1", "-i", str(path), "-map", "0:v:0"]
        scale = ["-vf", f"scale={width}:{height}:flags=area", "-fps_mode", "passthrough", "-pix_fmt", "yuvj420p"]
        encode = ["-c:v", "mjpeg", "-q:v", "3", "-threads", "1", "-f", "mjpeg", "-y", "/dev/null"]
        subprocess.run([*read, *scale, *encode], check=True)


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def peer_table(sets: dict[str, list[Path]]) -> None:
    print(
        "\n| videos | frames | ours, frames/s | ffmpeg, frames/s | ours / ffmpeg | goal | with energy | with flow too | goal ",
        end="",
    )
    print("| ours / decode alone, time |")
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    goals = {"UCF101-like": 2.3, "Kinetics-like": 1.5, "real surv_fight": 1.6, "real UCF101": 2.0}
    for name, files in sets.items():
        sizes = {}
        for path in files:
            with OpenedVideo(path) as opened:
                sizes[path] = stored_size(opened.stream.width, opened.stream.height, SIZE)
        columns: dict[str, list[float]] = {"diff": [], "ffmpeg": [], "energy": [], "flow": [], "decode": []}
        frames = ours(files, Options(size=SIZE, cues=("diff",)))
        for _ in range(ROUNDS):
            columns["diff"].append(timed(lambda f=files: ours(f, Options(size=SIZE, cues=("diff",)))))
            columns["ffmpeg"].append(timed(lambda f=files, s=sizes: ffmpeg(f, s)))
            columns["energy"].append(timed(lambda f=files: ours(f, Options(size=SIZE, cues=("diff", "energy")))))
            columns["flow"].append(timed(lambda f=files: ours(f, Options(size=SIZE, cues=("diff", "flow")))))
            columns["decode"].append(timed(lambda f=files: decode(f)))
        ratio = {key: [peer / own for peer, own in zip(columns["ffmpeg"], columns[key], strict=True)] for key in columns}
        limit = [own / alone for own, alone in zip(columns["diff"], columns["decode"], strict=True)]
        rate = {key: frames / statistics.median(columns[key]) for key in columns}
        goal = goals.get(name, 0.95)
        print(
            f"| {name} | {frames} | {rate['diff']:.0f} | {rate['ffmpeg']:.0f} | {spread(ratio['diff'])} | {goal} "
            f"| {spread(ratio['energy'])} | {spread(ratio['flow'])} | {'-' if 'long' in name else 0.8} | {spread(limit)} |",
            flush=True,
        )


def cost_table(sets: dict[str, list[Path]]) -> None:
    steps: dict[str, Options | None] = {
        "decode alone": None,
        "+ scale + JPEG": Options(size=SIZE, cues=()),
        "the same + diff": Options(size=SIZE, cues=("diff",)),
        "the same + energy": Options(size=SIZE, cues=("energy",)),
        "the same + flow": Options(size=SIZE, cues=("flow",)),
        "diff + energy (default)": Options(size=SIZE),
        "diff + energy, stabilised": Options(size=SIZE, stabilise=True),
        "all three, stabilised": Options(size=SIZE, cues=("diff", "flow", "energy"), stabilise=True),
        "h264 without cues": Options(size=SIZE, cues=(), codec="h264"),
        "h264, diff + energy": Options(size=SIZE, codec="h264"),
    }
    print(f"\n| microseconds a frame | {' | '.join(sets)} |")
    print("|---|" + "---|" * len(sets), flush=True)
    times: dict[str, list[str]] = {step: [] for step in steps}
    for files in sets.values():
        frames = decode(files)
        rounds: dict[str, list[float]] = {step: [] for step in steps}
        for _ in range(3):
            for step, options in steps.items():
                work = (lambda f=files: decode(f)) if options is None else (lambda f=files, o=options: ours(f, o))
                rounds[step].append(timed(work) / frames * 1e6)
        for step, values in rounds.items():
            times[step].append(f"{statistics.median(values):.0f}")
    for step, values in times.items():
        print(f"| {step} | {' | '.join(values)} |")


class NoCuts:
    """In the place of :class:`preprocess.cuts.Cuts`: nothing is looked for."""

    def add(self, luma_HW: np.ndarray) -> None:
        pass

    def finish(self) -> tuple[int, ...]:
        return ()


def cuts_table(sets: dict[str, list[Path]]) -> None:
    print("\n| processor time with cuts looked for / without | default cues | no cues |\n|---|---|---|", flush=True)
    looking = transcoding.Cuts
    for name, files in sets.items():
        cells = []
        for options in (Options(size=SIZE), Options(size=SIZE, cues=())):
            ratios = []
            for number in range(9):
                seconds = {}
                for way in (looking, NoCuts)[:: 1 if number % 2 else -1]:
                    transcoding.Cuts = way
                    began = time.process_time()
                    ours(files, options)
                    seconds[way] = time.process_time() - began
                ratios.append(seconds[looking] / seconds[NoCuts])
            cells.append(spread(ratios))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    transcoding.Cuts = looking


def read_table(sets: dict[str, list[Path]]) -> None:
    """Clips of 16 frames at stride 2, from memory, whole frames to RGB."""
    print("\n| clips/s from memory | JPEG | h264 | h264 / JPEG | bytes a frame, JPEG | h264 |")
    print("|---|---|---|---|---|---|", flush=True)
    for name, files in sets.items():
        records = {}
        for codec in ("jpeg", "h264"):
            options, records[codec] = Options(size=SIZE, cues=(), codec=codec), []
            for path in files:
                (sample,) = transcode(path, options)
                records[codec].append(unpack(b"".join(pack("k", sample.members, sample.meta))))
        rates: dict[str, list[float]] = {"jpeg": [], "h264": []}
        for number in range(ROUNDS):
            for codec, some in records.items():
                rng = np.random.default_rng(number)
                starts = [(record, int(rng.integers(max(1, len(record) - 31)))) for record in some for _ in range(6)]
                wanted = [(record, np.minimum(start + 2 * np.arange(16), len(record) - 1)) for record, start in starts]
                rates[codec].append(len(wanted) / timed(lambda w=wanted: [record.frames(clip) for record, clip in w]))
        size = {codec: sum(len(r.rgb.data) for r in some) / sum(len(r) for r in some) for codec, some in records.items()}
        ratio = [b / a for a, b in zip(rates["jpeg"], rates["h264"], strict=True)]
        print(
            f"| {name} | {statistics.median(rates['jpeg']):.0f} | {statistics.median(rates['h264']):.0f} | {spread(ratio)} "
            f"| {size['jpeg']:.0f} | {size['h264']:.0f} |",
            flush=True,
        )


def workers_table(root: Path) -> None:
    """The whole of make_shards; the first eighth of the videos, in which the processes start, does not count."""
    source = folder.find(Folder(str(root)))
    keys = sample_keys([video.id for video in source.videos])
    options = Options(size=SIZE)
    todo = jobs(source, keys, options, 3.5)
    ratios, rates = [], []
    for _ in range(3):
        speed = {}
        for workers in (1, 2):
            with tempfile.TemporaryDirectory() as out:
                seen: list[tuple[float, int]] = []
                run.make_shards(todo, partial(_note, seen), run.Transcoding(source.root, options), Folder(out), workers, 600)
            early = len(seen) // 8
            speed[workers] = sum(frames for _, frames in seen[early:]) / (seen[-1][0] - seen[early - 1][0])
        ratios.append(speed[2] / speed[1])
        rates.append(speed[2])
    print(f"\ntwo workers / one on {len(source.videos)} videos: {spread(ratios)} (goal 1.85)", end="")
    print(f", {statistics.median(rates):.0f} frames/s with two")


def _note(seen: list[tuple[float, int]], frames: int, failed: bool) -> None:
    seen.append((time.perf_counter(), frames))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data", help="real clips")
    args = parser.parse_args()
    if shutil.which("ffmpeg") is None:
        sys.exit("error: ffmpeg is not installed; it is the peer that this benchmark measures against")
    cv2.setNumThreads(1)
    every = os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory() as folder:
        sets = made(Path(folder))
        if args.data.is_dir():
            sets["real UCF101"] = sorted((args.data / "ucf101/videos").rglob("*.avi"))[::6]
            sets["real surv_fight"] = sorted((args.data / "wild/surv_fight").rglob("*.mp4"))
        else:
            print(f"no real clips at {args.data}: only those made here are timed")
        os.sched_setaffinity(0, {min(every)})  # children too: one core for each side
        peer_table(sets)
        some = {name: files for name, files in sets.items() if "long" not in name}
        cost_table(some)
        cuts_table(some)
        read_table(some)
        os.sched_setaffinity(0, every)
        if args.data.is_dir():
            workers_table(args.data / "ucf101/videos")


if __name__ == "__main__":
    main()
