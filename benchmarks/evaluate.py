"""Does an evaluation keep its network busy? ``python benchmarks/evaluate.py [--data DIR] [--arch r2plus1d_10] [--rounds 5]``

On real UCF101 clips, 10 uniform clips a video of 16 frames at 112x112, alternating rounds, medians and spread of the ratio:

- extraction: ``train_eval.py``'s features of whole videos, files to features, one loader process beside the network; from its
  first video on, and with the start of the loader process, which an evaluation has once a split;
- forward alone: the same network on the same number of clips that lie ready in memory, at the same batch (a video's clips);
- views: cutting a video's 10 clips times 3 crops at once, and one view at a time, on one core.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dclr.data.clips import ClipConfig, eval_clips
from dclr.data.manifest import ShardSet
from dclr.evaluation.setting import EvalConfig, Pooled, Setting, forward, labelled, over_videos, random_weights
from dclr.hardware import pick_device, place, resolve_precision
from dclr.method.backbones import ARCHITECTURES
from preprocess.__main__ import main as preprocess

CLIPS, VIDEOS = 10, 24  # a round's videos
Rates = dict[str, list[float]]


def rounds(ways: dict[str, Callable[[], None]], count: int) -> Rates:
    """Seconds of each way in each round, one after the other; the first round of all warms up."""
    seconds: Rates = {name: [] for name in ways}
    for number in range(count + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            if number:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def ratio(seconds: Rates, ours: str, other: str) -> str:
    """How often ``ours`` is done in the time of ``other``: median and spread."""
    found = sorted(b / a for a, b in zip(seconds[ours], seconds[other], strict=True))
    return f"{statistics.median(found):.2f} ({found[0]:.2f}-{found[-1]:.2f})"


def extraction(shards: ShardSet, arch: str, count: int) -> None:
    config = EvalConfig(
        mode="knn", shards=str(shards.root), out="run", train_split=("train01",), test_split=("test01",), pretrained="random",
        arch=arch, test_clips=CLIPS, workers=1,
    )  # fmt: skip
    device = pick_device()
    trunk, weights = random_weights(arch, config.width, 0)
    dtype = resolve_precision("auto", device)
    setting: Setting = labelled(config, trunk, weights, shards, None, config.clip({}), device, dtype)
    samples = setting.test_N[:: max(1, len(setting.test_N) // VIDEOS)][:VIDEOS]
    module = place(Pooled(trunk.module), device).eval()
    ready = [torch.from_numpy(eval_clips(shards.read(int(n)), setting.clip, CLIPS)["rgb"]) for n in samples]

    def alone() -> None:
        for rgb in ready:
            forward(module, setting, rgb).cpu()

    starts: list[float] = []  # of each round's first video
    since_first: list[float] = []

    def found(batch: dict[str, Any]) -> torch.Tensor:
        starts.append(time.perf_counter())
        return forward(module, setting, batch["rgb"][0])

    def whole() -> None:
        starts.clear()
        over_videos(setting, samples, CLIPS, 1, "extraction", found)
        since_first.append(time.perf_counter() - starts[0])

    seconds = rounds({"forward alone": alone, "extraction, with its start": whole}, count)
    seconds["extraction"] = since_first[1:]
    clips = CLIPS * len(samples)
    print(f"\n{arch}, {str(dtype)[6:]} on {device}, {len(samples)} videos of {CLIPS} clips a round\n")
    print("| | clips/s | of the forward pass alone (spread) | goal |\n|---|---|---|---|")
    for name, goal in (("forward alone", ""), ("extraction", "0.9"), ("extraction, with its start", "")):
        print(f"| {name} | {clips / statistics.median(seconds[name]):.2f} | {ratio(seconds, name, 'forward alone')} | {goal} |")


def views(shards: ShardSet, count: int) -> None:
    clip, records = ClipConfig(), [shards.read(int(n)) for n in np.linspace(0, len(shards) - 1, VIDEOS).astype(int)]

    def at_once() -> None:
        for record in records:
            eval_clips(record, clip, CLIPS, 3)

    def one_by_one() -> None:
        for record in records:
            for _ in range(3 * CLIPS):
                eval_clips(record, clip, 1)

    seconds = rounds({"at once": at_once, "one view at a time": one_by_one}, count)
    print(f"\n| {CLIPS} clips times 3 crops of a video | views/s | ratio (spread) |\n|---|---|---|")
    for name in seconds:
        rate = 3 * CLIPS * VIDEOS / statistics.median(seconds[name])
        print(f"| {name} | {rate:.0f} | {ratio(seconds, name, 'one view at a time')} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared/data/ucf101")
    parser.add_argument("--arch", default="r2plus1d_10", choices=list(ARCHITECTURES))
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "ucf"
        preprocess(["ucf101", "--root", str(args.data / "videos"), "--splits", str(args.data / "splits16"), "--out", str(out)])
        shards = ShardSet(out)
        views(shards, args.rounds)
        extraction(shards, args.arch, args.rounds)


if __name__ == "__main__":
    main()
