"""Four commands on tiny sets, what each must leave, and signals at moments that are drawn from a seed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import load_file

from dclr.checkpoint import load
from dclr.training.signals import PREEMPTED

REPOSITORY = Path(__file__).parents[2]
TINY = ("-a", "r2plus1d_10", "--width", "4", "-fpc", "4", "-cs", "32", "--precision", "fp32", "-j", "0")
SETTLE = 600  # seconds in which a start must come to its end
EXTRACTS = """
import runpy
from dclr.evaluation import pieces, rows
pieces.SECONDS = 0  # every video is kept at once
rows.FILE_BYTES = 12 * 4 * (2 + 32)  # of 12 videos
if __name__ == "__main__":
    runpy.run_module("dclr.extract", run_name="__main__", alter_sys=True)
"""
Bits = dict[str, Any]


@dataclass(frozen=True)
class Command:
    """A command without its --out, and the ``bits`` that it leaves there whatever happened to earlier starts."""

    name: str
    line: tuple[object, ...]
    bits: Callable[[Path], Bits]

    def start(self, out: Path, *more: object, before: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        """In a session of its own; what it prints is added to :func:`log`."""
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        with log(out).open("ab") as file:
            return subprocess.Popen(
                [*before, sys.executable, *map(str, (*self.line, *more)), "--out", str(out)],
                cwd=REPOSITORY, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def straight(self, out: Path) -> float:
        """Run it undisturbed; returns the seconds from its first file to its end."""
        process = self.start(out)
        appears(out, process)
        began = time.monotonic()
        assert process.wait(SETTLE) == 0, log(out).read_text()
        return time.monotonic() - began


def log(out: Path) -> Path:
    return out.with_name(f"{out.name}.log")


def files(out: Path) -> Bits:
    """A set: every file but the place of the source and how long failures took."""
    untold = {"plan.json", "failures.jsonl"}
    return {
        str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name not in untold
    }


def checkpoint(out: Path) -> Bits:
    """A training: every entry of its last checkpoint, but the name of its folder and the code's commit."""

    def entries(value: Any, at: str) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict | list):
            for name, item in value.items() if isinstance(value, dict) else enumerate(value):
                yield from entries(item, f"{at}/{name}")
        elif at not in ("/config/out", "/revision"):
            yield at, (value.dtype, value.numpy(force=True).tobytes()) if isinstance(value, torch.Tensor) else value

    return dict(entries(load(out / "last.pt"), ""))


def scores(out: Path) -> Bits:
    """A finetuning: its checkpoint and the arrays of its test; safetensors writes text beside these in any order."""
    return checkpoint(out) | {name: array.tolist() for name, array in load_file(out / "scores.safetensors").items()}


def features(out: Path) -> Bits:
    return {path.name: path.read_bytes() for path in out.glob("features-*.npz")}


def commands(shards: Path, weights: Path, folder: Path) -> dict[str, Command]:
    """Preprocessing, pretraining, finetuning and extraction, by name; ``shards`` is an embedded set with the splits train and
    test, and ``weights`` a checkpoint. A script of its own is written to ``folder``."""
    (extract := folder / "extract.py").write_text(EXTRACTS)
    read = ("--shards", shards, *TINY, "-b", "16", "--save-minutes", "0.0001")
    tested = ("--train-split", "train", "--test-split", "test", "--label", "scene", "--test-clips", "1", "-cpv", "1")
    made = ("--hard", "--videos", "24", "--size", "32", "--shard-size", "1", "--workers", "2")
    frozen = ("--pretrained", weights, "--split", "test", "--test-clips", "1", "-j", "1")
    every = [
        Command("preprocess", ("-m", "preprocess", "synthetic", *made), files),
        Command("pretrain", ("train_pretrain.py", *read, "--split", "train", "--queue", "16", "--epochs", "2"), checkpoint),
        Command("finetune", ("train_eval.py", "finetune", *read, *tested, "--pretrained", "random", "--epochs", "2"), scores),
        Command("extract", (extract, shards, *frozen), features),
    ]
    return {command.name: command for command in every}


def appears(path: Path, process: subprocess.Popen[bytes]) -> bool:
    """Wait until ``path`` is there; False where the process ended before."""
    while not path.exists():
        if process.poll() is not None:
            return False
        time.sleep(0.02)
    return True


KILL, TERM, STOP = "SIGKILL", "SIGTERM", "SIGSTOP"


def strike(process: subprocess.Popen[bytes], name: str, draw: random.Random) -> None:
    """Send the signal to the command and its processes, or to the command alone, whose processes must then see that it is gone.
    After SIGSTOP comes SIGCONT."""
    whole = name == STOP or draw.random() < 0.5
    with suppress(ProcessLookupError):  # it has just ended
        (os.killpg if whole else os.kill)(process.pid, getattr(signal, name))
    if name == STOP:
        time.sleep(draw.uniform(0.2, 1.5))
        os.killpg(process.pid, signal.SIGCONT)


def disturbed(command: Command, straight: Path, seconds: float, out: Path, draw: random.Random, kills: int) -> Counter[str]:
    """Start the command again and again, until ``kills`` of its starts were ended by a signal at a moment of its work, which
    takes about so many ``seconds``. What it leaves is compared with ``straight`` whenever it comes to its end, and at last once
    more. Returns how often each signal was sent, and how often was compared."""
    met = Counter[str]()
    while True:
        last = met[KILL] + met[TERM] >= kills
        process, sent = command.start(out), None
        if not last and appears(out, process):
            with suppress(subprocess.TimeoutExpired):
                process.wait(draw.uniform(0, seconds))
            if process.poll() is None:
                sent = draw.choices([KILL, TERM, STOP], [6, 3, 1])[0]
                strike(process, sent, draw)
        code = process.wait(SETTLE)
        if sent:
            met[sent] += 1
        allowed = {KILL: {-signal.SIGKILL}, TERM: {-signal.SIGTERM, PREEMPTED}}.get(sent or "", set())
        said = log(out).read_text()
        assert code == 0 or code in allowed, f"{command.name} ended with {code} after {sent}:\n{said[-3000:]}"
        assert "Traceback" not in said, said[-3000:]
        if code == 0:
            same(command.bits(straight), command.bits(out))
            met["compared"] += 1
            if last:
                return met
            shutil.rmtree(out)


def same(expected: Bits, found: Bits) -> None:
    assert expected.keys() == found.keys(), expected.keys() ^ found.keys()
    for name, value in expected.items():
        assert value == found[name], f"{name} is another"
