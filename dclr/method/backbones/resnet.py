"""Video ResNets of Tran et al. (CVPR 2018): R(2+1)D, R3D and MC3, which differ in their convolutions alone.

The authors of DCLR call the R(2+1)D with one block a stage "r2plus1d_18"; it is ``r2plus1d_10`` here, and the 18-layer one has
two. Names and shapes follow the common VideoResNet layout, without its classifier.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from dclr.method.backbones.layers import Backbone, Conv3d

Conv = Callable[[int, int, int, int], nn.Module]  # inputs, middle channels (R(2+1)D's alone), outputs, stride


def midplanes(inputs: int, outputs: int) -> int:
    """Channels between the spatial and the temporal convolution: both together then have the parameters of one 3x3x3.

    >>> midplanes(64, 64), midplanes(64, 128)
    (144, 230)
    """
    return (inputs * outputs * 27) // (inputs * 9 + 3 * outputs)


def conv2plus1d(inputs: int, middle: int, outputs: int, stride: int) -> nn.Module:
    """A spatial convolution, then a temporal one."""
    return nn.Sequential(
        Conv3d(inputs, middle, (1, 3, 3), (1, stride, stride), (0, 1, 1)),
        nn.BatchNorm3d(middle),
        nn.ReLU(inplace=True),
        Conv3d(middle, outputs, (3, 1, 1), (stride, 1, 1), (1, 0, 0)),
    )


def conv3d(inputs: int, middle: int, outputs: int, stride: int) -> nn.Module:
    return Conv3d(inputs, outputs, (3, 3, 3), (stride,) * 3, (1, 1, 1))


def conv2d(inputs: int, middle: int, outputs: int, stride: int) -> nn.Module:
    """A convolution frame by frame; it keeps T whatever the stride."""
    return Conv3d(inputs, outputs, (1, 3, 3), (1, stride, stride), (0, 1, 1))


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut: (B, inputs, T, H, W) -> (B, outputs, T/stride, H/stride, W/stride), T kept by conv2d."""

    def __init__(self, conv: Conv, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        middle = midplanes(inputs, outputs)  # of both convolutions, as in the published network
        self.conv1 = nn.Sequential(conv(inputs, middle, outputs, stride), nn.BatchNorm3d(outputs), nn.ReLU(inplace=True))
        self.conv2 = nn.Sequential(conv(outputs, middle, outputs, 1), nn.BatchNorm3d(outputs))
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            strides = (1 if conv is conv2d else stride, stride, stride)
            self.downsample = nn.Sequential(Conv3d(inputs, outputs, (1, 1, 1), strides), nn.BatchNorm3d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(self.conv2(self.conv1(x)) + shortcut)


class VideoResNet(Backbone):
    """The trunk: clips (B, 3, T, H, W) -> feature map (B, 8 width, T', ceil(H/16), ceil(W/16)), all >= 0; T' is ceil(T/8), or T
    where no stage but the first convolves over time (MC3).

    Args:
        convs: the convolution of each of the four stages. blocks: blocks in each.
    """

    def __init__(self, convs: Sequence[Conv], blocks: Sequence[int], width: int = 64):
        super().__init__()
        if convs[0] is conv2plus1d:
            middle = max(1, 45 * width // 64)  # 45 in the published stem
            first: list[nn.Module] = [
                Conv3d(3, middle, (1, 7, 7), (1, 2, 2), (0, 3, 3)),
                nn.BatchNorm3d(middle),
                nn.ReLU(inplace=True),
                Conv3d(middle, width, (3, 1, 1), padding=(1, 0, 0)),
            ]
        else:
            first = [Conv3d(3, width, (3, 7, 7), (1, 2, 2), (1, 3, 3))]
        self.stem = nn.Sequential(*first, nn.BatchNorm3d(width), nn.ReLU(inplace=True))
        planes = [width, width, 2 * width, 4 * width, 8 * width]
        for stage, (conv, count) in enumerate(zip(convs, blocks, strict=True), 1):
            head = BasicBlock(conv, planes[stage - 1], planes[stage], stride=1 if stage == 1 else 2)
            rest = [BasicBlock(conv, planes[stage], planes[stage]) for _ in range(count - 1)]
            self.add_module(f"layer{stage}", nn.Sequential(head, *rest))
        self.channels = planes[-1]
        self.initialise()

    def forward(self, clip_BCTHW: torch.Tensor) -> torch.Tensor:
        x = self.stem(clip_BCTHW)
        for stage in (1, 2, 3, 4):
            x = self.get_submodule(f"layer{stage}")(x)
        return x
