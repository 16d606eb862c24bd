"""The optimisers of a training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from dclr.training.config import OPTIMISERS

KEPT = {torch.optim.SGD: {"momentum_buffer"}, torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"}}  # of each parameter


def build_optimiser(
    name: str, parameters: Iterable[Any], lr: float, wd: float, fused: bool | None = None
) -> torch.optim.Optimizer:
    """The optimiser ``name``, one of :data:`OPTIMISERS`, over parameters or groups of them: SGD with momentum 0.9, or AdamW
    (Loshchilov and Hutter 2019). A fused one leaves a step out where its ``found_inf`` is 1, without asking the device."""
    if name == OPTIMISERS[0]:
        return torch.optim.SGD(parameters, lr, momentum=0.9, weight_decay=wd, fused=fused)
    return torch.optim.AdamW(parameters, lr, weight_decay=wd, fused=fused)
