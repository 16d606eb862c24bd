"""How many threads a process computes with, and how they wait. Call :func:`settle` before torch, which reads it at import."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

SPINS = "10000"  # looks at a barrier before a thread sleeps: benchmarks/threads.py


def settle() -> None:
    """Set the number of threads to the :func:`permitted` cores, divided by the ranks that torchrun started here. Threads that
    wait give their core away.

    A value that the environment already has stays, except for the ``OMP_NUM_THREADS=1`` that torchrun sets by itself."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    os.environ.setdefault("KMP_BLOCKTIME", "0")  # the same for Intel's runtime
    if "OMP_NUM_THREADS" not in os.environ or _by_torchrun():
        ranks = os.environ.get("LOCAL_WORLD_SIZE", "") if "TORCHELASTIC_RUN_ID" in os.environ else ""
        os.environ["OMP_NUM_THREADS"] = str(max(1, permitted() // max(1, int(ranks) if ranks.isdigit() else 1)))


def permitted() -> int:
    """Cores that this process may use: by its affinity, its control groups' quotas, and Slurm's ``--cpus-per-task``."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    task = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return max(1, min(cores, *_quotas(), int(task) if task.isdigit() else cores))


def state_of(process: int | None) -> str:
    """Of a process of this machine, as /proc has it: S sleeps, T is stopped, D waits for a disk; empty where there is none."""
    return _read(Path(f"/proc/{process}/stat")).rpartition(")")[2][1:2]


def _quotas(root: Path = Path("/sys/fs/cgroup"), mine: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Whole cores that each control group above this process grants, where it limits them (both versions of the interface)."""
    found = []
    try:
        lines = mine.read_text().splitlines()
    except OSError:
        return []
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / controllers if controllers else root
        at = top / path.lstrip("/")
        for folder in (at, *at.parents):
            for name in ("cpu.max", "cpu.cfs_quota_us"):
                text = _read(folder / name)
                if name == "cpu.cfs_quota_us":
                    text += " " + _read(folder / "cpu.cfs_period_us")
                if quota := re.fullmatch(r"(\d+)\s+([1-9]\d*)", text.strip()):
                    found.append(math.ceil(int(quota[1]) / int(quota[2])))
            if folder == top:
                break
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _by_torchrun() -> bool:
    """Whether ``OMP_NUM_THREADS=1`` is what torchrun sets where a user has set nothing: then it was not in the environment that
    torchrun itself was started with."""
    if os.environ.get("OMP_NUM_THREADS") != "1" or "TORCHELASTIC_RUN_ID" not in os.environ:
        return False
    return b"\0OMP_NUM_THREADS=" not in b"\0" + _read_bytes(Path(f"/proc/{os.getppid()}/environ"))


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b"OMP_NUM_THREADS="  # nobody can say: it is the user's
