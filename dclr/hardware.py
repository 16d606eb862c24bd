"""This machine and this code: which device, which number format the convolutions run in, how memory is kept and counted.

Losses, maps and heads are float32 whatever format is chosen (dclr/method/losses.py).
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import resource
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from dclr import distributed
from dclr.errors import InputError
from dclr.threads import permitted

M = TypeVar("M", bound=nn.Module)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def keep_freed_memory() -> None:
    """Keep freed blocks of memory in this process for the next step, which needs blocks of the same sizes.

    By default glibc gives every large block back to the system and asks for it again. On the CPU that takes a third of a
    training step (r2plus1d_10 at 16x112x112, fp32, 2 cores: 0.9 -> 1.3 clips/s forward and backward) and a quarter of cutting a
    clip.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return
    mmap_threshold, trim_threshold = -3, -1
    mallopt(mmap_threshold, 2**30)
    mallopt(trim_threshold, 2**31 - 1)


def pick_device(deterministic: bool = False) -> torch.device:
    """This process's GPU where there is one, else the CPU. Freed memory is kept (:func:`keep_freed_memory`) beside a GPU too:
    there each batch is copied out of a worker's pages.

    On a GPU, cuDNN tries its kernels for each shape and keeps the fastest: the shapes of steps and of features stay the same.
    Another start may keep other kernels. With ``deterministic`` every operation has the same bits each time, or torch raises
    RuntimeError. Call it before anything computes on the GPU. A CPU gives the same bits either way.

    Raises InputError as :func:`dclr.distributed.check_environment`."""
    distributed.check_environment()
    keep_freed_memory()
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.deterministic = deterministic
    torch.use_deterministic_algorithms(deterministic)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else torch refuses a product of matrices
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def place(module: M, device: torch.device) -> M:
    """``module`` on ``device`` with its 5-dimensional weights channels last: the layout convolutions are fastest in."""
    return module.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


def sent(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """``x`` on ``device``, without waiting for the GPU.

    A copy runs while the host goes on only from pinned memory, so ``x`` is pinned first. torch keeps that memory until the copy
    is done."""
    if device.type == "cuda" and x.device.type == "cpu":
        x = torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x)
    return x.to(device, non_blocking=True)


def peak_memory_gb() -> float:
    """The most main memory this process ever held, in GB (10**9 bytes); on a GPU, the most its allocator held."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def memory_bytes(device: torch.device) -> int:
    """The most that a process can hold there: the GPU's memory, or the machine's and its swap, or what its container has."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    meminfo, limit = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    swap = re.search(r"^SwapTotal: *(\d+) kB", meminfo.read_text() if meminfo.exists() else "", re.MULTILINE)
    here = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") + (1024 * int(swap[1]) if swap else 0)
    most = limit.read_text().strip() if limit.exists() else ""
    return min(here, int(most)) if most.isdecimal() else here


def require_memory(needed: Mapping[str, int], device: torch.device) -> None:
    """Raises InputError where a process cannot hold what it needs at once: bytes by the flags that decide them. ``needed`` is
    the least that it can be, so what fits is never refused."""
    total, there, most = sum(needed.values()), memory_bytes(device), max(needed, key=lambda name: needed[name])
    if total > there:
        where = "this GPU" if device.type == "cuda" else "this machine"
        raise InputError(
            f"{most}: takes at least {needed[most] / 1e9:,.1f} GB of memory, a process as a whole {total / 1e9:,.1f} GB, and "
            f"{where} has {there / 1e9:,.1f} GB; make it smaller"
        )


def cpu_has_bf16() -> bool:
    """Whether this processor has instructions that multiply bfloat16 (AVX512-BF16 or AMX)."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and any(flag in cpuinfo.read_text() for flag in ("avx512_bf16", "amx_bf16"))


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """``auto`` is bf16 where the processor or GPU has it, else fp32; fp16 needs a GPU (its gradients need scaling)."""
    if name == "auto":
        has = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else cpu_has_bf16()
        return torch.bfloat16 if has else torch.float32
    if name not in DTYPES:
        raise InputError(f"--precision {name}: expected auto, {', '.join(DTYPES)}")
    if name == "fp16" and device.type != "cuda":
        raise InputError("--precision fp16 needs a GPU: use bf16 or fp32 on the CPU")
    return DTYPES[name]


def precision_name(dtype: torch.dtype) -> str:
    """The name that ``--precision`` has for a number format."""
    return next(name for name, other in DTYPES.items() if other == dtype)


def machine() -> dict[str, Any]:
    """What this runs on: ``processor``, the ``cores`` that this process may use, torch's ``threads`` in it, ``memory_gb`` of
    the whole machine, ``processes`` of the run, and ``gpu``, its name, where there is one."""
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*: (.*)$", cpuinfo.read_text() if cpuinfo.exists() else "", re.MULTILINE)
    return {
        "processor": model[1] if model else platform.processor() or platform.machine(),
        "cores": permitted(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "processes": distributed.world(),
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
    }


@lru_cache
def revision() -> str:
    """The git revision of this code, of an installed package its version, or "unknown"."""
    where = Path(__file__).parent.parent
    if not (where / ".git").exists():  # git would name whatever repository an environment lies in
        with suppress(PackageNotFoundError):
            return version("dclr")
        return "unknown"
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=where, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"
