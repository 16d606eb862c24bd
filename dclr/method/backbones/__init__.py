"""Video backbones by name: ``build("r2plus1d_10")`` is a trunk, clips (B, 3, T, H, W) -> feature map (B, C', T', H', W').

| name | network | parameters | layout of the names |
|---|---|---|---|
| r2plus1d_10 | R(2+1)D, one block a stage: the authors' "r2plus1d_18" | 12,487,005 | VideoResNet |
| r2plus1d_18 | R(2+1)D, 18 layers | 31,300,125 | VideoResNet |
| r3d_18 | R3D, 18 layers | 33,166,272 | VideoResNet |
| mc3_18 | MC3: over time in the first stage alone | 11,490,240 | VideoResNet |
| i3d | I3D (Inception-v1) | 12,287,264 | piergiaj/pytorch-i3d |

VideoResNet is the common layout ``stem, layer1 ... layer4``: weights of it load strictly. torch is imported where a trunk is
built, so that a command line knows the names without it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dclr.errors import InputError

if TYPE_CHECKING:
    from dclr.method.backbones.layers import Backbone


def _resnet(width: int, blocks: tuple[int, int, int, int], *convolutions: str) -> Backbone:
    from dclr.method.backbones import resnet

    return resnet.VideoResNet([getattr(resnet, name) for name in convolutions], blocks, width)


def _i3d(width: int) -> Backbone:
    from dclr.method.backbones.i3d import I3D

    return I3D(width)


ARCHITECTURES: dict[str, Callable[[int], Backbone]] = {
    "r2plus1d_10": lambda width: _resnet(width, (1, 1, 1, 1), *["conv2plus1d"] * 4),
    "r2plus1d_18": lambda width: _resnet(width, (2, 2, 2, 2), *["conv2plus1d"] * 4),
    "r3d_18": lambda width: _resnet(width, (2, 2, 2, 2), *["conv3d"] * 4),
    "mc3_18": lambda width: _resnet(width, (2, 2, 2, 2), "conv3d", *["conv2d"] * 3),
    "i3d": _i3d,
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


def weight_bytes(arch: str, width: int = 64) -> int:
    """What the weights of a trunk take in float32. It is built without them, so any width may be asked for."""
    import torch

    with torch.device("meta"):
        return 4 * sum(p.numel() for p in build(arch, width).parameters())
