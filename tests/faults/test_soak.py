"""The soak finds what grows; nothing is left of a loader that has ended."""

from __future__ import annotations

import gc
import json
import os
import random
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soak
from soak import MEASURED, family, grown
from test_network import CLIP

from dclr.data.loader import TrainLoader
from dclr.data.manifest import ShardSet
from dclr.data.workers import worker_context


def lines(leak: dict[str, float]) -> list[dict[str, float]]:
    """An hour of made-up measurements every five seconds, with noise, and with what grows so much an hour."""
    draw, found = random.Random(0), []
    for n in range(720):
        line = {"seconds": 5.0 * n, "batches": n}
        found.append(line | {name: 100 + draw.gauss(0, 5) + leak.get(name, 0) * n / 720 for name in MEASURED})
    return found


def test_what_grows_is_found_and_noise_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert grown(lines({})) == [] == grown(lines({"threads": 0.5, "rss_mb": -50}))
    assert grown(lines({"rss_mb": 10, "descriptors": 4})) == ["rss_mb", "descriptors"]
    assert "| descriptors | 10" in capsys.readouterr().out


def test_a_short_soak_writes_its_lines_and_its_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which of them grow, seconds do not tell."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setattr(sys, "argv", ["soak.py", "--kills", "0", "--minutes", "0.2", "--out", str(tmp_path / "out")])
    monkeypatch.setattr(soak, "grown", lambda lines: grown(lines) and [])
    soak.main()
    seen = [json.loads(line) for line in (tmp_path / "out/soak.jsonl").read_text().splitlines()]
    assert seen[-1]["batches"] > 0 and seen[-1]["processes"] >= 2 and set(MEASURED) < set(seen[0])
    assert (tmp_path / "out/soak.png").stat().st_size > 10_000 and "| rss_mb |" in capsys.readouterr().out


def test_nothing_is_left_of_a_loader(synthetic_set: Path) -> None:
    shards, found = ShardSet(synthetic_set), list[tuple[int, ...]]()
    worker_context()
    for _ in range(3):
        loader = TrainLoader(shards, np.arange(32), CLIP, clips=1, batch=16, seed=0, epochs=1, workers=2)
        assert len(list(loader)) == 2
        del loader
        gc.collect()
        time.sleep(1)  # its threads and processes may take a moment
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        held = len(os.listdir("/proc/self/fd")), int(status["Threads"]), len(family(os.getpid()))
        found.append((*held, len(os.listdir("/dev/shm"))))
    assert found[1] == found[2], found
