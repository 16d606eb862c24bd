"""R(2+1)D (Tran et al., CVPR 2018): a 3D ResNet whose convolutions are a spatial one, then a temporal one.

The authors of DCLR call the network with one block a stage "r2plus1d_18"; it is ``r2plus1d_10`` here, and the 18-layer one has
two. Names and shapes follow the common VideoResNet layout, without its classifier.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn


def midplanes(inputs: int, outputs: int) -> int:
    """Channels between the spatial and the temporal convolution, so that both have the parameters of one 3x3x3."""
    return (inputs * outputs * 27) // (inputs * 9 + 3 * outputs)


class TemporalConv(nn.Conv3d):
    """A 3x1x1 convolution over time, computed as the same 3x1 convolution over (T, H W).

    The same parameters, function and speed as Conv3d, and right where that is not: on the CPU in bfloat16, torch 2.13's weight
    gradient of a temporal kernel of 3 on a clip of T = 2 (layer4 of every 16-frame clip) is read from memory that was never
    written (tests/test_backbones.py shows it).
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__(inputs, outputs, (3, 1, 1), (stride, 1, 1), (1, 0, 0), bias=False)

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        plane = F.conv2d(x_BCTHW.flatten(3), self.weight.flatten(3), None, (self.stride[0], 1), (1, 0))
        return plane.unflatten(3, x_BCTHW.shape[3:])


def conv2plus1d(inputs: int, middle: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(inputs, middle, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False),
        nn.BatchNorm3d(middle),
        nn.ReLU(inplace=True),
        TemporalConv(middle, outputs, stride),
    )


class BasicBlock(nn.Module):
    """Two (2+1)D convolutions and a shortcut: (B, inputs, T, H, W) -> (B, outputs, T/stride, H/stride, W/stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        middle = midplanes(inputs, outputs)  # of both convolutions, as in the published network
        self.conv1 = nn.Sequential(conv2plus1d(inputs, middle, outputs, stride), nn.BatchNorm3d(outputs), nn.ReLU(inplace=True))
        self.conv2 = nn.Sequential(conv2plus1d(outputs, middle, outputs), nn.BatchNorm3d(outputs))
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv3d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm3d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(self.conv2(self.conv1(x)) + shortcut)


class VideoResNet(nn.Module):
    """The trunk: clips (B, 3, T, H, W) -> feature map (B, 8 width, ceil(T/8), ceil(H/16), ceil(W/16)), all >= 0."""

    def __init__(self, blocks: Sequence[int], width: int = 64):
        super().__init__()
        middle = max(1, 45 * width // 64)  # 45 in the published stem
        self.stem = nn.Sequential(
            nn.Conv3d(3, middle, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False),
            nn.BatchNorm3d(middle),
            nn.ReLU(inplace=True),
            TemporalConv(middle, width),
            nn.BatchNorm3d(width),
            nn.ReLU(inplace=True),
        )
        planes = [width, width, 2 * width, 4 * width, 8 * width]
        for stage, count in enumerate(blocks, 1):
            first = BasicBlock(planes[stage - 1], planes[stage], stride=1 if stage == 1 else 2)
            rest = [BasicBlock(planes[stage], planes[stage]) for _ in range(count - 1)]
            self.add_module(f"layer{stage}", nn.Sequential(first, *rest))
        self.channels = planes[-1]
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, clip_BCTHW: torch.Tensor) -> torch.Tensor:
        x = self.stem(clip_BCTHW)
        for stage in (1, 2, 3, 4):
            x = self.get_submodule(f"layer{stage}")(x)
        return x
