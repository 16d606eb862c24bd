"""A process of a run is killed or hangs: the run ends soon, names it, and goes on when it is started again."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import succeed
from harness import TINY, Command, appears, checkpoint, log, same
from soak import family

from dclr.data.manifest import ShardSet
from dclr.errors import AGAIN
from dclr.training import saver
from preprocess import pool

ENDS = 30  # seconds


@pytest.fixture(scope="module")
def straight(synthetic_set: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Command, Path]:
    flags = ("--shards", synthetic_set, "--split", "train", *TINY, "-b", "16", "--epochs", "3", "--save-minutes", "0.0001")
    command = Command("pretrain", ("train_pretrain.py", *flags), checkpoint)
    command.straight(out := tmp_path_factory.mktemp("straight") / "out")
    return command, out


def saved(out: Path, process: subprocess.Popen[bytes], step: int = 3) -> None:
    while not any(saver.number(path) >= step for path in saver.found(out)):
        assert process.poll() is None, log(out).read_text()
        time.sleep(0.02)


def workers(pid: int) -> Iterator[int]:
    """The loader's processes: forks of the fork server."""
    server = b"multiprocessing.forkserver"
    below = {one: Path(f"/proc/{one}/cmdline").read_bytes() for one in family(pid)}
    for one in below:
        parent = int(Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()[1])
        if server in below.get(parent, b""):
            yield one


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_that_is_killed_or_stopped_is_named(number: int, straight: tuple[Command, Path], tmp_path: Path) -> None:
    command, expected = straight
    out = tmp_path / "out"
    process = command.start(out, "-j", "1", "--stall-minutes", "0.05")
    saved(out, process)
    (worker,) = workers(process.pid)
    os.kill(worker, number)
    assert process.wait(ENDS + 30) == AGAIN, log(out).read_text()
    said = log(out).read_text()
    assert f"(process {worker})" in said.splitlines()[-1] and "Traceback" not in said
    assert command.start(out).wait(600) == 0
    same(command.bits(expected), command.bits(out))


def test_a_rank_that_is_killed_ends_the_others(straight: tuple[Command, Path], tmp_path: Path) -> None:
    command, _ = straight
    out, launch = (
        tmp_path / "out",
        (sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python", "--nproc-per-node", "2"),
    )
    process = command.start(out, before=launch)
    saved(out, process)
    ranks = [one for one in family(process.pid) if b"LOCAL_RANK=1" in Path(f"/proc/{one}/environ").read_bytes()]
    os.kill(ranks[0], signal.SIGKILL)
    began = time.monotonic()
    assert process.wait(600) != 0 and time.monotonic() - began < ENDS
    assert re.search(rf"rank\s*: 1 .*\n.*\n.*error|local_rank: 1 \(pid: {ranks[0]}\)|rank 1", log(out).read_text())


def test_a_decoder_that_hangs_costs_its_video_until_retry(synthetic_set: Path, tmp_path: Path) -> None:
    out, limit = tmp_path / "out", ("--limit", "24", "--size", "32")
    made = (
        "-m",
        "preprocess",
        "folder",
        "--root",
        synthetic_set / "videos",
        *limit,
        "--workers",
        "1",
        "--timeout",
        "8",
        "--max-failures",
        "0",
    )
    process = Command("preprocess", made, dict).start(out)
    appears(out / "plan.json", process)  # other processes look at the files before
    while not (
        hanging := [one for one in family(process.pid)[1:] if b"spawn_main" in Path(f"/proc/{one}/cmdline").read_bytes()]
    ):
        assert process.poll() is None, log(out).read_text()
        time.sleep(0.02)
    os.kill(hanging[0], signal.SIGSTOP)
    assert process.wait(600) == 1
    said = log(out).read_text()
    assert "(timeout: not done after 8 seconds)" in said and "Traceback" not in said
    succeed("-m", "preprocess", "retry", out)
    assert len(ShardSet(out)) == 24


def test_a_run_that_was_stopped_loses_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """By SIGSTOP, as a cluster suspends a job: the clock of a task goes on, and neither it nor the run can."""
    passed, waits, monotonic = [0.0], pool.wait, time.monotonic

    def stopped(pipes: list, seconds: float) -> list:
        if passed[0]:
            return waits(pipes, seconds)
        passed[0] = 1000
        return []

    monkeypatch.setattr(pool, "wait", stopped)
    monkeypatch.setattr(pool, "time", SimpleNamespace(monotonic=lambda: monotonic() + passed[0]))
    with pool.Pool(abs, 1, timeout=500) as some:
        assert list(some.map([-1, -2])) == [1, 2]
