"""BatchNorm as docs/method.md defines it: over which clips the statistics of a training batch are taken.

``mode`` says over which videos:

- ``sync``: the joined batch of all ranks. (torch.nn.SyncBatchNorm refuses CPU tensors, so the statistics are joined here.)
- ``shuffle`` and ``local``: a group, which is a rank or one of ``groups`` slices of its batch. With ``shuffle`` the model also
  sends the keys to other groups.

``views`` says over which views: ``split``, each of v, s, d by itself; ``shared``, all three together. Running statistics of
RGB, static and difference clips together fit none of them, and evaluation sees RGB only (fault 5). ``split`` keeps statistics
for each view. :func:`reestimate` replaces shared ones by those of RGB clips.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import nn

from dclr.distributed import joined, total, world
from dclr.method.backbones.layers import Front
from dclr.method.objective import Statistics

VIEWS = ("v", "s", "d")
RUNNING_MOMENTUM = 0.1  # of the running statistics, torch's default

M = TypeVar("M", bound=nn.Module)


class ViewBatchNorm(nn.BatchNorm3d):
    """BatchNorm3d over the clips that ``statistics`` names.

    ``running_mean`` and ``running_var`` are those of RGB clips (view ``v``): these are the names that every VideoResNet has.
    Where views are split, ``running_mean_s`` and so on stand beside them. :func:`use_view` sets ``view`` and ``track``."""

    def __init__(self, like: nn.BatchNorm3d, statistics: Statistics):
        super().__init__(like.num_features, like.eps, RUNNING_MOMENTUM if like.momentum is None else like.momentum)
        self.load_state_dict(like.state_dict())
        self.statistics, self.view, self.track = statistics, "v", True
        for name in VIEWS[1:] if statistics.views == "split" else ():
            self.register_buffer(f"running_mean_{name}", torch.zeros(like.num_features))
            self.register_buffer(f"running_var_{name}", torch.ones(like.num_features))

    def running(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Running mean and variance (C,) of the view in use."""
        suffix = "" if self.view == "v" or self.statistics.views == "shared" else f"_{self.view}"
        return getattr(self, f"running_mean{suffix}"), getattr(self, f"running_var{suffix}")

    def forward(self, x_BCTHW: torch.Tensor, at: int = 0, times: int = 1) -> torch.Tensor:
        """Frame ``at`` counts ``times`` times: it stands for that many equal ones (dclr/method/still.py)."""
        mean, var = self.running()
        if self.training and not self.track:
            mean, var = mean.clone(), var.clone()
        if not self.training or self.statistics.groups == 1:
            return self._normalise(x_BCTHW, mean, var, at, times)
        parts = [(part, mean.clone(), var.clone()) for part in x_BCTHW.chunk(self.statistics.groups)]
        out = torch.cat([self._normalise(*part, at, times) for part in parts])
        mean.copy_(torch.stack([part[1] for part in parts]).mean(0))  # the groups' mean
        var.copy_(torch.stack([part[2] for part in parts]).mean(0))
        return out

    def _normalise(self, x: torch.Tensor, mean: torch.Tensor, var: torch.Tensor, at: int, times: int) -> torch.Tensor:
        """``x`` normalised; in training the running ``mean`` and ``var`` are updated."""
        assert self.momentum is not None
        together = self.statistics.mode == "sync" and world() > 1
        if not self.training or not (together or times > 1):
            return F.batch_norm(x, mean, var, self.weight, self.bias, self.training, self.momentum, self.eps)
        out, batch_mean, batch_var = _Joined.apply(x, self.weight, self.bias, self.eps, at, times, together)
        count = values(x, times) * (world() if together else 1)
        mean.lerp_(batch_mean, self.momentum)
        var.lerp_(batch_var * (count / max(count - 1, 1)), self.momentum)
        return out


def values(x_BCTHW: torch.Tensor, times: int) -> int:
    """Values of a channel of which a frame counts ``times`` times."""
    return x_BCTHW[:, 0, 0].numel() * (x_BCTHW.shape[2] + times - 1)


class _Joined(torch.autograd.Function):
    """BatchNorm over the rows of all ranks, by torch's fused kernels on each. Every rank has as many rows (dclr/data/plan.py).

    Frame ``at`` counts ``times`` times. Where ``together`` is false, the rows are this rank's alone. Returns the output, and
    mean and variance (C,) in the type of ``weight``. For the backward pass a rank keeps its input alone."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, at: int, times: int, together: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        mean, var = _moments(x, weight)
        if times > 1:  # the other times - 1 are a second set of rows
            more = (times - 1) / (x.shape[2] + times - 1)
            more_mean, more_var = _moments(x[:, :, at : at + 1].contiguous(memory_format=torch.channels_last_3d), weight)
            var = var.lerp(more_var, more) + more * (1 - more) * (more_mean - mean).square()
            mean = mean.lerp(more_mean, more)
        if together:
            mean_RC, var_RC = joined(torch.stack([mean, var]).unsqueeze(0)).unbind(1)  # R ranks
            mean = mean_RC.mean(0)
            var = (var_RC + (mean_RC - mean).square()).mean(0)
        ctx.save_for_backward(x, weight, mean, var)
        ctx.eps, ctx.at, ctx.times, ctx.together = eps, at, times, together
        ctx.mark_non_differentiable(mean, var)
        return F.batch_norm(x, mean, var, weight, bias, eps=eps), mean, var

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradient as if the statistics were constants, plus what the statistics add.

        They add -w / sd (mean(dy) + X mean(dy X)), where X is the normalised x and the means are over the rows of all ranks. In
        x that is linear, so it is one more BatchNorm with the weight ``slope``."""
        x, weight, mean, var = ctx.saved_tensors
        normalise = torch.ops.aten.native_batch_norm_backward.default
        dx, dweight, dbias = normalise(gradients[0], x, weight, mean, var, None, None, False, ctx.eps, [True] * 3)
        sums, count = torch.stack([dbias, dweight]), values(x, ctx.times)
        mean_dy, mean_dyx = total(sums) / (count * world()) if ctx.together else sums / count
        scale = (var + ctx.eps).rsqrt()
        slope = -weight * scale.square() * mean_dyx
        rest = F.batch_norm(
            x, torch.zeros_like(mean), torch.ones_like(var), slope, -weight * scale * mean_dy - slope * mean, eps=0
        )
        if ctx.times > 1:
            rest[:, :, ctx.at] *= ctx.times  # the statistics have that much of this frame
        return dx + rest, dweight, dbias, None, None, None, None


def _moments(x: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and biased variance (C,) of ``x`` in the type of ``like``, by way of buffers that nothing reads."""
    return torch.batch_norm_update_stats(x, torch.zeros_like(like), torch.ones_like(like), 0.0)


def convert(module: M, statistics: Statistics) -> M:
    """Replace every BatchNorm3d below ``module`` by a :class:`ViewBatchNorm`, in place; returns ``module``."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm3d):
            setattr(module, name, ViewBatchNorm(child, statistics))
        else:
            convert(child, statistics)
    return module


def use_view(module: nn.Module, name: str, track: bool = True) -> None:
    """From now on every BatchNorm of ``module``, and its front, treat their input as view ``name``. ``track`` also updates the
    view's running statistics."""
    for layer in _by_view(module):
        layer.view, layer.track = name, track


def _by_view(module: nn.Module) -> list[ViewBatchNorm | Front]:
    return [layer for layer in module.modules() if isinstance(layer, ViewBatchNorm | Front)]


@contextmanager
def again(module: nn.Module, name: str) -> Iterator[None]:
    """Inside, a part of ``module`` is computed a second time (gradient checkpointing): as view ``name``, without updating the
    running statistics a second time."""
    layers = _by_view(module)
    before = [(layer.view, layer.track) for layer in layers]
    use_view(module, name, track=False)
    try:
        yield
    finally:
        for layer, (view, track) in zip(layers, before, strict=True):
            layer.view, layer.track = view, track


@torch.no_grad()
def average(module: nn.Module) -> None:
    """Give every rank the mean of the ranks' running statistics. Under ``sync`` they are equal already.

    Running statistics are linear in the batches that they saw. So this mean, taken once in a while, equals the one taken at
    every step.
    """
    for layer in module.modules():
        if isinstance(layer, ViewBatchNorm) and layer.statistics.mode != "sync" and world() > 1:
            for name, buffer in layer.named_buffers():
                if name.startswith("running"):
                    buffer.copy_(total(buffer) / world())


@torch.no_grad()
def reestimate(module: nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """Replace the running statistics by the mean, over ``batches`` of RGB clips (B, 3, T, H, W), of each batch's mean and
    variance ("precise BatchNorm", Wu and Johnson 2021). The weights stay. ``module`` is in evaluation mode afterwards."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm3d)]
    before = [layer.momentum for layer in layers]
    module.train()
    for number, clips in enumerate(batches):
        for layer in layers:
            layer.momentum = 1 / (number + 1)
        module(clips)
    module.eval()
    for layer, momentum in zip(layers, before, strict=True):
        layer.momentum = momentum
