"""A run that is killed, stopped or moved to other processes goes on as if it had not been."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, SMALL, refuse, run, scalars, succeed

from dclr import saver
from dclr.checkpoint import load
from dclr.pretrain import PREEMPTED

FLAGS = ("--split", "train", *SMALL, "-b", "8", "--queue", "16", "--epochs", "3", "--schedule", "2")  # 24 steps


def start(shards: Path, out: Path, ranks: int = 0, *more: str) -> subprocess.Popen[str]:
    """A run in a session of its own, so that its processes can be killed together."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks else []
    command = [*launch, "train_pretrain.py", "--shards", str(shards), *FLAGS, "--out", str(out), *more]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [sys.executable, *command], cwd=REPOSITORY, env=environment, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def reached(out: Path, step: int, process: subprocess.Popen[str]) -> bool:
    """Wait until a checkpoint of that step is there; False where the run ended before."""
    while process.poll() is None:
        if any(saver.number(path) >= step for path in saver.found(out)):
            return True
        time.sleep(0.01)
    return False


def assert_same_weights(one: Path, other: Path) -> None:
    a, b = load(one), load(other)
    assert a["step"] == b["step"] == 24 and a["loader"] == b["loader"]
    assert all(torch.equal(a["model"][name], b["model"][name]) for name in a["model"])
    for p, q in zip(a["optimiser"]["state"].values(), b["optimiser"]["state"].values(), strict=True):
        assert torch.equal(p["momentum_buffer"], q["momentum_buffer"])


@pytest.fixture(scope="module")
def straight(synthetic_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("straight") / "run"
    succeed("train_pretrain.py", "--shards", synthetic_set, *FLAGS, "--out", out)
    return out


@pytest.mark.parametrize("ranks", [0, 2])
def test_killed_at_random_steps_it_ends_with_the_same_bits(
    ranks: int, straight: Path, synthetic_set: Path, tmp_path: Path
) -> None:
    out, draw, kills = tmp_path / "killed", random.Random(ranks), 0
    expected = straight
    if ranks:
        expected = tmp_path / "straight"
        succeed("train_pretrain.py", "--shards", synthetic_set, *FLAGS, "--out", expected, ranks=ranks)
    step = 0
    while True:
        step += draw.randint(2, 7)
        process = start(synthetic_set, out, ranks, "--save-minutes", "0.0001")
        killed = step < 24 and reached(out, step, process)
        if killed:
            time.sleep(draw.random() / 20)  # in the middle of a step, or of writing
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        said = process.communicate()[0]
        if not killed:
            break
    assert process.returncode == 0, said
    assert kills >= 3 and "resumed after step" in said
    assert_same_weights(expected / "last.pt", out / "last.pt")
    assert not list(out.glob(".*")) or all(path.name.endswith(".tmp") for path in out.glob(".*"))
    curve, cut = scalars(expected)["loss/total"], scalars(out)["loss/total"]
    assert curve[-1] == pytest.approx(cut[-1], rel=1e-6)


def test_a_signal_saves_and_the_same_command_goes_on(straight: Path, synthetic_set: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(synthetic_set, out, 0, "--save-minutes", "0.0001")
    assert reached(out, 3, process)
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[0]
    assert process.returncode == PREEMPTED and "stopped by a signal after step" in said and "Traceback" not in said
    stopped = load(out / "last.pt")["step"]
    assert 3 <= stopped < 24
    said = succeed("train_pretrain.py", "--shards", synthetic_set, *FLAGS, "--out", out)
    assert f"resumed after step {stopped} of 24" in said
    assert_same_weights(straight / "last.pt", out / "last.pt")


def test_other_processes_go_on_with_the_same_batches(straight: Path, synthetic_set: Path, tmp_path: Path) -> None:
    """From the middle of the run: the next losses of two processes are those of one, until float32's rounding shows."""
    small = (*FLAGS, "--width", "8", "-fpc", "8", "--lr", "0.000001")  # training a smaller network amplifies rounding
    every_step = tmp_path / "every_step.py"
    every_step.write_text("from dclr import pretrain\nimport train_pretrain\npretrain.LOG_EVERY = 1\ntrain_pretrain.main()\n")
    succeed("train_pretrain.py", "--shards", synthetic_set, *small, "--epochs", "1", "--out", tmp_path / "half")
    for ranks in (0, 2):
        middle = ("--resume", tmp_path / "half" / "last.pt", "--epochs", "2", "--out", tmp_path / str(ranks))
        succeed(every_step, "--shards", synthetic_set, *small, *middle, ranks=ranks)
    one, two = (scalars(tmp_path / ranks)["loss/total"] for ranks in "02")
    assert len(one) == len(two) == 8 and one[:5] == pytest.approx(two[:5], rel=1e-5)
    queues = [load(tmp_path / ranks / "last.pt")["model"]["queue.video_K"] for ranks in "02"]
    assert torch.equal(*queues)


def test_a_finished_run_says_so_and_other_settings_are_refused(straight: Path, synthetic_set: Path, tmp_path: Path) -> None:
    common = ("train_pretrain.py", "--shards", synthetic_set, *FLAGS, "--out", straight)
    before = (straight / "last.pt").read_bytes()
    assert "resumed after step 24 of 24: it is finished" in succeed(*common, "-j", "1")
    assert "--lr 0.5: the run in" in (said := refuse(*common, "--lr", "0.5")) and "was made with 0.01" in said
    assert "--bn-views shared" in refuse(*common, "--bn-views", "shared")
    assert "holds step-000000024.pt of an earlier run" in refuse(*common, "--resume", "never")
    assert (straight / "last.pt").read_bytes() == before


def failing_script(folder: Path, when: str) -> Path:
    """train_pretrain.py whose process of rank 1 raises after as many calls of make_views, two a step, as ``when`` says."""
    script = folder / "fails.py"
    script.write_text(
        "import os\n"
        "from dclr import pretrain\n"
        "import train_pretrain\n"
        "make = pretrain.make_views\n"
        "calls = []\n"
        "def failing(*args):\n"
        "    calls.append(1)\n"
        f"    if os.environ['RANK'] == '1' and {when}:\n"
        "        raise OSError('the disk of this machine went away')\n"
        "    return make(*args)\n"
        "pretrain.make_views = failing\n"
        "train_pretrain.main()\n"
    )
    return script


def test_a_rank_that_fails_ends_the_others(synthetic_set: Path, tmp_path: Path) -> None:
    """One of two processes raises in the middle of an epoch: the run ends with its message, and does not wait for ever."""
    script = failing_script(tmp_path, "len(calls) > 6")
    done = run(script, "--shards", synthetic_set, *FLAGS, "--out", tmp_path / "out", ranks=2)
    assert done.returncode != 0 and "the disk of this machine went away" in done.stderr


def test_torchruns_restarts_go_on_from_the_checkpoint(synthetic_set: Path, tmp_path: Path) -> None:
    script = failing_script(tmp_path, "len(calls) > 20 and os.environ['TORCHELASTIC_RESTART_COUNT'] == '0'")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1")
    said = succeed(*torchrun, script, "--shards", synthetic_set, *FLAGS, "--out", tmp_path / "out")
    assert "resumed after step 8 of 24" in said and load(tmp_path / "out/last.pt")["step"] == 24
