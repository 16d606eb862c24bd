"""A run that is killed, stopped or moved to other processes goes on as if it had not been."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY, SMALL, needs, refuse, run, scalars, succeed
from servers import FileServer, for_a_while, serving

from dclr.checkpoint import load
from dclr.errors import AGAIN, NOT_KEPT
from dclr.pretraining.config import PretrainConfig
from dclr.settings import free
from dclr.training import saver
from dclr.training.signals import PREEMPTED

FLAGS = ("--split", "train", *SMALL, "-b", "8", "--queue", "16", "--epochs", "3", "--schedule", "2")  # 24 steps


def start(
    shards: Path | str, out: Path, ranks: int = 0, *more: str, launcher: Path = REPOSITORY / "train_pretrain.py"
) -> subprocess.Popen[str]:
    """A run in a session of its own, so that its processes can be killed together."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks else []
    command = [*launch, str(launcher), "--shards", str(shards), *FLAGS, "--out", str(out), *more]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [sys.executable, *command], cwd=REPOSITORY, env=environment, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return found


def reached(out: Path, step: int, process: subprocess.Popen[str]) -> bool:
    """Wait until a checkpoint of that step is there; False where the run ended before."""
    while process.poll() is None:
        if any(saver.number(path) >= step for path in saver.found(out)):
            return True
        time.sleep(0.01)
    return False


def entries(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """All that a checkpoint holds, by its path; of the settings those that decide what comes next."""
    if isinstance(value, dict | list):
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            if not (at == "/config" and name in {"shards"} | free(PretrainConfig)):
                yield from entries(item, f"{at}/{name}")
    else:
        yield at, value


def assert_same(one: Path, other: Path, step: int = 24) -> None:
    """In every entry, bit for bit."""
    a, b = dict(entries(load(one))), dict(entries(load(other)))
    assert a.keys() == b.keys() and a["/step"] == b["/step"] == a["/loader/step"] == step
    assert len([name for name in a if name.startswith("/optimiser/state/")]) > 10 and "/generator" in a
    for name, found in a.items():
        same = torch.equal(found, b[name]) if isinstance(found, torch.Tensor) else found == b[name]
        assert same, name


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
    assert_same(expected / "last.pt", out / "last.pt")
    assert not list(out.glob(".*")) or all(path.name.endswith(".tmp") for path in out.glob(".*"))
    curve, cut = scalars(expected)["loss/total"], scalars(out)["loss/total"]
    assert curve[-1] == pytest.approx(cut[-1], rel=1e-6)


def test_a_signal_saves_and_the_same_command_goes_on(straight: Path, synthetic_set: Path, tmp_path: Path) -> None:
    """It reaches the loader's worker too, and comes twice."""
    out = tmp_path / "run"
    process = start(synthetic_set, out, 0, "--save-minutes", "0.0001", "-j", "1")
    assert reached(out, 3, process)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.killpg(process.pid, number)
    said = process.communicate()[0]
    assert process.returncode == PREEMPTED and "stopped by a signal after step" in said and "Traceback" not in said
    stopped = load(out / "last.pt")["step"]
    assert 3 <= stopped < 24
    said = succeed("train_pretrain.py", "--shards", synthetic_set, *FLAGS, "--out", out)
    assert f"resumed after step {stopped} of 24" in said
    assert_same(straight / "last.pt", out / "last.pt")


def script(folder: Path, changes: str) -> Path:
    """train_pretrain.py with ``changes`` to its modules."""
    path = folder / "changed.py"
    path.write_text(
        "import os, time\n"
        "import train_pretrain\n"
        "from dclr import errors\nfrom dclr.pretraining import pretrain\nfrom dclr.training import saver, signals\n"
        f"{changes}\n"
        "if __name__ == '__main__':\n"
        "    with errors.exit_on_input_error():\n"
        "        train_pretrain.main()\n"
    )
    return path


HANGS = """
signals.ONE_SIGNAL = 0.1
make = pretrain.make_views
def hanging(*args):
    if os.path.exists('RUN/last.pt'):
        open('RUN/hangs', 'w').close()
        time.sleep(600)
    return make(*args)
pretrain.make_views = hanging
"""


def test_a_later_signal_ends_the_run_at_once(synthetic_set: Path, tmp_path: Path) -> None:
    """A step that hangs never comes to the end that the first signal waits for."""
    out = tmp_path / "run"
    hangs = script(tmp_path, HANGS.replace("RUN", str(out)))
    process = start(synthetic_set, out, 0, "--save-minutes", "0.0001", launcher=hangs)
    while not (out / "hangs").exists():
        assert process.poll() is None
        time.sleep(0.01)
    for _ in range(2):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.3)
    said = process.communicate(timeout=30)[0]
    assert process.returncode == PREEMPTED and "stopped by a signal" not in said and "Traceback" not in said


SLOW = """
save = saver.checkpoint.save
def slow(path, state):
    if os.path.exists('RUN/signalled'):
        time.sleep(2)
    save(path, state)
saver.checkpoint.save = slow
"""


@pytest.mark.parametrize("slurm", [True, False])
def test_ranks_that_are_signalled_leave_together_with_a_checkpoint(slurm: bool, synthetic_set: Path, tmp_path: Path) -> None:
    """Slurm signals torchrun and its ranks, and torchrun signals them once more. Where they alone are signalled, torchrun ends
    the others when the first has left: rank 0 may still be writing."""
    out = tmp_path / "run"
    slow = script(tmp_path, SLOW.replace("RUN", str(out)) + ("" if slurm else "signals.ONE_SIGNAL = 0.1"))
    process = start(synthetic_set, out, 2, "--save-minutes", "0.0001", launcher=slow)
    assert reached(out, 3, process)
    (out / "signalled").touch()
    ranks = children(process.pid)
    assert len(ranks) == 2
    for pid in ranks:
        os.kill(pid, signal.SIGTERM)
    if slurm:
        time.sleep(0.5)  # rank 0 has come to its checkpoint, which takes two seconds
        process.terminate()
    said = process.communicate(timeout=120)[0]
    assert "stopped by a signal after step" in said and load(out / "last.pt")["step"] >= 3
    assert f"stopped by a signal after step {load(out / 'last.pt')['step']};" in said


def test_other_processes_go_on_with_the_same_batches(straight: Path, synthetic_set: Path, tmp_path: Path) -> None:
    """From the middle of the run: the next losses of two processes are those of one, until float32's rounding shows."""
    small = (*FLAGS, "--width", "8", "-fpc", "8", "--lr", "0.000001")  # training a smaller network amplifies rounding
    every_step = tmp_path / "every_step.py"
    every_step.write_text("from dclr.training import loop\nimport train_pretrain\nloop.LOG_EVERY = 1\ntrain_pretrain.main()\n")
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


FAILS = """
make = pretrain.make_views
calls = []
def failing(*args):
    calls.append(1)
    if os.environ['RANK'] == '1' and WHEN:
        open('FOLDER/failed', 'w').close()
        raise ERROR('the disk of this machine went away')
    return make(*args)
pretrain.make_views = failing
"""


def failing_script(folder: Path, when: str, error: str = "OSError") -> Path:
    """train_pretrain.py whose process of rank 1 raises after as many calls of make_views, two a step, as ``when`` says."""
    return script(folder, FAILS.replace("WHEN", when).replace("ERROR", error).replace("FOLDER", str(folder)))


@pytest.mark.parametrize("error", ["OSError", "errors.InputError"])
def test_a_rank_that_fails_ends_the_others(error: str, synthetic_set: Path, tmp_path: Path) -> None:
    """One of two processes raises in the middle of an epoch: the run ends with its message, and does not wait for ever."""
    fails = failing_script(tmp_path, "len(calls) > 6", error)
    done = run(fails, "--shards", synthetic_set, *FLAGS, "--out", tmp_path / "out", ranks=2)
    assert time.time() - (tmp_path / "failed").stat().st_mtime < 60
    assert done.returncode != 0 and "rror: the disk of this machine went away" in done.stderr


def test_torchruns_restarts_go_on_from_the_checkpoint(straight: Path, synthetic_set: Path, tmp_path: Path) -> None:
    """Their own, not the file that the run began from."""
    fails = failing_script(tmp_path, "len(calls) > 20 and os.environ['TORCHELASTIC_RESTART_COUNT'] == '0'")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1")
    more = ("--epochs", "4", "--resume", straight / "step-000000016.pt", "--out", tmp_path / "out")
    said = succeed(*torchrun, fails, "--shards", synthetic_set, *FLAGS, *more)
    assert "resumed after step 16 of 32" in said and "resumed after step 24 of 32" in said
    assert load(tmp_path / "out/last.pt")["step"] == 32


def test_a_second_run_in_the_folder_is_refused_and_the_first_goes_on(
    straight: Path, synthetic_set: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    slow = "enqueue = pretrain.DCLR.enqueue\npretrain.DCLR.enqueue = lambda *a: (time.sleep(0.3), enqueue(*a))[1]"
    process = start(synthetic_set, out, 0, "--save-minutes", "0.0001", launcher=script(tmp_path, slow))
    assert reached(out, 2, process)
    said = refuse("train_pretrain.py", "--shards", synthetic_set, *FLAGS, "--out", out)
    assert f"--out {out}: process {process.pid} on " in said
    said = process.communicate()[0]
    assert process.returncode == 0, said
    assert "abandoned" not in said and not list(out.glob("*.abandoned")) and not (out / ".lock").exists()
    assert_same(straight / "last.pt", out / "last.pt")


AHEAD = "from dclr.data import fetch\nfetch.AHEAD = 1"  # a batch in use, and the next one


@needs("aiohttp")
def test_an_outage_is_waited_for_and_then_costs_nothing_that_was_done(
    straight: Path, synthetic_set: Path, tmp_path: Path
) -> None:
    """One that passes, one that is longer than --patience, and one in which a signal comes; then the run ends with the bits of
    a run from the disk that was never disturbed."""
    out, little = tmp_path / "run", script(tmp_path, AHEAD)
    with serving(FileServer, folder=synthetic_set) as (handler, port):
        url = f"http://127.0.0.1:{port}"
        handler.faults = itertools.chain(itertools.islice(for_a_while("reset", 1, after=31), 110), itertools.repeat("503"))
        done = run(little, "--shards", url, *FLAGS, "--out", out, "--patience", "0.02")
        (said,) = [line for line in done.stderr.splitlines() if "error" in line]
        stopped = load(out / "last.pt")["step"]
        assert done.returncode == AGAIN and 4 <= stopped < 24 and "Traceback" not in done.stderr
        assert said.startswith(f"error: {url}/shard-") and "ClientResponseError: 503" in said
        assert "no answer for 0.02 minutes (--patience)" in said and "reset" in handler.served
        assert said.endswith(f"saved after step {stopped}: the same command goes on from {out / 'last.pt'}")

        handler.served.clear()
        handler.faults = for_a_while("503", 600, after=30)
        process = start(url, out, 0, "-j", "1", launcher=little)
        while handler.served.count("503") < 6:
            assert process.poll() is None
            time.sleep(0.01)
        process.terminate()
        signalled = process.communicate(timeout=300)[0]
        again = load(out / "last.pt")["step"]
        assert process.returncode == AGAIN and again > stopped
        assert f"stopped by a signal after step {again}; the same command goes on" in signalled

        handler.faults = itertools.repeat("")
        assert f"resumed after step {again} of 24" in succeed("train_pretrain.py", "--shards", url, *FLAGS, "--out", out)
    assert_same(straight / "last.pt", out / "last.pt")


@needs("aiohttp")
def test_ranks_end_together_where_one_gets_no_data(synthetic_set: Path, tmp_path: Path) -> None:
    """With one line and a checkpoint, though the requests that fail are of rank 1 alone."""
    out = tmp_path / "run"
    alone = script(
        tmp_path,
        f"{AHEAD}\nfrom dclr import storage\nask = storage.RemoteFolder.read\ncalls = []\n"
        "def read(*args):\n    calls.append(1)\n"
        "    name = 'none' if os.environ.get('RANK') == '1' and len(calls) > 30 else args[1]\n"
        "    return ask(args[0], name, *args[2:])\nstorage.RemoteFolder.read = read",
    )
    with serving(FileServer, folder=synthetic_set) as (handler, port):
        url = f"http://127.0.0.1:{port}"
        handler.missing = 503
        done = run(alone, "--shards", url, *FLAGS, "--out", out, "--patience", "0.01", ranks=2)
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    step = load(out / "last.pt")["step"]
    assert 0 < step < 24 and f"{url}/none: ClientResponseError: 503" in said and f"saved after step {step}" in said


FULL = """
import errno
def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
saver.checkpoint.save = full
"""


def test_a_run_that_kept_nothing_says_so(synthetic_set: Path, tmp_path: Path) -> None:
    """At its end, with an exit code of its own; and when it is stopped."""
    out = tmp_path / "run"
    full = script(tmp_path, FULL)
    done = run(full, "--shards", synthetic_set, *FLAGS, "--epochs", "1", "--out", out)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == NOT_KEPT and f"error: {out}: the checkpoint of step 8 could not be written (No space" in last
    assert "that is kept is none" in last and "last.pt" not in done.stdout and "Traceback" not in done.stderr
    process = start(synthetic_set, tmp_path / "stopped", 0, "--epochs", "50", launcher=full)
    while not (tmp_path / "stopped" / "config.yaml").exists():
        time.sleep(0.01)
    time.sleep(1)
    process.terminate()
    said = process.communicate()[0]
    assert process.returncode == NOT_KEPT and "goes on from" not in said, said


def test_a_folder_that_cannot_be_written_is_refused_at_once(synthetic_set: Path) -> None:
    said = refuse("train_pretrain.py", "--shards", synthetic_set, *FLAGS, "--out", "/proc/sys")
    assert "--out /proc/sys: cannot be written to" in said


def test_a_cosine_is_not_stretched(synthetic_set: Path, tmp_path: Path) -> None:
    """Its values depend on the length of the run, which therefore stays; without a cosine a run can be made longer."""
    flags = ("--shards", synthetic_set, *FLAGS, "--epochs", "1")
    for name, *cosine in (("--cos",), ("--momentum-end", "1"), ("--flow-weight-end", "1", "--flow-weight", "2")):
        out = tmp_path / name.strip("-")
        succeed("train_pretrain.py", *flags, name, *cosine, "--out", out)
        said = refuse("train_pretrain.py", *flags, name, *cosine, "--out", out, "--epochs", "2")
        assert "--epochs 2: the run in" in said and f"made with {name} over 1" in said


LEVERS = (
    "--momentum", "0.9", "--momentum-end", "1", "--temperature", "0.2", "--mining-temperature", "1", "--dim", "16",
    "--in-batch", "--static-weight", "0.5", "--dynamic-weight", "2", "--dynamic-key", "same", "--head-init", "authors",
    "--optimiser", "adamw", "--flow-weight", "2", "--flow-weight-end", "0.5",
    "--static-momentum", "0.99", "--dynamic-momentum", "0.5", "--mining-momentum", "0.7", "--mine-by", "flow",
    "--align-maps", "key", "--align-target", "raw", "--jitter", "authors", "--plain-query",
)  # fmt: skip


def test_a_run_with_every_lever_goes_on_with_the_same_bits(synthetic_set: Path, tmp_path: Path) -> None:
    command = ("train_pretrain.py", "--shards", synthetic_set, *FLAGS, *LEVERS, "--keep", "9", "--out")
    succeed(*command, tmp_path / "straight")
    shutil.copytree(tmp_path / "straight", tmp_path / "cut")
    for path in ("last.pt", "step-000000024.pt"):
        (tmp_path / "cut" / path).unlink()
    assert "resumed after step 16 of 24" in succeed(*command, tmp_path / "cut")
    assert_same(tmp_path / "straight/last.pt", tmp_path / "cut/last.pt")
    kept = load(tmp_path / "cut/last.pt")
    assert kept["model"]["queue.keys_RKD"].shape[::2] == (6, 16) and kept["config"]["momentum_end"] == 1
    assert kept["model"]["queue.cue_KE"].shape == (16, 2 * 1 * 2 * 2) and kept["model"]["queue.cue_KE"].any()
    first = [kept["model"][f"{encoder}.backbone.stem.0.weight"] for encoder in ("f_k", *(f"followers.{who}" for who in "dms"))]
    assert not any(torch.equal(one, other) for n, one in enumerate(first) for other in first[:n])
    assert "--temperature 0.07" in refuse(*command, tmp_path / "cut", "--temperature", "0.07")


def test_a_run_of_two_sets_goes_on_within_an_epoch_with_the_same_bits(
    synthetic_set: Path, h264_set: Path, tmp_path: Path
) -> None:
    """Half of each, seen 7 to 3: 54 videos, 6 steps an epoch."""
    mixed = ("--shards", synthetic_set, h264_set, "--weights", "0.7", "0.3", "--share", "50%")
    more = ("--epochs", "2", "--save-minutes", "0.0001", "--keep", "99", "--knn-split", "test", "--knn-every", "1")
    command = ("train_pretrain.py", *FLAGS, *mixed, *more, "--out")
    said = succeed(*command, tmp_path / "straight")
    assert f"{synthetic_set}: 32 of 64 videos are chosen by --share 0.5, 70.0% of what is seen" in said
    assert f"{h264_set}: 22 of 43 videos are chosen by --share 0.5, 30.0% of what is seen" in said
    assert "54 videos, 6 steps an epoch" in said and "are dropped" not in said
    shutil.copytree(tmp_path / "straight", tmp_path / "cut")
    for path in saver.found(tmp_path / "cut"):
        if saver.number(path) > 9:
            path.unlink()
    (tmp_path / "cut/last.pt").unlink()
    went_on = max(map(saver.number, saver.found(tmp_path / "cut")))
    assert 6 < went_on <= 9 and f"resumed after step {went_on} of 12" in succeed(*command, tmp_path / "cut")
    assert_same(tmp_path / "straight/last.pt", tmp_path / "cut/last.pt", 12)
    kept = load(tmp_path / "cut/last.pt")
    assert kept["config"]["shards"] == [str(synthetic_set), str(h264_set)] and kept["config"]["weights"] == [0.7, 0.3]
    assert kept["config"]["share"] == 0.5 and kept["loader"]["parts"] == [7, 3]
    assert set((kept["model"]["queue.video_K"] % 2).tolist()) == {0, 1}  # ids of both
    other = refuse(*command, tmp_path / "cut", "--weights", "0.6", "0.4")
    assert "--weights 0.6,0.4: the run in" in other and "was made with 0.7,0.3" in other
    assert "--share 0.25: the run in" in refuse(*command, tmp_path / "cut", "--share", "25%")


AVERAGED = """
from dclr import distributed
knn = pretrain.online_knn
def same(model, setting):
    sums = [float(x.double().sum()) for name, x in model.state_dict().items() if "running" in name]
    first, second = distributed.joined_objects(sums)
    assert first == second, "the ranks' statistics differ"
    return knn(model, setting)
pretrain.online_knn = same
"""


@pytest.mark.parametrize("bn", ["local", "shuffle"])
def test_knn_is_asked_with_the_statistics_of_all_ranks(bn: str, synthetic_set: Path, tmp_path: Path) -> None:
    watched = ("--bn", bn, "--knn-split", "test", "--knn-every", "1", "--epochs", "1")
    flags = ("--shards", synthetic_set, *FLAGS, *watched, "--out", tmp_path / "run")
    assert "k-NN top-1" in succeed(script(tmp_path, AVERAGED), *flags, ranks=2)
