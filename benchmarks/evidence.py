"""What the method learns: the cells of docs/evidence.md. ``make evidence``, ``make evidence CELL=lab/dclr/seed1 FRESH=1``

A cell is WORLD/ROW/seedN: a training with its own config, and linear probes of what it learnt. Its numbers are kept in
docs/evidence/WORLD/ROW/seedN.json, and what is kept is not run again. Two cells run side by side with a thread each. A cell
that was stopped goes on.

``--fresh`` trains kept cells anew beside them, and exits with 1 where a number lies outside the interval in which the kept
seeds of its row leave it. ``--table`` prints the tables out of what is kept and runs nothing.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "docs/evidence"
# Student's t for a 95 % interval, by degrees of freedom
STUDENT = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}


@dataclass(frozen=True)
class World:
    """A set, how a network is pretrained on it and how it is probed.

    Attributes:
        shards: the set's folder. made: the arguments of ``python -m preprocess`` that make it.
        pretrain: of every row's train_pretrain.py. probe: of train_eval.py linear. supervised: of train_eval.py finetune.
        labels: kinds of label; the first is what the supervised network learns. videos: how many are tested.
    """

    shards: str
    made: str
    pretrain: str
    probe: str
    supervised: str
    labels: tuple[str, ...] = ("motion", "scene", "texture")
    videos: int = 512


LAB = World(
    "shards/lab",
    "synthetic --size 40 --cues diff,flow,energy --swap-scenes --correlate 0.95",
    "--config recipes/lab.yaml",
    "--train-split train --test-split test -cpv 2 --test-clips 2 --precision fp32",
    "--train-split train --test-split test --label motion -a r2plus1d_10 --width 8 --frames 8 --stride 1 --size 32 "
    "--min-scale 0.6 --flip 0 -b 16 -cpv 1 --epochs 32 --schedule 24 --optimiser adamw --lr 0.004 --wd 0.05 "
    "--dropout 0 --test-clips 2 --precision fp32",
)
WORLDS = {"lab": LAB}
RANDOM, SUPERVISED = "random", "supervised"
MOCO = "--objective moco --without --optimiser sgd --lr 0.05 --wd 0.0001"  # of the optimisers tried, that of its best scenes
ROWS = {  # of a world: flags of train_pretrain.py beside the world's
    RANDOM: "",
    SUPERVISED: "",
    "moco": f"{MOCO} --flow-weight 0",
    "dclr": "",
    "published": "--without --flow-weight 0",
    "dclr-noflow": "--flow-weight 0",
    "moco-flow": "--objective moco --without",
    "dclr-mining": "--without",
}


@dataclass(frozen=True)
class Cell:
    """One training and its probes."""

    world: str
    row: str
    seed: int
    kept: Path = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "kept", KEPT / self.world / self.row / f"seed{self.seed}.json")

    @property
    def name(self) -> str:
        return f"{self.world}/{self.row}/seed{self.seed}"

    def run(self, out: Path) -> dict[str, Any]:
        """Train and probe in the folder ``out``, and give the numbers in percent."""
        world, began = WORLDS[self.world], time.monotonic()
        commands: list[str] = []
        found: dict[str, Any] = {"cell": self.name, "commands": commands}
        common = ["--shards", world.shards]
        if self.row == SUPERVISED:
            tuned = ["train_eval.py", "finetune", *common, *world.supervised.split(), "--pretrained", "random"]
            found[world.labels[0]] = top1(self._call(commands, [*tuned, "--seed", str(self.seed)], out / "finetune"))
            return found | {"seconds": round(time.monotonic() - began)}
        weights = ["--pretrained", RANDOM, *network(world), "--seed", str(self.seed)]
        if self.row != RANDOM:
            flags = [*world.pretrain.split(), *ROWS[self.row].split(), "--seed", str(self.seed)]
            self._call(commands, ["train_pretrain.py", *common, *flags], out / "run")
            found |= {"steps": steps(out / "run"), "training_seconds": round(time.monotonic() - began)}
            weights = ["--pretrained", str(out / "run/last.pt")]
        for label in world.labels:
            probe = ["train_eval.py", "linear", *common, *world.probe.split(), "--label", label, *weights]
            found[label] = top1(self._call(commands, [*probe, "--features", str(out / "features")], out / label))
        return found | {"seconds": round(time.monotonic() - began)}

    def keep(self, found: dict[str, Any]) -> None:
        self.kept.parent.mkdir(parents=True, exist_ok=True)
        self.kept.write_text(json.dumps(found, indent=1) + "\n")

    def _call(self, commands: list[str], command: list[str], out: Path) -> Path:
        """Run a command that leaves its result in ``out``, unless that is there; its words go to a log beside it."""
        command = [*command, "--out", str(out)]
        commands.append(" ".join(command))
        if not (out / "result.json").exists():
            out.parent.mkdir(parents=True, exist_ok=True)
            with out.with_suffix(".log").open("a") as log:
                done = subprocess.run([sys.executable, *command], cwd=ROOT, stdout=log, stderr=log, env=one_thread())
            if done.returncode:
                raise SystemExit(f"{self.name}: exit code {done.returncode} of {commands[-1]}; see {log.name}")
        return out


C = TypeVar("C", bound=Cell)


def one_thread() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def network(world: World) -> list[str]:
    """The flags of the world's network and clips, for random weights."""
    import yaml

    recipe = yaml.safe_load((ROOT / world.pretrain.split()[1]).read_text())
    named = {"arch": "-a", "width": "--width", "frames": "--frames", "stride": "--stride", "size": "--size"}
    return [part for name, flag in named.items() for part in (flag, str(recipe[name]))]


def steps(run: Path) -> int:
    """How many steps a run took."""
    return int(json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"])


def top1(folder: Path) -> float:
    """The top-1 of an evaluation, in percent."""
    return round(100 * json.loads((folder / "result.json").read_text())["top1"], 2)


def spread(values: Sequence[float]) -> float:
    """Half of the 95 % interval of a mean over seeds; 0 of one seed."""
    if len(values) < 2:
        return 0.0
    return STUDENT[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))


def leaves(values: Sequence[float], videos: int) -> float:
    """How far from the mean of the kept seeds another seed may lie, in points: 95 % of them do, and never less than the error
    that the number of test videos alone makes."""
    mean = statistics.mean(values) / 100
    least = 196 * math.sqrt(max(mean * (1 - mean), 0.01) / videos)
    return max(least, spread(values) * math.sqrt(len(values) + 1))


def kept(world: str, row: str) -> list[dict[str, Any]]:
    """The kept cells of a row, by seed."""
    folder = KEPT / world / row
    return [json.loads(path.read_text()) for path in sorted(folder.glob("seed*.json"))]


def tables() -> str:
    """Every world's kept rows: the mean over seeds and, of several, half of its 95 % interval, in percent."""
    lines = []
    for world, its in WORLDS.items():
        labels = its.labels
        lines += [f"| {world} | seeds | {' | '.join(labels)} | training, s |", "|---" * (len(labels) + 3) + "|"]
        for row in ROWS:
            cells = kept(world, row)
            if not cells:
                continue
            columns = []
            for label in labels:
                values = [cell[label] for cell in cells if label in cell]
                error = f" ± {spread(values):.1f}" if len(values) > 1 else ""
                columns.append(f"{statistics.mean(values):.1f}{error}" if values else "")
            seconds = [cell["training_seconds"] for cell in cells if "training_seconds" in cell]
            lines.append(
                f"| {row} | {len(cells)} | {' | '.join(columns)} | {f'{statistics.median(seconds):.0f}' if seconds else ''} |"
            )
        lines.append("")
    return "\n".join(lines)


def outside(cell: Cell, found: dict[str, Any]) -> list[str]:
    """The numbers of a cell that was run anew which do not agree with the kept ones."""
    said = []
    for label in WORLDS[cell.world].labels:
        values = [one[label] for one in kept(cell.world, cell.row) if label in one]
        if label in found and values:
            mean, most = statistics.mean(values), leaves(values, WORLDS[cell.world].videos)
            agrees = abs(found[label] - mean) <= most
            print(f"{cell.name}: {label} {found[label]:.1f}, kept {mean:.1f} ± {most:.1f}{'' if agrees else ': OUTSIDE'}")
            said += [] if agrees else [label]
    return said


def chosen(every: Iterable[C], patterns: Sequence[str]) -> list[C]:
    """The cells that the patterns name; all of them without a pattern."""
    return [cell for cell in every if any(fnmatch.fnmatch(cell.name, one) for one in patterns or ["*"])]


def make_set(world: World) -> None:
    """Make the world's set, unless it is there."""
    if not (ROOT / world.shards / "manifest.json").exists():
        made = [sys.executable, "-m", "preprocess", *world.made.split(), "--out", world.shards]
        subprocess.run(made, cwd=ROOT, check=True)


def side_by_side(pool: Executor, run: Callable[[C], dict[str, Any]], cells: Sequence[C]) -> Iterator[tuple[C, dict[str, Any]]]:
    """The cells, and what ``run`` finds of each, in order."""
    with pool, tqdm(total=len(cells), unit="cell") as bar:
        for cell, found in zip(cells, pool.map(run, cells), strict=True):
            yield cell, found
            bar.update()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", nargs="*", help="patterns such as 'lab/dclr/*'; all by default")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2, help="cells side by side, a thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--fresh", action="store_true", help="train kept cells anew and compare")
    parser.add_argument("--table", action="store_true", help="print what is kept, run nothing")
    args = parser.parse_args()
    if args.table:
        print(tables())
        return
    every = [Cell(world, row, seed) for seed in range(1, args.seeds + 1) for world in WORLDS for row in ROWS]
    cells = chosen(every, args.cells)
    if not cells:
        names = f"{', '.join(WORLDS)}; {', '.join(ROWS)}"
        parser.error(f"no cell is named {' '.join(args.cells)}: expected WORLD/ROW/seedN of {names}")
    cells = [cell for cell in cells if args.fresh or not cell.kept.exists()]
    for world in {cell.world for cell in cells}:
        make_set(WORLDS[world])

    def one(cell: Cell) -> dict[str, Any]:
        out = args.out / ("fresh" if args.fresh else "") / cell.name
        if args.fresh:
            shutil.rmtree(ROOT / out, ignore_errors=True)
        return cell.run(out)

    wrong = []
    for cell, found in side_by_side(ThreadPoolExecutor(args.jobs), one, cells):
        if args.fresh:
            wrong += outside(cell, found)
        else:
            cell.keep(found)
    print(tables())
    if wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
