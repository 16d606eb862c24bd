"""Which defaults: BatchNorm, the dynamic view, the alignment's target. ``python benchmarks/choices.py [--seeds 0 1]``

Pretrains a small network on the hard embedded set (800 training videos) once for each choice and seed, fits the linear probe on
its frozen features and prints the accuracy on the 400 test videos for motion and for scene: with the running statistics of
training and with those re-estimated on RGB clips (``--precise-bn``). Random weights are the baseline. What is there already is
not run again, so it can be stopped and started.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

CLIPS = ["--size", "56", "--frames", "8", "--flip", "0", "--min-scale", "0.6"]
TRAIN = ["-b", "16", "--epochs", "4", "--lr", "0.05", "--schedule", "2", "3", "--queue", "256"]
NETWORK = ["-a", "r2plus1d_10", "--width", "16"]
PRECISE = 20  # batches
CHOICES = {
    "sync, split (default)": "",
    "sync, shared": "--bn-views shared",
    "shuffle, split": "--bn shuffle",
    "shuffle, shared": "--bn shuffle --bn-views shared",
    "local in 2 groups, split": "--bn local --bn-groups 2",
    "local in 2 groups, shared": "--bn local --bn-groups 2 --bn-views shared",
    "dynamic view: cue": "--dynamic cue",
    "dynamic view: flow": "--dynamic flow",
    "alignment target: equal": "--align-target equal",
    "MoCo-v2": "--objective moco",
}


def call(log: Path, *command: str) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        subprocess.run([sys.executable, *command], stdout=file, stderr=file, check=True)


def probe(run: Path, shards: str, pretrained: list[str], seed: int) -> list[float]:
    """Top-1 for motion and scene with the statistics of training, then for both with those re-estimated, in percent."""
    found = []
    for batches in (0, PRECISE):
        for label in ("motion", "scene"):
            out = run / f"{label}-{batches}"
            if not (out / "result.json").exists():
                call(
                    run / "log", "train_eval.py", "linear", "--shards", shards, "--train-split", "train", "--test-split",
                    "test", "--label", label, "--pretrained", *pretrained, "--size", "56", "-fpc", "8", "-cpv", "2",
                    "--test-clips", "2", "--precise-bn", str(batches), "--seeds", str(seed), "--out", str(out),
                )  # fmt: skip
            found.append(100 * json.loads((out / "result.json").read_text())["top1"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", default="shards/hard", help="made here if it is not there")
    parser.add_argument("--out", type=Path, default=Path("runs/choices"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    args = parser.parse_args()
    if not (Path(args.shards) / "manifest.json").exists():
        made = ["-m", "preprocess", "synthetic", "--hard", "--out", args.shards, "--size", "64", "--cues", "diff,flow,energy"]
        call(args.out / "log", *made)
    rows: dict[str, list[list[float]]] = {}
    for seed in args.seeds:
        for number, (name, flags) in enumerate(CHOICES.items()):
            run = args.out / f"{number}-{seed}"
            if not (run / "last.pt").exists():
                common = ["--shards", args.shards, "--split", "train", "--seed", str(seed), "--out", str(run)]
                call(run.with_suffix(".log"), "train_pretrain.py", *common, *NETWORK, *CLIPS, *TRAIN, *flags.split())
            rows.setdefault(name, []).append(probe(run, args.shards, [str(run / "last.pt")], seed))
        random = probe(args.out / f"random-{seed}", args.shards, ["random", *NETWORK], seed)
        rows.setdefault("random weights", []).append(random)
    print(f"top-1 in percent, mean and range of seeds {args.seeds}, chance 12.5")
    print("| choice | motion | scene | motion, re-estimated | scene, re-estimated |\n|---|---|---|---|---|")
    for name, found in rows.items():
        means, least, most = np.mean(found, 0), np.min(found, 0), np.max(found, 0)
        cells = [f"{m:.1f} ({a:.1f}-{b:.1f})" for m, a, b in zip(means, least, most, strict=True)]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
