"""Which number format the convolutions run in. Losses, maps and heads are float32 whatever is chosen (dclr/losses.py)."""

from __future__ import annotations

from pathlib import Path

import torch

from dclr.errors import InputError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def cpu_has_bf16() -> bool:
    """Whether this processor multiplies bfloat16 by itself (AVX512-BF16 or AMX)."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and any(flag in cpuinfo.read_text() for flag in ("avx512_bf16", "amx_bf16"))


def resolve(name: str, device: torch.device) -> torch.dtype:
    """``auto`` is bf16 where the processor or GPU has it, else fp32; fp16 needs a GPU (its gradients need scaling)."""
    if name == "auto":
        has = torch.cuda.is_bf16_supported() if device.type == "cuda" else cpu_has_bf16()
        return torch.bfloat16 if has else torch.float32
    if name not in PRECISIONS:
        raise InputError(f"--precision {name}: expected auto, {', '.join(PRECISIONS)}")
    if name == "fp16" and device.type != "cuda":
        raise InputError("--precision fp16 needs a GPU: use bf16 or fp32 on the CPU")
    return PRECISIONS[name]
