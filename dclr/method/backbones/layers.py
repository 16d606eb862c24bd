"""What trunks are made of: torch's convolutions, except where torch's are wrong.

On the CPU, torch 2.13's weight gradient of a convolution that pads in time is read from memory that was never written, or
written past its end, where the clip has no more frames than the kernel: in bfloat16 a kernel of 3 at T = 2 (layer4 of every
16-frame clip) and one of 7 at T = 3 to 7; in float32 one of 7 with stride 2 at T = 5 to 7. tests/method/test_backbones.py
watches.
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
    """A convolution without bias, computed by the best of torch's that is right.

    Where the clip has no more frames than the kernel, time is padded before the convolution.

    A kernel of one frame, on a clip that lies channels last, becomes a 2D convolution of B T frames, a view of the same memory.
    torch's 3D weight gradient of such a kernel can take three times as long (64 to 144 channels at 16x56x56, batch 4, on a CPU
    with AVX2: 962 and 319 ms). Under autocast it stays 3D: in bfloat16 the 2D one sums the frames in bfloat16, and its error
    grows with their number (512 frames: 2.7 %).
    """

    def __init__(self, inputs: int, outputs: int, kernel: Triple, stride: Triple = (1, 1, 1), padding: Triple = (0, 0, 0)):
        super().__init__(inputs, outputs, kernel, stride, padding, bias=False)
        self.before, self.within = (0, 0, 0, 0, padding[0], padding[0]), (0, padding[1], padding[2])
        self.framewise = kernel[0] == stride[0] == 1 and padding[0] == 0

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        half = torch.is_autocast_enabled(x_BCTHW.device.type)
        if self.framewise and not half and x_BCTHW.is_contiguous(memory_format=torch.channels_last_3d):
            frames = x_BCTHW.transpose(1, 2).flatten(0, 1)
            out = F.conv2d(frames, self.weight.squeeze(2), None, self.stride[1:], self.within[1:])
            return out.unflatten(0, (len(x_BCTHW), -1)).transpose(1, 2)
        if self.before[-1] and x_BCTHW.shape[2] <= self.kernel_size[0]:
            return F.conv3d(F.pad(x_BCTHW, self.before), self.weight, None, self.stride, self.within)
        return super().forward(x_BCTHW)
