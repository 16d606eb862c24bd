"""What waiting threads cost: the demo's training step with one thread and with two, on idle cores and beside a process that
takes one of them whole. Each way is a process of its own, in turn; medians and spread over rounds, as a table in Markdown.

    python benchmarks/threads.py --rounds 5
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

WAYS = {
    "one thread": {"OMP_NUM_THREADS": "1"},
    "two, as the runtime waits by default": {"OMP_NUM_THREADS": "2"},
    "two, as dclr/threads.py has them wait": {"OMP_NUM_THREADS": "2", "SETTLED": "1"},
}


def step() -> None:
    """This process is one way: print seconds and CPU-seconds of a step of the demo's network."""
    if "SETTLED" in os.environ:
        from dclr import threads

        if spins := os.environ.get("SPINS"):
            threads.SPINS = spins
        threads.settle()
    import numpy as np
    import torch

    from dclr.data.clips import COLOURS, draw_colours
    from dclr.hardware import pick_device, place, resolve_precision
    from dclr.method.backbones import build
    from dclr.method.model import DCLR
    from dclr.pretraining.config import PretrainConfig
    from dclr.pretraining.pretrain import make_optimiser, train_step

    config = PretrainConfig(shards="set", out="run", split=("train",), width=16, frames=16, size=56, batch=16)
    device = pick_device()
    dtype = resolve_precision("auto", device)
    torch.manual_seed(0)
    model = place(DCLR(build("r2plus1d_10", 16), 256, config.method, config.statistics(1), dtype), device).train()
    optimiser = make_optimiser(model, config)
    scaler = torch.amp.GradScaler(device.type, enabled=False)
    rng = np.random.default_rng(0)
    colours = np.stack([[[draw_colours(rng) for _ in range(2)] for _ in range(2)] for _ in range(16)])
    assert colours.shape == (16, 2, 2, COLOURS)
    batch = {
        "rgb": torch.from_numpy(rng.integers(0, 256, (16, 2, 16, 56, 56, 3), np.uint8)),
        "still": torch.zeros(16, 2, dtype=torch.int64), "frames": torch.arange(16).expand(16, 2, 16).contiguous(),
        "colours": torch.from_numpy(colours.astype(np.float32)), "video": torch.arange(16), "key": list("abcdefghijklmnop"),
    }  # fmt: skip
    bad = torch.zeros((), dtype=torch.int64)
    seconds, cpu = [], []
    for number in range(4):
        began, used = time.perf_counter(), time.process_time()
        outputs, _, _ = train_step(config, model, optimiser, scaler, batch, number, bad)
        model.enqueue(outputs)
        seconds.append(time.perf_counter() - began)
        cpu.append(time.process_time() - used)
    print(statistics.median(seconds[1:]), statistics.median(cpu[1:]))


def measured(way: dict[str, str], busy: bool) -> tuple[float, float]:
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    environment |= way | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    other = subprocess.Popen(["taskset", "-c", "0", sys.executable, "-c", "while True: pass"]) if busy else None
    try:
        done = subprocess.run([sys.executable, __file__, "--step"], env=environment, capture_output=True, text=True, check=True)
    finally:
        if other:
            other.kill()
            other.wait()
    seconds, cpu = map(float, done.stdout.split())
    return seconds, cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--step", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        step()
        return
    found: dict[tuple[str, bool], list[tuple[float, float]]] = {}
    for _ in range(args.rounds):
        for busy in (False, True):
            for name, way in WAYS.items():
                found.setdefault((name, busy), []).append(measured(way, busy))
    print("| threads | cores | s a step (spread) | of one thread's on idle cores | CPU-seconds a step |\n|---|---|---|---|---|")
    base = statistics.median(seconds for seconds, _ in found["one thread", False])
    for (name, busy), runs in found.items():
        seconds, cpu = zip(*runs, strict=True)
        middle = statistics.median(seconds)
        print(
            f"| {name} | {'one taken' if busy else 'idle'} | {middle:.2f} ({min(seconds):.2f}-{max(seconds):.2f}) | "
            f"{middle / base:.2f} | {statistics.median(cpu):.2f} |"
        )


if __name__ == "__main__":
    main()
