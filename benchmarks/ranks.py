"""How far does rounding carry two processes from one? ``python benchmarks/ranks.py``

The same pretraining of nine steps on the embedded set by one process with one thread, by two processes, and by one process
with two threads, whose sums are rounded in another order too. Prints the greatest difference of any of f_q's weights after 1, 3
and 9 steps, beside how far training has moved them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

HERE = Path(__file__).parent.parent
STEPS = 1, 3, 9
BATCHES = 12, 4
WAYS = {"two processes": (2, 1), "one process, two threads": (1, 2)}  # processes, threads of each


def apart(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    """The greatest difference between the trained weights of two checkpoints."""
    names = [name for name, x in one.items() if name.startswith("f_q.") and x.is_floating_point() and "running_" not in name]
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in names)


def trained(shards: Path, out: Path, batch: int, processes: int, threads: int) -> dict[int, dict[str, torch.Tensor]]:
    """The weights after each of :data:`STEPS`."""
    from dclr.checkpoint import load

    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    flags = ["--split", "train", "-a", "r2plus1d_10", "--width", "8", "-fpc", "8", "-cs", "32", "--precision", "fp32"]
    flags += ["-b", str(batch), "--queue", str(2 * batch), "--epochs", "1", "--save-minutes", "1e-9", "--keep", "9", "-j", "1"]
    subprocess.run(
        [sys.executable, *launch, str(HERE / "train_pretrain.py"), "--shards", str(shards), *flags, "--out", str(out)],
        check=True, env=os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(HERE)}, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return {step: load(out / f"step-{step:09d}.pt")["model"] for step in STEPS}


def main() -> None:
    print("| | -b | " + " | ".join(f"{step} steps" if step > 1 else "1 step" for step in STEPS) + " |")
    print("|---|---|" + "---|" * len(STEPS))
    with tempfile.TemporaryDirectory() as folder:
        for batch in BATCHES:
            shards = Path(folder, f"{batch}")
            videos = ["--videos", str(max(STEPS) * batch * 3 // 2), "--size", "32"]  # a third is for testing
            subprocess.run(
                [sys.executable, "-m", "preprocess", "synthetic", "--hard", "--out", str(shards), *videos],
                check=True, cwd=HERE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            one = trained(shards, Path(folder, f"{batch}-1-1"), batch, 1, 1)
            rows = {"how far the weights moved from step 1": [apart(one[1], one[step]) for step in STEPS]}
            for name, way in WAYS.items():
                other = trained(shards, Path(folder, f"{batch}-{way[0]}-{way[1]}"), batch, *way)
                rows[name] = [apart(one[step], other[step]) for step in STEPS]
            for name, numbers in rows.items():
                print(f"| {name} | {batch} | " + " | ".join(f"{number:.1e}" for number in numbers) + " |", flush=True)


if __name__ == "__main__":
    main()
