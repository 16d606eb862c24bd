"""Does it stay small on a large set? ``python benchmarks/scale.py [--data DIR]``

A simulated set of 300,000 samples in 1,000 shards (a real manifest and index; tars that are holes): start-up in a new process,
also of two sets that are this one together, the cost of starting at 90 % of an epoch, the plans of 256 ranks x 16 workers put
together. Then the memory of a worker over 10,000 samples of real clips (of drawn ones where ``--data`` has none).
Before that, and alone with ``--browse``: pages of the simulated set in a browser, and previews of the real one.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import itertools
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

SAMPLES, SHARDS = 300_000, 1_000
RANKS, WORKERS, BATCH = 256, 16, 4096
ROUNDS = 21  # of answers in a browser


def simulate(folder: Path, shard_count: int) -> None:
    """Write a simulated set."""
    from dclr.data.manifest import Entry, Manifest, Shard, pack_columns

    folder.mkdir()
    each, size = SAMPLES // SHARDS, 512 * 2500
    label, content = {"action": 5}, "0123456789abcdef" * 2
    entries = [
        Entry(f"abseiling_{n:011d}_000001_000011", 0, size, n, 5, label, ["train"], 300, 30.0, f"video {n}", n / 7, content)
        for n in range(shard_count * each)
    ]
    index = pack_columns(entries, ["train"], ["action"])
    shards = tuple(Shard(f"shard-{n:06d}.tar", each, each * size + 1024, "0" * 64) for n in range(shard_count))
    for shard in shards:
        with (folder / shard.name).open("wb") as file:
            file.truncate(shard.bytes)
    classes = {"action": [f"class {n}" for n in range(400)]}
    manifest = Manifest(
        "simulated", shards, {"train": len(entries)}, classes, {"size": 128, "cues": []}, {}, hashlib.sha256(index).hexdigest()
    )
    (folder / "index.npz").write_bytes(index)
    (folder / "manifest.json").write_text(manifest.dumps())


def start(folders: list[Path]) -> None:
    """What a rank does before its first batch is read; run in a process of its own."""
    began = time.perf_counter()
    from dclr.data.clips import ClipConfig
    from dclr.data.config import Choice
    from dclr.data.loader import TrainLoader
    from dclr.data.manifest import ShardSet
    from dclr.data.sets import Selection

    imported = time.perf_counter()
    choice = Choice(min_motion=0.1)  # all but the first, so that the lengths of two sets have no common divisor
    chosen = Selection.of([ShardSet(folder) for folder in folders], ["train"], choice)
    loader = TrainLoader(chosen.shards, chosen.samples_N, ClipConfig(), clips=2, batch=BATCH, seed=0, world=RANKS)
    loader.plan.rows(0, 0, RANKS)
    opened = time.perf_counter()
    steps = [loader.plan.rows(step, 0, RANKS) and time.perf_counter() for step in (len(loader) * 9 // 10, len(loader) + 5)]
    print(
        f"imports {imported - began:.2f} s, opening and the first batch's plan {opened - imported:.2f} s; "
        f"going on at 90 % of the epoch {1000 * (steps[0] - opened):.1f} ms, in another {1000 * (steps[1] - steps[0]):.0f} ms; "
        f"peak {held(os.getpid())['VmHWM']:.0f} MB"
    )


def held(process: int) -> dict[str, float]:
    """Memory of a process in MB (10**6 bytes) by the kernel's names: VmHWM is the most it ever held."""
    lines = (line.partition(":") for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return {name: int(value.split()[0]) * 1024 / 1e6 for name, _, value in lines if name.startswith(("Rss", "VmHWM"))}


def plans(folder: Path) -> None:
    """Every worker's share of an epoch, put together."""
    import numpy as np

    from dclr.data.manifest import ShardSet
    from dclr.data.plan import Permutations, Plan

    shards = ShardSet(folder)
    samples_N = shards.select(["train"])
    began = time.perf_counter()
    plan = Plan(Permutations(samples_N, shards.shard_N, 0), BATCH)
    seen = np.zeros(SAMPLES, np.int64)
    owners = 0
    for rank in range(RANKS):
        for worker in range(WORKERS):
            share = [plan.rows(step, rank, RANKS)[1] for step in range(worker, plan.steps, WORKERS)]
            seen += np.bincount(np.concatenate(share), minlength=SAMPLES)
            owners += 1
    print(
        f"{owners} workers' plans in {time.perf_counter() - began:.1f} s: {int((seen == 1).sum())} samples once, "
        f"{int((seen > 1).sum())} more than once, {int((seen == 0).sum())} not at all, {plan.left} in the dropped last batch"
    )
    if seen.max() != 1 or (seen == 0).sum() != plan.left:
        raise SystemExit("the plans are not disjoint and complete")


PAGES = {  # what a page in the browser waits for -> its path in the n-th round
    "a page of all samples": lambda n: f"/samples?page={n * SAMPLES // 24 // ROUNDS}",
    "the same, most motion first, of a class in a split": lambda n: f"/samples?split=0&class=0:5&order=2&page={n * 500}",
    "a first page of those with a word": lambda n: f"/samples?search={n:05d}",
    "the same with a letter that is in every key": lambda n: f"/samples?search=a+{n:03d}",
    "the same, most motion first": lambda n: f"/samples?order=2&search={n + 1}",
}
PREVIEWS = {
    "48 frames of a sample": lambda n: f"/preview/{n}/frames/48",
    "the same with the difference": lambda n: f"/preview/{n}/frames,diff/48",
    "300 frames with all cues": lambda n: f"/preview/{n}/frames,diff,energy/300",
}


def browse(folder: Path, asked: Mapping[str, Callable[[int], str]]) -> None:
    """``python -m preprocess browse``: from its start to its address, and answers one after another."""
    starts, taken = list[float](), {what: list[float]() for what in asked}
    for start in range(5):
        began = time.perf_counter()
        command = [sys.executable, "-m", "preprocess", "browse", str(folder), "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            connection = http.client.HTTPConnection(process.stdout.readline().split("http://")[1].split("/")[0])
            starts.append(time.perf_counter() - began)
            for n, what in itertools.product(range(ROUNDS if start == 4 else 0), asked):
                began = time.perf_counter()
                connection.request("GET", asked[what](n))
                connection.getresponse().read()
                taken[what].append(1000 * (time.perf_counter() - began))
            most = held(process.pid)["VmHWM"]
            process.terminate()
    print(f"\nbrowse {folder.name}: start {statistics.median(starts):.2f} s (median of {len(starts)}), peak {most:.0f} MB")
    print(f"\n| answer | ms, median of {ROUNDS} | slowest |\n|---|---|---|")
    for what, times in taken.items():
        print(f"| {what} | {statistics.median(times):.1f} | {max(times):.1f} |")


def make_real(data: Path, folder: Path) -> None:
    """A set of real clips, or of drawn ones."""
    real = data / "ucf101/videos"
    what = ["folder", "--root", str(real)] if real.is_dir() else ["synthetic", "--videos", "320"]
    command = [sys.executable, "-m", "preprocess", *what, "--out", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def memory(folder: Path) -> None:
    """A worker's memory while it reads 10,000 samples."""
    import numpy as np

    from dclr.data.clips import ClipConfig
    from dclr.data.loader import TrainLoader
    from dclr.data.manifest import ShardSet

    shards = ShardSet(folder)
    loader = TrainLoader(
        shards, np.arange(len(shards)), ClipConfig(), clips=2, batch=20, seed=0, passes=10_000 // len(shards) + 1, workers=1
    )
    print(f"\n| samples read of {len(shards)} | private MB of the worker | shared and mapped MB |\n|---|---|---|")
    for batch, _ in enumerate(loader, 1):
        if batch % 50 == 0:
            worker = multiprocessing.active_children()[0]
            lines = Path(f"/proc/{worker.pid}/status").read_text().splitlines()
            held = {
                name: int(value.split()[0]) / 1024
                for name, _, value in (line.partition(":") for line in lines)
                if "Rss" in name
            }
            print(f"| {20 * batch} | {held['RssAnon']:.0f} | {held['RssFile'] + held['RssShmem']:.0f} |", flush=True)
        if batch == 500:
            break


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared/data")
    parser.add_argument("--browse", action="store_true")
    parser.add_argument("--start", type=Path, nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.start:
        start(args.start)
        return
    with tempfile.TemporaryDirectory() as folder:
        simulated, real = Path(folder, "simulated"), Path(folder, "real")
        several = [Path(folder, "large"), Path(folder, "small")]
        simulate(simulated, SHARDS)
        make_real(args.data, real)
        browse(simulated, PAGES)
        browse(real, PREVIEWS)
        if args.browse:
            return
        for part, count in zip(several, (SHARDS * 4 // 5 + 1, SHARDS // 5 - 1), strict=True):
            simulate(part, count)
        print(f"{SAMPLES} samples in {SHARDS} shards, index.npz {os.path.getsize(simulated / 'index.npz') / 1e6:.1f} MB")
        for folders in ([simulated], several) * 3:
            began = time.perf_counter()
            subprocess.run([sys.executable, __file__, "--start", *map(str, folders)], check=True)
            print(f"  the whole process, {len(folders)} set(s): {time.perf_counter() - began:.2f} s")
        plans(simulated)
        memory(real)


if __name__ == "__main__":
    main()
