"""What Ray costs beside the processes of one machine, as a table in Markdown: ``python benchmarks/engines.py [--rounds 3]``.

Sixty short videos become sixty shards of one video, with ``--workers 2`` and, in turn, with ``--engine ray`` on a cluster that
is there before, of one node with two CPUs. Such shards are the worst case: a Ray task costs seconds before its first video.
The bytes are compared too. Ray's workers have the priority of other processes here (it makes them nicer), so that what else the
machine does slows both alike.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import cv2
import numpy as np

from preprocess.synthetic import HARD, encode

REPOSITORY = Path(__file__).parent.parent
VIDEOS = 60


def draw(folder: Path) -> None:
    """Videos of 320 x 240 whose samples are estimated at over 0.5 MB at ``--size 180``: a shard of 1 MB has room for one."""
    for number in range(VIDEOS):
        frames = HARD.render("left", "dots", "", ("engines", number))[0]
        encode(np.stack([cv2.resize(frame, (320, 240)) for frame in frames]), 25, folder / f"{number:02d}.avi")


def seconds(root: Path, out: Path, *flags: str, environment: dict[str, str]) -> float:
    places = ["--root", str(root), "--out", str(out)]
    command = [sys.executable, "-m", "preprocess", "folder", *places, "--shard-size", "1", "--size", "180", *flags]
    began = time.perf_counter()
    subprocess.run(command, cwd=REPOSITORY, env=os.environ | environment, check=True, capture_output=True)
    return time.perf_counter() - began


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in ("plan.json", "failures.jsonl")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    from ray.cluster_utils import Cluster

    os.environ |= {"RAY_worker_niceness": "0"}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    took: dict[str, list[float]] = {"local": [], "ray": []}
    try:
        with tempfile.TemporaryDirectory() as temporary:
            root = Path(temporary, "videos")
            root.mkdir()
            draw(root)
            for number in range(rounds):
                here, there = Path(temporary, f"local{number}"), Path(temporary, f"ray{number}")
                environment = {"PYTHONPATH": str(REPOSITORY), "RAY_ADDRESS": cluster.address}
                took["local"].append(seconds(root, here, "--workers", "2", environment=environment))
                took["ray"].append(seconds(root, there, "--engine", "ray", environment=environment))
                assert contents(here) == contents(there), "the bytes differ"
                shards = len(list(here.glob("shard-*.tar")))
                assert shards == VIDEOS, f"{shards} shards of {VIDEOS} videos"
    finally:
        cluster.shutdown()
    ratios = [ray / local for local, ray in zip(took["local"], took["ray"], strict=True)]
    print("| engine | seconds, median | each round |\n|---|---|---|")
    for name, times in took.items():
        print(f"| {name} | {median(times):.1f} | {', '.join(f'{one:.1f}' for one in times)} |")
    print(f"\nRay takes {median(ratios):.2f} times as long as two processes here ({min(ratios):.2f} to {max(ratios):.2f}).")


if __name__ == "__main__":
    main()
