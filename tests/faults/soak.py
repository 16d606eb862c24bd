"""``make soak``: kill the four commands at random moments, then stream for an hour and see whether anything grows.

    PYTHONPATH=tests python tests/faults/soak.py [--kills 100] [--minutes 60] [--seed 19] [--out runs/soak]

Each command starts again after each kill, and what it leaves at its end is compared with what an undisturbed run leaves. Then a
process streams a set, from the disk and from a web server that fails on purpose, with a cache that is too small, and a new
loader of two workers every few epochs. Of it and all its processes soak.jsonl has a line every few seconds, and soak.png the
curves. The exit code is 1 where something grows: where the lower end of the 95 % interval of its slope, over an hour, is above
a hundredth of its mean.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
from harness import REPOSITORY, TINY, commands, disturbed
from servers import FileServer, serving

from dclr import canvas

BLOCKS = 20  # of which the slope is fitted to the means: lines that follow each other are alike
T_95 = 2.101  # Student's t for 95 % with 18 degrees of freedom
WARM_UP = 0.2  # of the lines, in which caches fill
ALLOWED = 0.01  # of the mean, an hour
FAULTS = ["500", *[""] * 20, "reset", *[""] * 20, "hang up", *[""] * 20, "garbled", *[""] * 20]
MEASURED = {  # name in soak.jsonl -> in the picture
    "rss_mb": "RSS (MB)",
    **{name: name for name in ("descriptors", "threads", "processes")},
    "shm_mb": "/dev/shm (MB)",
}


def family(pid: int) -> list[int]:
    """A process and all below it."""
    parents = dict[int, list[int]]()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents.setdefault(int(stat.read_text().rpartition(")")[2].split()[1]), []).append(int(stat.parent.name))
    found = [pid]
    for one in found:
        found += parents.get(one, [])
    return found


def measured(pid: int) -> dict[str, float]:
    """What the process and all below it hold. A process that ends meanwhile is left out."""
    total = Counter[str]()
    for one in family(pid):
        with suppress(OSError):
            status = dict(line.split(":", 1) for line in Path(f"/proc/{one}/status").read_text().splitlines())
            if "VmRSS" in status:  # no zombie
                total["descriptors"] += len(os.listdir(f"/proc/{one}/fd"))
                total["rss_mb"] += int(status["VmRSS"].split()[0]) / 1024
                total["threads"] += int(status["Threads"])
                total["processes"] += 1
    shm = os.statvfs("/dev/shm")
    return {**total, "shm_mb": (shm.f_blocks - shm.f_bfree) * shm.f_frsize / 1e6}


def stream(places: list[str], cache: Path) -> None:
    """Read sets in turn until killed, and print the number of each batch."""
    from dclr.data.clips import ClipConfig
    from dclr.data.fetch import Cache
    from dclr.data.loader import TrainLoader
    from dclr.data.manifest import ShardSet

    clip, number = ClipConfig(frames=4, stride=2, size=16), 0
    for turn in itertools.count():
        shards = ShardSet(places[turn % len(places)])
        kept = Cache(cache, sum(shard.bytes for shard in shards.tars) // 2) if shards.remote else None
        chosen_N = np.arange(len(shards))
        loader = TrainLoader(
            shards, chosen_N, clip, clips=2, batch=8, seed=turn, epochs=10, workers=2, cache=kept
        )  # fmt: skip
        for _ in range(loader.epochs):
            for _ in loader:
                number += 1
                print(number, flush=True)


def streaming(shards: Path, seconds: float, out: Path) -> list[dict[str, float]]:
    """Stream for so many seconds; returns the lines of soak.jsonl."""
    lines, every = list[dict[str, float]](), min(5.0, seconds / 100)
    with serving(FileServer, folder=shards) as (handler, port), (out / "batches").open("w+") as batches:
        handler.faults = itertools.cycle(FAULTS)
        places = [str(shards), f"http://127.0.0.1:{port}"]
        process = subprocess.Popen([sys.executable, __file__, "--stream", *places, "--out", out], stdout=batches)
        try:
            until = time.monotonic() + seconds
            with (out / "soak.jsonl").open("w") as file:
                while time.monotonic() < until:
                    time.sleep(every)
                    if process.poll() is not None:
                        raise SystemExit(f"error: the stream ended with {process.returncode}")
                    handler.served.clear()  # or the server itself would grow
                    done = (out / "batches").read_bytes()[-100:].split()
                    if not done:  # it has just started
                        until = time.monotonic() + seconds
                        continue
                    spent = round(seconds - until + time.monotonic(), 2)
                    lines.append({"seconds": spent, "batches": int(done[-1]), **measured(process.pid)})
                    file.write(json.dumps(lines[-1]) + "\n")
        finally:
            process.kill()
            process.wait()
    return lines


def slope(second_N: np.ndarray, value_N: np.ndarray) -> tuple[float, float]:
    """The growth an hour, and half of its 95 % interval, of a line through the means of :data:`BLOCKS` blocks."""
    hour_B, mean_B = (np.array([block.mean() for block in np.array_split(x, BLOCKS)]) for x in (second_N / 3600, value_N))
    centred_B = hour_B - hour_B.mean()
    rise = (centred_B @ mean_B) / (centred_B @ centred_B)
    rest_B = mean_B - mean_B.mean() - rise * centred_B
    return float(rise), float(T_95 * np.sqrt(rest_B @ rest_B / (BLOCKS - 2) / (centred_B @ centred_B)))


def grown(lines: list[dict[str, float]]) -> list[str]:
    """Print the table of slopes; returns what grows."""
    lines = lines[int(WARM_UP * len(lines)) :]
    second_N, found = np.array([line["seconds"] for line in lines]), []
    print("\n| of all processes | mean | growth an hour, 95 % interval |\n|---|---|---|")
    for name in MEASURED:
        value_N = np.array([line[name] for line in lines])
        rise, half = slope(second_N, value_N)
        print(f"| {name} | {value_N.mean():.1f} | {rise:+.2f} ± {half:.2f} |")
        if rise - half > ALLOWED * value_N.mean():
            found.append(name)
    return found


def plot(lines: list[dict[str, float]], out: Path) -> Path:
    figure, axes = canvas.axes(len(MEASURED), 1, 8, 1.5 * len(MEASURED), sharex=True)
    for (axis,), (name, said) in zip(axes, MEASURED.items(), strict=True):
        value_N = [line[name] for line in lines]
        axis.plot([line["seconds"] / 60 for line in lines], value_N, linewidth=0.8)
        axis.set(ylim=(0, 1.2 * max(value_N) or 1), ylabel=said)
    axes[-1][0].set_xlabel(f"minutes; {lines[-1]['batches']} batches")
    return canvas.write(figure, out / "soak.png")


def kill(shards: Path, weights: Path, kills: int, seed: int, folder: Path) -> None:
    """So many kills, shared by the four commands; prints the table."""
    print(f"seed {seed}\n\n| command | SIGKILL | SIGTERM | SIGSTOP | compared |\n|---|---|---|---|---|")
    for number, (name, command) in enumerate(commands(shards, weights, folder).items()):
        straight, draw = folder / f"{name}-straight", random.Random(f"{seed} {name}")
        seconds = command.straight(straight)
        met = disturbed(command, straight, seconds, folder / name, draw, (kills + number) // 4)
        columns = ("SIGKILL", "SIGTERM", "SIGSTOP", "compared")
        print(f"| {name} | {' | '.join(str(met[column]) for column in columns)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=19)
    parser.add_argument("--out", type=Path, default=Path("runs/soak"))
    parser.add_argument("--stream", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stream:
        stream(args.stream, args.out / "cache")
    shutil.rmtree(args.out, ignore_errors=True)
    folder = args.out.absolute() / "made"
    folder.mkdir(parents=True)
    shards = folder / "set"
    made = ("--hard", "--videos", "96", "--size", "32", "--shard-size", "1")
    quietly = partial(subprocess.run, check=True, stdout=subprocess.DEVNULL)
    quietly([sys.executable, "-m", "preprocess", "synthetic", "--out", shards, *made])
    if args.kills:
        once = ("--shards", shards, "--split", "train", *TINY, "-b", "16", "--epochs", "1", "--out", folder / "first")
        quietly([sys.executable, REPOSITORY / "train_pretrain.py", *once])
        kill(shards, folder / "first/last.pt", args.kills, args.seed, folder)
    if args.minutes:
        lines = streaming(shards, 60 * args.minutes, args.out)
        growing = grown(lines)
        print(f"\n{plot(lines, args.out)}")
        if growing:
            raise SystemExit(f"error: grows: {', '.join(growing)}")


if __name__ == "__main__":
    main()
