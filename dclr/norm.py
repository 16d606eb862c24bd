"""BatchNorm over the joined batch, with statistics of its own for each view.

One set of running statistics fed with RGB, static and difference clips fits none of them, and evaluation sees RGB only
(shared/method.md, fault 5). So each view is normalised, and tracked, by itself; weight and bias are shared. Statistics are
those of the whole global batch on any number of ranks (torch.nn.SyncBatchNorm refuses CPU tensors).
"""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import nn

from dclr.distributed import total, world

VIEWS = ("v", "s", "d")
MOMENTUM = 0.1  # of the running statistics, as in torch

M = TypeVar("M", bound=nn.Module)


class ViewBatchNorm(nn.BatchNorm3d):
    """BatchNorm3d whose ``running_mean`` and ``running_var`` are those of RGB clips (view ``v``, the names that every
    VideoResNet has), with ``running_mean_s`` ... beside them. ``view`` and ``track`` are set by :func:`use_view`."""

    def __init__(self, channels: int):
        super().__init__(channels)
        self.view, self.track = "v", True
        for name in VIEWS[1:]:
            self.register_buffer(f"running_mean_{name}", torch.zeros(channels))
            self.register_buffer(f"running_var_{name}", torch.ones(channels))

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        suffix = "" if self.view == "v" else f"_{self.view}"
        mean, var = getattr(self, f"running_mean{suffix}"), getattr(self, f"running_var{suffix}")
        if self.training and world() > 1:
            return self._joined(x_BCTHW, mean, var)
        if self.training and not self.track:
            mean = var = None
        return F.batch_norm(x_BCTHW, mean, var, self.weight, self.bias, self.training, MOMENTUM, self.eps)

    def _joined(self, x_BCTHW: torch.Tensor, running_mean: torch.Tensor, running_var: torch.Tensor) -> torch.Tensor:
        """Two passes, not E[x^2] - E[x]^2: no cancellation. At least float32, whatever autocast hands in."""
        x = x_BCTHW.to(torch.promote_types(x_BCTHW.dtype, torch.float32))
        over, shape = (0, 2, 3, 4), (1, -1, 1, 1, 1)
        count = x.numel() // x.shape[1] * world()  # every rank has the same batch (dclr/data/plan.py)
        mean = total(x.sum(over)) / count
        centred = x - mean.view(shape)
        var = total(centred.square().sum(over)) / count
        if self.track:
            with torch.no_grad():
                running_mean.lerp_(mean.to(running_mean.dtype), MOMENTUM)
                running_var.lerp_((var * count / max(count - 1, 1)).to(running_var.dtype), MOMENTUM)
        scale = self.weight * torch.rsqrt(var + self.eps)
        return (centred * scale.view(shape) + self.bias.view(shape)).to(x_BCTHW.dtype)


def convert(module: M) -> M:
    """Put a :class:`ViewBatchNorm` in the place of every BatchNorm3d below ``module``, in place."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm3d) and not isinstance(child, ViewBatchNorm):
            new = ViewBatchNorm(child.num_features)
            new.load_state_dict(child.state_dict(), strict=False)
            setattr(module, name, new)
        else:
            convert(child)
    return module


def use_view(module: nn.Module, name: str, track: bool = True) -> None:
    """From now on every BatchNorm of ``module`` normalises as view ``name``, and learns its running statistics if ``track``."""
    for layer in module.modules():
        if isinstance(layer, ViewBatchNorm):
            layer.view, layer.track = name, track
