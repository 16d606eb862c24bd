"""What trunks are made of: torch's convolutions, except where torch's are wrong.

On the CPU, torch 2.13's weight gradient of a convolution that pads in time is read from memory that was never written, or
written past its end, where the clip has no more frames than the kernel: in bfloat16 a kernel of 3 at T = 2 (layer4 of every
16-frame clip) and one of 7 at T = 3 to 7; in float32 one of 7 with stride 2 at T = 5 to 7. tests/test_backbones.py watches.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

Triple = tuple[int, int, int]


class Backbone(nn.Module):
    """What every trunk is: clips (B, 3, T, H, W) -> feature map (B, C', T', H', W'), with C' as ``channels``."""

    channels: int

    def initialise(self) -> None:
        """Convolutions as He et al. (2015) draw them, by the fan out."""
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class Conv3d(nn.Conv3d):
    """A convolution without bias. Where T is not above its kernel's, time is padded before it."""

    def __init__(self, inputs: int, outputs: int, kernel: Triple, stride: Triple = (1, 1, 1), padding: Triple = (0, 0, 0)):
        super().__init__(inputs, outputs, kernel, stride, padding, bias=False)
        self.before, self.within = (0, 0, 0, 0, padding[0], padding[0]), (0, padding[1], padding[2])

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        if self.before[-1] and x_BCTHW.shape[2] <= self.kernel_size[0]:
            return F.conv3d(F.pad(x_BCTHW, self.before), self.weight, None, self.stride, self.within)
        return super().forward(x_BCTHW)


class TemporalConv(nn.Conv3d):
    """A 3x1x1 convolution over time, computed as the same 3x1 convolution over (T, H W): the same parameters, function and
    speed as Conv3d, and right at T = 2."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__(inputs, outputs, (3, 1, 1), (stride, 1, 1), (1, 0, 0), bias=False)

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        plane = F.conv2d(x_BCTHW.flatten(3), self.weight.flatten(3), None, (self.stride[0], 1), (1, 0))
        return plane.unflatten(3, x_BCTHW.shape[3:])
