"""The scripts of docs/clusters.md, as they stand there, under real engines: Slurm, and torchrun in two network namespaces.

Each test changes what the page says that a user changes: names of data and folders, numbers of processes, the network.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, SMALL, render, succeed
from servers import free_port

from dclr.checkpoint import load
from preprocess.synthetic import encode

SCRIPTS = re.findall(r"^```bash\n(.*?)^```$", (REPOSITORY / "docs" / "clusters.md").read_text(), re.S | re.M)
MAKING = ("--shard-size", "1", "--size", "120")
TRAINING = (*SMALL, "-b", "2", "--queue", "8", "--epochs", "2", "--save-minutes", "0.0001")  # 8 steps
SMALLER = {"shards/ucf101 --split train01": f"shards/local --split train01 {' '.join(TRAINING)}"}
ENVIRONMENT = {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
ROOT = os.getuid() == 0
absent = [program for program in ("munged", "slurmctld", "slurmd") if not shutil.which(program)]
needs_slurm = pytest.mark.skipif(
    bool(absent) or not ROOT, reason=f"Slurm: {', '.join(absent)} not installed (slurm-wlm)" if absent else "Slurm: needs root"
)
needs_namespaces = pytest.mark.skipif(
    not shutil.which("ip") or not ROOT or subprocess.run(["ip", "netns", "list"], capture_output=True).returncode != 0,
    reason="two network namespaces: needs root and ip netns",
)
# A run that waits at a step until it is signalled, or until its file says so: the test need not meet a moment.
LAUNCHER = f"""
import os, runpy, time
from dclr.pretraining import pretrain
from dclr.training.signals import Preemption

made, caught, make = [], Preemption._caught, pretrain.make_views

def signalled(self, *args):
    caught(self, *args)
    open("signalled", "w").close()

def held(*args):
    made.append(1)
    if len(made) == 6:
        open("held-" + os.environ["WORLD_SIZE"], "w").close()
    while len(made) >= 6 and not HOLDS_NOT:
        time.sleep(0.05)
    return make(*args)

Preemption._caught, pretrain.make_views = signalled, held
runpy.run_path({str(REPOSITORY / "train_pretrain.py")!r}, run_name="__main__")
"""


def script(start: str, changes: dict[str, str] | None = None) -> str:
    """The script of the page that has ``start`` in it, with the ``changes``, which must apply."""
    (text,) = [text for text in SCRIPTS if start in text]
    for old, new in (changes or {}).items():
        assert old in text, (old, text)
        text = text.replace(old, new)
    return text


def until(there: Callable[[], object], what: str, seconds: float = 1200) -> None:
    for _ in range(int(seconds / 0.1)):
        if there():
            return
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} seconds: {what}")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: ``.venv``, videos and lists as UCF101 has them, and the set as one command makes it."""
    folder = tmp_path_factory.mktemp("work")
    (folder / ".venv").symlink_to(sys.prefix)
    names = [f"v_Left_g{number:02d}_c01.avi" for number in range(1, 13)]
    (folder / "videos/Left").mkdir(parents=True)
    (folder / "lists").mkdir()
    for name in names:
        encode(render("left", "dots", (name,))[0], 25, folder / "videos/Left" / name)
    (folder / "lists/classInd.txt").write_text("1 Left\n")
    (folder / "lists/trainlist01.txt").write_text("".join(f"Left/{name} 1\n" for name in names[:8]))
    (folder / "lists/testlist01.txt").write_text("".join(f"Left/{name}\n" for name in names[8:]))
    there = ("--root", folder / "videos", "--splits", folder / "lists", "--out", folder / "shards/local")
    succeed("-m", "preprocess", "ucf101", *there, *MAKING)
    return folder


@pytest.fixture(scope="module")
def straight(work: Path) -> Path:
    """The checkpoint of two processes that nothing disturbed."""
    data = ("--shards", work / "shards/local", "--split", "train01", "--out", work / "runs/straight")
    succeed("train_pretrain.py", *data, *TRAINING, ranks=2)
    return work / "runs/straight/last.pt"


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a Slurm cluster of one node with two CPUs, with a munge of its own."""
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "key").write_bytes(os.urandom(128))
    (folder / "key").chmod(0o600)
    (folder / "state").mkdir()
    (folder / "slurm.conf").write_text(f"""
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={free_port()}
SlurmdPort={free_port()}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge,cred_expire=3
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
NodeName=localhost NodeAddr=127.0.0.1 CPUs=2
PartitionName=all Nodes=localhost Default=YES MaxTime=INFINITE
""")
    environment = ENVIRONMENT | {"SLURM_CONF": str(folder / "slurm.conf")}
    files = [f"--{name}={folder}/{name}" for name in ("key-file", "pid-file", "seed-file", "log-file")]
    (folder / "key").rename(folder / "key-file")
    daemons = []
    try:
        for command in (
            ["munged", "--foreground", "--force", f"--socket={folder}/munge", *files],
            ["slurmctld", "-D"],
            ["slurmd", "-D", "-N", "localhost"],
        ):
            with (folder / f"{command[0]}.log").open("w") as log:
                daemons.append(subprocess.Popen(command, env=os.environ | environment, stdout=log, stderr=log))
            until((folder / "munge").exists, "munged's socket", 30)
        until(lambda: said(environment, "sinfo", "--noheader", "--states", "idle"), "the node is idle")
        yield environment
    finally:
        for which in (("--state", "PENDING"), ("--signal", "KILL", "--full")):
            said(environment, "scancel", "--user", "root", *which)
        until(lambda: not said(environment, "squeue", "--noheader"), "no job is left")
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait()


def used(work: Path, folder: Path) -> Path:
    """Another folder with the same packages and shards."""
    for name in (".venv", "shards"):
        (folder / name).symlink_to(work / name)
    return folder


def said(environment: dict[str, str], *command: str, folder: Path = REPOSITORY) -> str:
    return subprocess.run(command, cwd=folder, env=os.environ | environment, capture_output=True, text=True).stdout


def ended(environment: dict[str, str], job: str) -> bool:
    """Whether a job has left the queue. One whose dependency can never be satisfied stays in it."""
    return not said(environment, "squeue", "-h", "-j", job)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in ("plan.json", "failures.jsonl")}


def same_weights(one: Path, other: Path) -> bool:
    a, b = load(one), load(other)
    return a["step"] == b["step"] == 8 and all(torch.equal(a["model"][name], b["model"][name]) for name in a["model"])


@needs_slurm
def test_an_array_of_parts_and_merge_make_the_set_of_one_command(slurm: dict[str, str], work: Path) -> None:
    """Parts that keep nothing end with an error, so that merge does not start."""
    submit = script("merge shards/ucf101")
    few = script("--array=1-4", {"--array=1-4": "--array=1-2", "--part": f"{' '.join(MAKING)} --part"})
    for flags in ("--timeout 0.001 --part", "--part"):
        (work / "shards.sbatch").write_text(few.replace("--part", flags))
        merging = said(slurm, "bash", "-ec", submit, folder=work).split()[-1]
        if "timeout" in flags:
            stuck = ["squeue", "-h", "-j", merging, "-o", "%r"]
            until(lambda: "DependencyNeverSatisfied" in said(slurm, *stuck), "merge is held back")  # noqa: B023
            told = "".join(path.read_text() for path in work.glob("shards.sbatch-*.out"))
            assert re.search(
                r"error: shards/ucf101: part 1/2 on .* kept none of its \d videos; Left/v_Left_g01_c01.avi: not done", told
            )
            said(slurm, "scancel", merging)
        until(lambda: ended(slurm, merging), "merge")  # noqa: B023
    told = "".join(path.read_text() for path in work.glob("*.out"))
    assert (work / "shards/ucf101/manifest.json").exists(), told
    assert contents(work / "shards/ucf101") == contents(work / "shards/local"), told


@needs_slurm
@pytest.mark.parametrize("engine", ["torchrun", "srun"])
def test_a_job_at_its_time_limit_goes_on_and_ends_with_the_same_weights(
    engine: str, slurm: dict[str, str], work: Path, straight: Path, tmp_path: Path
) -> None:
    """Slurm signals it before the limit, it saves, goes back to the queue, and the second start goes on."""
    folder = used(work, tmp_path)
    (folder / "train_pretrain.py").write_text(LAUNCHER.replace("HOLDS_NOT", "os.path.exists('signalled')"))
    (folder / "train.sbatch").write_text(script("#SBATCH --ntasks" if engine == "srun" else "bin/torchrun", SMALLER))
    began = time.monotonic()
    job = said(slurm, "sbatch", "--parsable", "train.sbatch", folder=folder).strip()
    log = folder / f"train.sbatch-{job}.out"
    until((folder / "held-2").exists, "the run is at its third step")
    minutes = int((time.monotonic() - began) / 60) + 5  # from now on less than 300 seconds are left
    said(slurm, "scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")
    until((folder / "signalled").exists, "SIGTERM before the time limit")
    said(slurm, "scontrol", "update", f"JobId={job}", "TimeLimit=1440")

    def over() -> bool:
        said(slurm, "scontrol", "update", f"JobId={job}", "StartTime=now")  # Slurm leaves two minutes before a second start
        return ended(slurm, job) and "resumed after step" in log.read_text()  # on its way back into the queue it is in none

    until(over, "the second start ends")
    told = log.read_text()
    assert len(re.findall(r"stopped by a signal after step \d", told)) == 1 and "resumed after step" in told, told
    assert same_weights(folder / "runs/ucf101/last.pt", straight), told


@pytest.fixture
def nodes() -> Iterator[list[str]]:
    """Two network namespaces, which see each other as 10.0.0.1 and 10.0.0.2 at the interface eth0."""
    names = [f"dclr-{os.getpid()}-{number}" for number in (1, 2)]
    try:
        for name in names:
            command("ip", "netns", "add", name)
        command("ip", "link", "add", "eth0", "netns", names[0], "type", "veth", "peer", "name", "eth0", "netns", names[1])
        for number, name in enumerate(names, 1):
            command("ip", "-n", name, "address", "add", f"10.0.0.{number}/24", "dev", "eth0")
            for interface in ("lo", "eth0"):
                command("ip", "-n", name, "link", "set", interface, "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name])


def command(*words: str) -> None:
    subprocess.run(words, check=True)


def kill_all(node: str) -> None:
    for pid in said(ENVIRONMENT, "ip", "netns", "pids", node).split():
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


@needs_namespaces
def test_a_run_goes_on_without_a_lost_node_and_with_it_when_it_is_back(
    nodes: list[str], work: Path, straight: Path, tmp_path: Path
) -> None:
    """It ends with the videos that an undisturbed run has seen, in the same order."""
    folder, log = used(work, tmp_path), tmp_path / "log"
    wait_for = "os.path.exists('lost' if os.environ['WORLD_SIZE'] == '2' else 'signalled')"
    (folder / "train_pretrain.py").write_text(LAUNCHER.replace("HOLDS_NOT", wait_for))
    environment = os.environ | ENVIRONMENT | {"PATH": f"{work}/.venv/bin:{os.environ['PATH']}"}
    quick = "--rdzv-conf last_call_timeout=2,keep_alive_interval=1,"
    changes = {"--nproc-per-node 2": "--nproc-per-node 1", "--rdzv-conf ": quick, **SMALLER}

    def start(number: int) -> subprocess.Popen[bytes]:
        text = script("HEAD=", {"HERE=10.0.0.1": f"HERE=10.0.0.{number}", **changes})
        where = ["ip", "netns", "exec", nodes[number - 1], "bash", "-c", text]
        with log.open("a") as end:
            return subprocess.Popen(where, cwd=folder, env=environment, start_new_session=True, stdout=end, stderr=end)

    running = [start(1), start(2)]
    try:
        until((folder / "held-2").exists, "two nodes are at the third step")
        kill_all(nodes[1])
        (folder / "lost").touch()
        until((folder / "held-1").exists, "one node is at its third step")
        running.append(start(2))
        assert (running[0].wait(1200), running[2].wait(1200)) == (0, 0), log.read_text()
    finally:
        for name in nodes:
            kill_all(name)
        for process in running:
            process.wait()
    assert re.findall(r"resumed after step (\d) of 8", log.read_text()) == ["2", "5"], log.read_text()
    there, undisturbed = load(folder / "runs/ucf101/last.pt"), load(straight)
    assert there["step"] == undisturbed["step"] == 8 and there["loader"] == undisturbed["loader"]
    assert torch.equal(there["model"]["queue.video_K"], undisturbed["model"]["queue.video_K"])  # weights: up to rounding
